# Tables, figures, provenance: what a paper takes over. All but the savings take seconds, once a study: not worth a cluster job.
# Which there are, and what each is made from, their modules state: xaiclip.report.catalogue.
TABLES = {name: one for name, one in catalogue.tables().items() if is_on(one)}
FIGURES = {
    name: one
    for name, one in catalogue.figures().items()
    if is_on(one) and all(configured(source) for source in one.reads)
}
FIGURE_CASE = config["figures"]["case"] or min(BATCHES["test"])

if FIGURE_CASE not in BATCHES["test"]:
    raise WorkflowError(
        f"config key 'figures.case': '{FIGURE_CASE}' is not a test case."
    )


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


for table in [one for one in TABLES.values() if not one.beside]:

    rule:
        name:
            table.rule
        input:
            [
                file
                for source in table.reads
                for file in read_by(source, batches("test"))
            ],
        output:
            csv=[
                filled(paths.TABLE, name=one.name, kind="csv")
                for one in made_with(table)
            ],
            md=[
                report(
                    filled(paths.TABLE, name=one.name, kind="md"),
                    caption=caption_file(one),
                    category="Tables",
                )
                for one in made_with(table)
            ],
        log:
            f"results/{{run}}/logs/tables/{table.name}.log",
        localrule: True
        conda:
            "../envs/report.yaml"
        resources:
            mem_mb=2000,
            runtime=30,
        params:
            cfg={
                "places": [one.place for one in made_with(table)],
                "files": {
                    source: expand(read_by(source, batches("test")), run=RUN)
                    for source in table.reads
                },
                "study": {
                    "cases": sorted(BATCHES["test"]),
                    "classes": config["classes"],
                    "methods": {
                        name: config["methods"][name] for name in table.methods
                    },
                    "seed": seed_of("statistics"),
                    "statistics": config["statistics"],
                },
            },
            code=code("table.py", *(one.place for one in made_with(table))),
        message:
            "Make {output.md}"
        script:
            "../scripts/table.py"


# One job: each would start matplotlib anew, which takes longer than to draw. Nothing hangs on a figure.
rule figures:
    input:
        sorted(
            {
                file
                for one in FIGURES.values()
                for source in one.reads
                for file in read_by(source, [BATCHES["test"][FIGURE_CASE]])
            }
        ),
    output:
        [
            report(
                filled(paths.FIGURE, figure=name),
                caption=caption_file(one),
                category="Figures",
                labels={"figure": name},
            )
            for name, one in FIGURES.items()
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
                name: [
                    file
                    for source in one.reads
                    for file in expand(
                        read_by(source, [BATCHES["test"][FIGURE_CASE]]), run=RUN
                    )
                ]
                for name, one in FIGURES.items()
            },
            "settings": {
                "classes": config["classes"],
                "case": config["figures"]["case"],
                "organ": config["figures"]["organ"],
                "prompt": config["explain"]["prompt"],
                "dpi": config["figures"]["dpi"],
            },
        },
        code=code("figures.py", *(one.place for one in FIGURES.values())),
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
    "table.py",
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
        localizer=lambda w: [] if shipped("localizer") else trained_of(w.run),
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
        shipped={model: shipped(model) for model in ("clip", "sam", "localizer")},
        factory=FACTORY,
        scripts={name: stage_code(name, *METHODS) for name in STUDY_SCRIPTS},
        code=code("provenance.py"),
    message:
        "Versions, device, weights, seeds and commit"
    script:
        "../scripts/provenance.py"
