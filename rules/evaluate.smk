# Metrics of each batch, gathered into the Parquet tables; what was left out.


rule evaluate_localizer:
    input:
        preprocessed=paths.PREPROCESSED,
        localization=paths.LOCALIZATION,
    output:
        rows=paths.LOCALIZER_ROWS,
        pooled=paths.LOCALIZER_POOLED,
    log:
        "results/{run}/logs/evaluate_localizer/{variant}_{batch}.log",
    conda:
        "../envs/data.yaml"
    resources:
        mem_mb=1000,
        runtime=30,
    params:
        cfg=lambda w: {
            "variant": w.variant,
            "classes": config["classes"],
            "cases": case_facts(w),
        },
        code=code("evaluate_localizer.py"),
    message:
        "Dice and AUC of the localizer ({wildcards.variant}), batch {wildcards.batch}"
    script:
        "../scripts/evaluate_localizer.py"


rule evaluate_segmenter:
    input:
        slices=paths.SLICES,
        segmentation=paths.SEGMENTATION,
    output:
        rows=paths.SEGMENTER_ROWS,
    log:
        "results/{run}/logs/evaluate_segmenter/{batch}.log",
    conda:
        "../envs/data.yaml"
    resources:
        mem_mb=1000,
        runtime=30,
    params:
        cfg=lambda w: {"organs": ORGANS, "cases": case_facts(w)},
        code=code("evaluate_segmenter.py"),
    message:
        "Dice and IoU of the segmenter, batch {wildcards.batch}"
    script:
        "../scripts/evaluate_segmenter.py"


PARTS = {
    "localizer": expand(
        paths.LOCALIZER_ROWS,
        variant=VARIANTS,
        batch=batches("test"),
        allow_missing=True,
    ),
    "segmenter": expand(
        paths.SEGMENTER_ROWS,
        batch=batches("test"),
        allow_missing=True,
    ),
    "explanations": expand(
        paths.EXPLANATIONS_ROWS,
        method=METHODS,
        guidance=GUIDANCES,
        batch=batches("test"),
        allow_missing=True,
    ),
}


rule metrics:
    input:
        lambda w: PARTS[w.name],
    output:
        paths.METRICS,
    log:
        "results/{run}/logs/metrics/{name}.log",
    wildcard_constraints:
        name="|".join(METRICS),
    localrule: True
    conda:
        "../envs/data.yaml"
    resources:
        mem_mb=2000,
        runtime=30,
    params:
        cfg=lambda w: {"name": w.name},
        code=code("metrics.py"),
    message:
        "Gather {output}"
    script:
        "../scripts/metrics.py"


# What each stage after the slices left out.
SKIPS = [
    *expand(paths.LOCALIZATION, variant=VARIANTS, allow_missing=True),
    *expand(paths.LOCALIZER_POOLED, variant=VARIANTS, allow_missing=True),
    paths.ROI,
    paths.SEGMENTATION,
]


rule skipped:
    input:
        slices=expand(
            paths.SLICES,
            batch=(batches("train") if TRAINS else []) + batches("test"),
            allow_missing=True,
        ),
        preprocessed=expand(
            paths.PREPROCESSED,
            batch=(batches("train") if TRAINS else []) + batches("test"),
            allow_missing=True,
        ),
        stages=expand(
            SKIPS,
            batch=batches("test"),
            allow_missing=True,
        ),
        maps=expand(
            paths.MAP_SKIPS,
            case=sorted(BATCHES["test"]),
            allow_missing=True,
        ),
        segmenter=filled(paths.METRICS, name="segmenter"),
        explanations=filled(paths.METRICS, name="explanations"),
    output:
        skipped=paths.SKIPPED,
        warnings=report(
            paths.WARNINGS,
            caption="../docs/report/warnings.rst",
            category="Tables",
        ),
    log:
        "results/{run}/logs/skipped.log",
    localrule: True
    conda:
        "../envs/data.yaml"
    resources:
        mem_mb=1000,
        runtime=30,
    params:
        code=code("skipped.py"),
    message:
        "What was left out, and why; what looks wrong"
    script:
        "../scripts/skipped.py"
