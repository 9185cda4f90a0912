# Tables, figures, provenance: what a paper takes over. All but the savings take seconds, once a study: not worth a cluster job.
TABLES = ["table2", "segmenter", "table3", "table3_variants"]

# Tables that a method brings along, if it is switched on and set so: method, settings.
METHOD_TABLES = {
    name: method
    for name, (method, needed) in {
        "shapley_units": ("shapley", {"units": "organs"}),
    }.items()
    if method in METHODS and needed.items() <= config["methods"][method].items()
}
TABLES += METHOD_TABLES


rule savings:
    input:
        expand(filled(paths.TABLE, name="savings", kind="md"), run=RUN),
    localrule: True


rule table_savings:
    input:
        scores=expand(
            paths.SCORES,
            method=METHODS,
            guidance=GUIDANCES,
            batch=batches("test"),
            allow_missing=True,
        ),
    output:
        csv=filled(paths.TABLE, name="savings", kind="csv"),
        md=filled(paths.TABLE, name="savings", kind="md"),
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
        localizer=filled(paths.METRICS, name="localizer"),
        pooled=expand(
            paths.LOCALIZER_POOLED,
            variant=VARIANTS,
            batch=batches("test"),
            allow_missing=True,
        ),
        skipped=paths.SKIPPED,
    output:
        csv=filled(paths.TABLE, name="table2", kind="csv"),
        md=report(
            filled(paths.TABLE, name="table2", kind="md"),
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
        segmenter=filled(paths.METRICS, name="segmenter"),
        skipped=paths.SKIPPED,
    output:
        csv=filled(paths.TABLE, name="segmenter", kind="csv"),
        md=report(
            filled(paths.TABLE, name="segmenter", kind="md"),
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
        explanations=filled(paths.METRICS, name="explanations"),
        skipped=paths.SKIPPED,
    output:
        csv=filled(paths.TABLE, name="table3", kind="csv"),
        md=report(
            filled(paths.TABLE, name="table3", kind="md"),
            caption="../docs/report/table3.rst",
            category="Tables",
        ),
        variants_csv=filled(paths.TABLE, name="table3_variants", kind="csv"),
        variants_md=report(
            filled(paths.TABLE, name="table3_variants", kind="md"),
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


for table, method in METHOD_TABLES.items():

    rule:
        name:
            f"table_{table}"
        input:
            attributions=expand(
                filled(paths.ATTRIBUTIONS, method=method),
                guidance=GUIDANCES,
                batch=batches("test"),
                allow_missing=True,
            ),
            explanations=filled(paths.METRICS, name="explanations"),
            skipped=paths.SKIPPED,
        output:
            csv=filled(paths.TABLE, name=table, kind="csv"),
            md=report(
                filled(paths.TABLE, name=table, kind="md"),
                caption=f"../docs/report/{table}.rst",
                category="Tables",
            ),
        log:
            f"results/{{run}}/logs/tables/{table}.log",
        localrule: True
        conda:
            "../envs/report.yaml"
        resources:
            mem_mb=1000,
            runtime=30,
        params:
            cfg={
                "table": table,
                "settings": config["methods"][method],
                "classes": config["classes"],
                "statistics": config["statistics"],
                "seed": seed_of("statistics"),
                "cases": sorted(BATCHES["test"]),
            },
            code=code("table.py"),
        message:
            "Make {output.md}"
        script:
            "../scripts/table.py"


# What each figure is drawn from; {batch} is the batch of the figures' case.
FIGURE_SOURCES = {
    "figure02_preprocessing": [paths.SLICES, paths.PREPROCESSED],
    "figure03_lime_superpixels": [
        paths.SLICES,
        scores_of("lime", "full"),
        maps_of("lime", "full"),
    ],
    "figure04_rise": [
        paths.SLICES,
        paths.SEGMENTATION,
        maps_of("rise", "roi"),
    ],
    "figure05_occlusion": [
        paths.SLICES,
        paths.SEGMENTATION,
        maps_of("occlusion", "full"),
    ],
    "figure06_selective_occlusion": [
        paths.SLICES,
        paths.ROI,
        scores_of("occlusion", "full"),
        scores_of("occlusion", "roi"),
        maps_of("occlusion", "full"),
        maps_of("occlusion", "roi"),
    ],
    "figure07_occlusion_overview": [
        paths.SLICES,
        filled(paths.LOCALIZATION, variant="text"),
        paths.ROI,
        paths.SEGMENTATION,
        scores_of("occlusion", "roi"),
        maps_of("occlusion", "roi"),
    ],
    "figure08_comparison": [filled(paths.METRICS, name="explanations")],
    "figure09_localization": [paths.SLICES, filled(paths.LOCALIZATION, variant="text")],
    "figure10_occlusion_maps": [
        paths.SLICES,
        paths.SEGMENTATION,
        maps_of("occlusion", "full"),
        maps_of("occlusion", "roi"),
    ],
    "figure11_lime_distributions": [filled(paths.METRICS, name="explanations")],
    "figure12_lime_stages": [
        paths.SLICES,
        paths.ROI,
        paths.SEGMENTATION,
        scores_of("lime", "full"),
        scores_of("lime", "roi"),
        maps_of("lime", "full"),
        maps_of("lime", "roi"),
    ],
    "figure13_rise_stages": [
        paths.SLICES,
        paths.ROI,
        paths.SEGMENTATION,
        scores_of("rise", "roi"),
        maps_of("rise", "full"),
        maps_of("rise", "roi"),
    ],
    "shapley_matrix": [filled(paths.TABLE, name="shapley_units", kind="csv")],
    "training_curves": expand(paths.TRAINING, variant=VARIANTS, allow_missing=True),
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


# One job: each would start matplotlib anew, which takes longer than to draw. Nothing hangs on a figure.
rule figures:
    input:
        expand(
            sorted(
                {source for figure in FIGURES for source in FIGURE_SOURCES[figure]}
            ),
            batch=BATCHES["test"][FIGURE_CASE],
            allow_missing=True,
        ),
    output:
        [
            report(
                filled(paths.FIGURE, figure=figure),
                caption=f"../docs/report/{figure}.rst",
                category="Figures",
                labels={"figure": figure},
            )
            for figure in FIGURES
        ],
    log:
        "results/{run}/logs/figures.log",
    localrule: True
    conda:
        "../envs/report.yaml"
    resources:
        mem_mb=2000,
        runtime=30,
    params:
        cfg={
            "figures": {
                figure: expand(
                    FIGURE_SOURCES[figure],
                    run=RUN,
                    batch=BATCHES["test"][FIGURE_CASE],
                )
                for figure in FIGURES
            },
            "settings": {
                "classes": config["classes"],
                "case": config["figures"]["case"],
                "organ": config["figures"]["organ"],
                "prompt": config["explain"]["prompt"],
                "dpi": config["figures"]["dpi"],
            },
        },
        code=code("figures.py"),
    message:
        "Draw the figures"
    script:
        "../scripts/figures.py"


# What stands between the data and the tables.
STUDY_SCRIPTS = [
    *(["find_slices.py"] if FINDS else []),
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
    *(["table.py"] if METHOD_TABLES else []),
]


rule provenance:
    input:
        tables=expand(paths.TABLE, name=TABLES, kind="csv", allow_missing=True),
        cost=paths.COST,
        data=expand(
            paths.CHECKSUMS,
            batch=(batches("train") if TRAINS else []) + batches("test"),
            allow_missing=True,
        ),
        # functions: Snakemake's report shows what stands here as it is, and paths are private
        localizer=lambda w: trained_of(w.run),
        backbone=lambda w: FOREIGN["clip"],
        segmenter=lambda w: FOREIGN["sam"],
    output:
        paths.PROVENANCE,
        private=paths.OWN,
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
