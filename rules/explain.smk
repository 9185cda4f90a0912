# perturb → score (the models run) → aggregate (they do not) → maps in the source geometry.


rule score:
    input:
        slices=paths.SLICES,
        preprocessed=paths.PREPROCESSED,
        roi=paths.ROI,
        foreign=lambda w: FOREIGN["sam"],
    output:
        scores=paths.SCORES,
        table=paths.SCORES_TABLE,
    log:
        "results/{run}/logs/score/{method}_{guidance}_{batch}.log",
    benchmark:
        "results/{run}/benchmarks/score/{method}_{guidance}_{batch}.tsv"
    # what follows is done meanwhile, or side by side in the end
    priority: 10
    conda:
        "../envs/torch.yaml"
    threads: model_threads
    resources:
        gpu=one_gpu,
        mem_mb=lambda wildcards, attempt: 6000 * attempt,
        runtime=lambda wildcards, attempt: 240 * attempt,
    params:
        cfg=lambda w: on_device(
            "sam",
            **plan_settings(w),
            organs=ORGANS,
            segmenter=config["segmenter"],
            **{
                key: config["explain"][key] for key in ("prompt", "fill", "batch_size")
            },
            seed=seed_of("explain", w.method),
        ),
        code=lambda w: stage_code("score.py", w.method),
    message:
        "Score {wildcards.method} ({wildcards.guidance}) on batch {wildcards.batch}"
    script:
        "../scripts/score.py"


rule attribute:
    input:
        slices=paths.SLICES,
        roi=paths.ROI,
        localization=filled(paths.LOCALIZATION, variant="text"),
        segmentation=paths.SEGMENTATION,
        scores=paths.SCORES,
        cost=paths.COST,
    output:
        maps=paths.ATTRIBUTIONS,
        rows=paths.EXPLANATIONS_ROWS,
    log:
        "results/{run}/logs/attribute/{method}_{guidance}_{batch}.log",
    conda:
        "../envs/torch.yaml"
    resources:
        mem_mb=lambda wildcards, attempt: 3000 * attempt,
        runtime=lambda wildcards, attempt: 60 * attempt,
    params:
        cfg=lambda w: {
            "method": w.method,
            "guidance": w.guidance,
            "settings": settings_of(w.method)[1],
            "values": config["explain"]["values"],
            "organs": ORGANS,
            "prompt": config["explain"]["prompt"],
            "cases": case_facts(w),
            "seed": seed_of("explain", w.method),
        },
        code=lambda w: stage_code("attribute.py", w.method),
    message:
        "Maps and metrics of {wildcards.method} ({wildcards.guidance}), batch {wildcards.batch}"
    script:
        "../scripts/attribute.py"


rule maps:
    input:
        slices=lambda w: of_case(w, paths.SLICES),
        attributions=lambda w: expand(
            of_case(w, paths.ATTRIBUTIONS),
            method=METHODS,
            guidance=GUIDANCES,
        ),
    output:
        maps=MAPS,
        variants=directory(paths.VARIANTS),
        skips=paths.MAP_SKIPS,
    log:
        "results/{run}/logs/maps/{case}.log",
    conda:
        "../envs/data.yaml"
    resources:
        mem_mb=2000,
        runtime=60,
    params:
        cfg=lambda w: {"case": w.case, "organs": ORGANS},
        code=code("maps.py"),
    message:
        "NIfTI maps of case {wildcards.case}"
    script:
        "../scripts/maps.py"
