# Tables, figures, provenance: what a paper takes over. All but the savings take seconds, once a study: not worth a cluster job.
TABLES = ["table2", "segmenter", "table3", "table3_variants"]


rule savings:
    input:
        expand("results/{run}/tables/savings.md", run=RUN),
    localrule: True


rule table_savings:
    input:
        scores=expand(
            "results/{run}/scores/{method}/{guidance}/{batch}.npz",
            method=METHODS,
            guidance=GUIDANCES,
            batch=batches("test"),
            allow_missing=True,
        ),
    output:
        csv="results/{run}/tables/savings.csv",
        md="results/{run}/tables/savings.md",
    log:
        "results/{run}/logs/tables/savings.log",
    conda:
        "../envs/torch.yaml"
    resources:
        mem_mb=3000,
        runtime=120,
    params:
        cfg={
            "shares": [0.4, 0.6],
            "stops": [0.8, 0.9],
            "maps": {name: settings_of(name)[1] for name in METHODS},
            "value": config["explain"]["values"][0],
        },
        code=stage_code("savings.py", *METHODS),
    message:
        "What shorter plans would have saved and lost"
    script:
        "../scripts/savings.py"


rule table2:
    input:
        localizer="results/{run}/metrics/localizer.parquet",
        pooled=expand(
            "results/{run}/metrics/parts/localizer/{variant}_{batch}.npz",
            variant=VARIANTS,
            batch=batches("test"),
            allow_missing=True,
        ),
        skipped="results/{run}/skipped.tsv",
    output:
        csv="results/{run}/tables/table2.csv",
        md=report(
            "results/{run}/tables/table2.md",
            caption="../docs/report/table2.rst",
            category="Tables",
        ),
    log:
        "results/{run}/logs/tables/table2.log",
    localrule: True
    conda:
        "../envs/report.yaml"
    resources:
        mem_mb=1000,
        runtime=30,
    params:
        cfg={
            "classes": config["classes"],
            "statistics": config["statistics"],
            "seed": seed_of("statistics"),
            "cases": sorted(BATCHES["test"]),
        },
        code=code("table2.py"),
    message:
        "Table II: the localizer"
    script:
        "../scripts/table2.py"


rule table_segmenter:
    input:
        segmenter="results/{run}/metrics/segmenter.parquet",
        skipped="results/{run}/skipped.tsv",
    output:
        csv="results/{run}/tables/segmenter.csv",
        md=report(
            "results/{run}/tables/segmenter.md",
            caption="../docs/report/segmenter.rst",
            category="Tables",
        ),
    log:
        "results/{run}/logs/tables/segmenter.log",
    localrule: True
    conda:
        "../envs/report.yaml"
    resources:
        mem_mb=1000,
        runtime=30,
    params:
        cfg={
            "statistics": config["statistics"],
            "seed": seed_of("statistics"),
            "cases": sorted(BATCHES["test"]),
        },
        code=code("table_segmenter.py"),
    message:
        "Table of the segmenter"
    script:
        "../scripts/table_segmenter.py"


rule table3:
    input:
        explanations="results/{run}/metrics/explanations.parquet",
        skipped="results/{run}/skipped.tsv",
    output:
        csv="results/{run}/tables/table3.csv",
        md=report(
            "results/{run}/tables/table3.md",
            caption="../docs/report/table3.rst",
            category="Tables",
        ),
        variants_csv="results/{run}/tables/table3_variants.csv",
        variants_md=report(
            "results/{run}/tables/table3_variants.md",
            caption="../docs/report/table3_variants.rst",
            category="Tables",
        ),
    log:
        "results/{run}/logs/tables/table3.log",
    localrule: True
    conda:
        "../envs/report.yaml"
    resources:
        mem_mb=2000,
        runtime=30,
    params:
        cfg={
            "statistics": config["statistics"],
            "seed": seed_of("statistics"),
            "cases": sorted(BATCHES["test"]),
        },
        code=code("table3.py"),
    message:
        "Table III: traditional against ROI-guided explanations"
    script:
        "../scripts/table3.py"


# What each figure is drawn from, below results/{run}/; {batch} is the batch of the figures' case.
FIGURE_SOURCES = {
    "figure02_preprocessing": ["slices/{batch}.npz", "preprocessed/{batch}.npz"],
    "figure03_lime_superpixels": [
        "slices/{batch}.npz",
        "scores/lime/full/{batch}.npz",
        "attributions/lime/full/{batch}.npz",
    ],
    "figure04_rise": [
        "slices/{batch}.npz",
        "segmentation/{batch}.npz",
        "attributions/rise/roi/{batch}.npz",
    ],
    "figure05_occlusion": [
        "slices/{batch}.npz",
        "segmentation/{batch}.npz",
        "attributions/occlusion/full/{batch}.npz",
    ],
    "figure06_selective_occlusion": [
        "slices/{batch}.npz",
        "roi/{batch}.npz",
        "scores/occlusion/full/{batch}.npz",
        "scores/occlusion/roi/{batch}.npz",
        "attributions/occlusion/full/{batch}.npz",
        "attributions/occlusion/roi/{batch}.npz",
    ],
    "figure07_occlusion_overview": [
        "slices/{batch}.npz",
        "localization/text/{batch}.npz",
        "roi/{batch}.npz",
        "segmentation/{batch}.npz",
        "scores/occlusion/roi/{batch}.npz",
        "attributions/occlusion/roi/{batch}.npz",
    ],
    "figure08_comparison": ["metrics/explanations.parquet"],
    "figure09_localization": ["slices/{batch}.npz", "localization/text/{batch}.npz"],
    "figure10_occlusion_maps": [
        "slices/{batch}.npz",
        "segmentation/{batch}.npz",
        "attributions/occlusion/full/{batch}.npz",
        "attributions/occlusion/roi/{batch}.npz",
    ],
    "figure11_lime_distributions": ["metrics/explanations.parquet"],
    "figure12_lime_stages": [
        "slices/{batch}.npz",
        "roi/{batch}.npz",
        "segmentation/{batch}.npz",
        "scores/lime/full/{batch}.npz",
        "scores/lime/roi/{batch}.npz",
        "attributions/lime/full/{batch}.npz",
        "attributions/lime/roi/{batch}.npz",
    ],
    "figure13_rise_stages": [
        "slices/{batch}.npz",
        "roi/{batch}.npz",
        "segmentation/{batch}.npz",
        "scores/rise/roi/{batch}.npz",
        "attributions/rise/full/{batch}.npz",
        "attributions/rise/roi/{batch}.npz",
    ],
    "training_curves": [f"localizer/{variant}/training.csv" for variant in VARIANTS],
}

FIGURE_CASE = config["figures"]["case"] or min(BATCHES["test"])


FIGURES = [
    name
    for name, sources in FIGURE_SOURCES.items()
    if all(configured(source) for source in sources)
    and not (name == "figure11_lime_distributions" and "lime" not in METHODS)
]

if FIGURE_CASE not in BATCHES["test"]:
    raise WorkflowError(
        f"config key 'figures.case': '{FIGURE_CASE}' is not a test case."
    )


for figure in FIGURES:

    rule:
        name:
            figure
        input:
            expand(
                [f"results/{{run}}/{source}" for source in FIGURE_SOURCES[figure]],
                batch=BATCHES["test"][FIGURE_CASE],
                allow_missing=True,
            ),
        output:
            report(
                f"results/{{run}}/figures/{figure}.png",
                caption=f"../docs/report/{figure}.rst",
                category="Figures",
                labels={"figure": figure},
            ),
        log:
            f"results/{{run}}/logs/figures/{figure}.log",
        localrule: True
        conda:
            "../envs/report.yaml"
        resources:
            mem_mb=2000,
            runtime=30,
        params:
            cfg={
                "figure": figure,
                "classes": config["classes"],
                "case": config["figures"]["case"],
                "organ": config["figures"]["organ"],
                "prompt": config["explain"]["prompt"],
                "dpi": config["figures"]["dpi"],
            },
            code=code("figure.py"),
        message:
            "Draw {output}"
        script:
            "../scripts/figure.py"


# What stands between the data and the tables.
STUDY_SCRIPTS = [
    "slices.py",
    "preprocess.py",
    "train_localizer.py",
    "localize.py",
    "roi.py",
    "segment.py",
    "cost.py",
    "score.py",
    "attribute.py",
    "evaluate_localizer.py",
    "evaluate_segmenter.py",
    "metrics.py",
    "skipped.py",
    "table2.py",
    "table_segmenter.py",
    "table3.py",
]


rule provenance:
    input:
        tables=expand(
            "results/{run}/tables/{name}.csv", name=TABLES, allow_missing=True
        ),
        cost="results/{run}/cost.json",
        data=expand(
            "results/{run}/slices/{batch}.json",
            batch=(batches("train") if TRAINS else []) + batches("test"),
            allow_missing=True,
        ),
        # functions: Snakemake's report shows what stands here as it is, and paths are private
        localizer=lambda w: trained_of(w.run),
        backbone=lambda w: FOREIGN["clip"],
        segmenter=lambda w: FOREIGN["sam"],
    output:
        "results/{run}/provenance.json",
        private="results/{run}/private/study.json",
    log:
        "results/{run}/logs/provenance.log",
    localrule: True
    conda:
        "../envs/torch.yaml"
    resources:
        mem_mb=2000,
        runtime=30,
    params:
        cfg=config,
        shipped={model: shipped(model) for model in ("clip", "sam")},
        factory=FACTORY,
        scripts={name: stage_code(name, *METHODS) for name in STUDY_SCRIPTS},
        code=code("provenance.py"),
    message:
        "Versions, device, weights, seeds and commit"
    script:
        "../scripts/provenance.py"
