# Raw volumes → slices → preprocessed slices.
rule phantom:
    output:
        image="results/{run}/raw/{case}.nii.gz",
        label="results/{run}/raw/{case}_labels.nii.gz",
    log:
        "results/{run}/logs/phantom/{case}.log",
    wildcard_constraints:
        case=r"(train|test)_(ct|mr)_\d+",
    conda:
        "../envs/data.yaml"
    resources:
        mem_mb=1000,
        runtime=10,
    params:
        cfg=lambda w: {
            "seed": seed_of("phantom", w.case),
            "modality": CASES[w.case].modality,
            "settings": config["data"]["phantom"]["settings"],
        },
        code=code("phantom.py"),
    message:
        "Phantom {wildcards.case}"
    script:
        "../scripts/phantom.py"


rule slices:
    input:
        made_files,
    output:
        slices="results/{run}/slices/{batch}.npz",
        checksums="results/{run}/slices/{batch}.json",
        files="results/{run}/private/{batch}.json",
    log:
        "results/{run}/logs/slices/{batch}.log",
    conda:
        "../envs/data.yaml"
    resources:
        mem_mb=lambda wildcards, attempt: slices_mb(wildcards, attempt),
        runtime=lambda wildcards, attempt: 60 * attempt,
    params:
        cfg=lambda w: {
            "cases": case_rows(w),
            "classes": config["classes"],
            "labels": label_table(config),
            "window": config["data"]["window"],
            "percentiles": config["data"]["percentiles"],
            "orientation": config["data"]["orientation"],
            "implausible": config["data"]["implausible"],
            "slices": config["data"]["slices"][w.batch.split("-")[0]],
        },
        files=signatures,
        code=code("slices.py"),
    message:
        "Slices of batch {wildcards.batch}"
    script:
        "../scripts/slices.py"


rule preprocess:
    input:
        "results/{run}/slices/{batch}.npz",
    output:
        "results/{run}/preprocessed/{batch}.npz",
    log:
        "results/{run}/logs/preprocess/{batch}.log",
    conda:
        "../envs/data.yaml"
    threads: 2
    resources:
        mem_mb=lambda wildcards, attempt: 1000 * attempt,
        runtime=30,
    params:
        cfg=config["preprocess"],
        code=code("preprocess.py"),
    message:
        "Preprocess batch {wildcards.batch} (equations 1 to 8)"
    script:
        "../scripts/preprocess.py"
