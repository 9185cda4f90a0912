# Metrics of each batch, gathered into the Parquet tables; what was left out.


rule evaluate_localizer:
    input:
        preprocessed="results/{run}/preprocessed/{batch}.npz",
        localization="results/{run}/localization/{variant}/{batch}.npz",
    output:
        rows="results/{run}/metrics/parts/localizer/{variant}_{batch}.parquet",
        pooled="results/{run}/metrics/parts/localizer/{variant}_{batch}.npz",
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
        slices="results/{run}/slices/{batch}.npz",
        segmentation="results/{run}/segmentation/{batch}.npz",
    output:
        rows="results/{run}/metrics/parts/segmenter/{batch}.parquet",
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
        "results/{run}/metrics/parts/localizer/{variant}_{batch}.parquet",
        variant=VARIANTS,
        batch=batches("test"),
        allow_missing=True,
    ),
    "segmenter": expand(
        "results/{run}/metrics/parts/segmenter/{batch}.parquet",
        batch=batches("test"),
        allow_missing=True,
    ),
    "explanations": expand(
        "results/{run}/metrics/parts/explanations/{method}_{guidance}_{batch}.parquet",
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
        "results/{run}/metrics/{name}.parquet",
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
    *(f"localization/{variant}/{{batch}}.npz" for variant in VARIANTS),
    *(f"metrics/parts/localizer/{variant}_{{batch}}.npz" for variant in VARIANTS),
    "roi/{batch}.npz",
    "segmentation/{batch}.npz",
]


rule skipped:
    input:
        slices=expand(
            "results/{run}/slices/{batch}.npz",
            batch=(batches("train") if TRAINS else []) + batches("test"),
            allow_missing=True,
        ),
        preprocessed=expand(
            "results/{run}/preprocessed/{batch}.npz",
            batch=(batches("train") if TRAINS else []) + batches("test"),
            allow_missing=True,
        ),
        stages=expand(
            [f"results/{{run}}/{file}" for file in SKIPS],
            batch=batches("test"),
            allow_missing=True,
        ),
        maps=expand(
            "results/{run}/maps/.skips/{case}.json",
            case=sorted(BATCHES["test"]),
            allow_missing=True,
        ),
        segmenter="results/{run}/metrics/segmenter.parquet",
        explanations="results/{run}/metrics/explanations.parquet",
    output:
        skipped="results/{run}/skipped.tsv",
        warnings=report(
            "results/{run}/warnings.tsv",
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
