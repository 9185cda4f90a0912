# Raw volumes → slices → preprocessed slices.
rule phantom:
    output:
        directory(paths.PHANTOMS),
    log:
        "results/{run}/logs/phantom/{batch}.log",
    conda:
        "../envs/data.yaml"
    resources:
        mem_mb=1000,
        runtime=10,
    params:
        cfg=lambda w: {
            "cases": {
                case.name: {
                    "seed": seed_of("phantom", case.name),
                    "modality": case.modality,
                }
                for case in MEMBERS.get(w.batch, [])
            },
            "settings": config["data"]["phantom"]["settings"],
        },
        code=code("phantom.py"),
    message:
        "Phantoms of batch {wildcards.batch}"
    script:
        "../scripts/phantom.py"


rule slices:
    input:
        made_files,
    output:
        slices=paths.SLICES,
        checksums=paths.CHECKSUMS,
        files=paths.FILES,
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
        paths.SLICES,
    output:
        paths.PREPROCESSED,
    log:
        "results/{run}/logs/preprocess/{batch}.log",
    conda:
        "../envs/data.yaml"
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
