# Training the localizer; probability maps; ROI masks and boxes.
if TRAINS:

    rule train_localizer:
        input:
            slices=expand(
                paths.PREPROCESSED,
                batch=batches("train"),
                allow_missing=True,
            ),
            foreign=lambda w: FOREIGN["clip"],
        output:
            weights=paths.LOCALIZER,
            history=paths.TRAINING,
        log:
            "results/{run}/logs/train_localizer/{variant}.log",
        benchmark:
            "results/{run}/benchmarks/train_localizer/{variant}.tsv"
        # the rest waits for it
        priority: 20
        conda:
            "../envs/torch.yaml"
        threads: 8
        resources:
            gpu=1,
            mem_mb=lambda wildcards, attempt: 4000 * attempt,
            runtime=lambda wildcards, attempt: 240 * attempt,
        params:
            cfg=lambda w: on_device(
                "clip",
                **{
                    key: config["localizer"][key]
                    for key in config["localizer"]
                    if key not in ("weights", "ablation")
                },
                text=w.variant == "text",
                classes=config["classes"],
                seed=seed_of("localizer"),
            ),
            code=code("train_localizer.py"),
            note=BACKBONE_NOTE,
        message:
            "Train the localizer ({wildcards.variant}){params.note}"
        script:
            "../scripts/train_localizer.py"


rule localize:
    input:
        slices=paths.PREPROCESSED,
        # functions: Snakemake's report shows what else stands here, and paths are private
        weights=lambda w: trained_of(w.run, w.variant),
        foreign=lambda w: FOREIGN["clip"],
    output:
        paths.LOCALIZATION,
    log:
        "results/{run}/logs/localize/{variant}_{batch}.log",
    benchmark:
        "results/{run}/benchmarks/localize/{variant}_{batch}.tsv"
    conda:
        "../envs/torch.yaml"
    threads: model_threads
    resources:
        gpu=one_gpu,
        mem_mb=lambda wildcards, attempt: 3000 * attempt,
        runtime=lambda wildcards, attempt: 60 * attempt,
    params:
        cfg=on_device(
            "clip", classes=config["classes"], trained=TRAINED_STATE, **BACKBONE
        ),
        code=code("localize.py"),
        note=BACKBONE_NOTE,
    message:
        "Localize the organs of batch {wildcards.batch} ({wildcards.variant}){params.note}"
    script:
        "../scripts/localize.py"


rule roi:
    input:
        slices=paths.SLICES,
        localization=filled(paths.LOCALIZATION, variant="text"),
    output:
        paths.ROI,
    log:
        "results/{run}/logs/roi/{batch}.log",
    conda:
        "../envs/data.yaml"
    resources:
        mem_mb=1000,
        runtime=30,
    params:
        cfg={"roi": config["roi"], "classes": config["classes"]},
        code=code("roi.py"),
    message:
        "ROI masks and boxes of batch {wildcards.batch}"
    script:
        "../scripts/roi.py"
