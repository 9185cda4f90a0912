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


if FINDS:

    # The localizer says which slices are taken of the scans without a label.
    rule find_slices:
        input:
            volumes=made_files,
            # functions: Snakemake's report shows what else stands here, and paths are private
            weights=lambda w: trained_of(w.run),
            foreign=lambda w: FOREIGN["clip"],
        output:
            paths.FOUND,
        log:
            "results/{run}/logs/find_slices/{batch}.log",
        conda:
            "../envs/torch.yaml"
        threads: model_threads
        resources:
            gpu=one_gpu,
            mem_mb=lambda wildcards, attempt: slices_mb(wildcards, attempt) + 2000,
            runtime=lambda wildcards, attempt: 60 * attempt,
        params:
            cfg=lambda w: on_device(
                "clip",
                cases=case_rows(w),
                classes=config["classes"],
                trained=TRAINED_STATE,
                preprocess=config["preprocess"],
                roi=config["roi"],
                **BACKBONE,
                **{
                    key: config["data"][key]
                    for key in ("window", "percentiles", "orientation")
                },
                **{
                    key: config["data"]["slices"]["test"][key]
                    for key in ("count", "every")
                },
            ),
            files=signatures,
            code=code("find_slices.py"),
            note=BACKBONE_NOTE,
        message:
            "Find the organs in the scans of batch {wildcards.batch}{params.note}"
        script:
            "../scripts/find_slices.py"


rule slices:
    input:
        made_files,
        found=found_slices,
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
