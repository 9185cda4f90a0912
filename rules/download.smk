# What is missing here and published elsewhere: fetched, or asked for. A file that is there, put by
# hand or fetched before, is only an input, so that no rerun removes it.
MISSING = {
    remote.name: remote
    for remote in WANTED
    if not Path(DOWNLOADS, remote.name).is_file()
}


if MISSING:

    rule download:
        output:
            f"{DOWNLOADS}/{{name}}",
        log:
            f"{DOWNLOADS}/logs/{{name}}.log",
        wildcard_constraints:
            name="|".join(re.escape(name) for name in MISSING),
        priority: 10
        localrule: True
        conda:
            "../envs/data.yaml"
        resources:
            mem_mb=500,
            runtime=720,
        params:
            cfg=lambda w: asdict(MISSING[w.name]),
            source=lambda w: MISSING[w.name].source,
            volume=lambda w: MISSING[w.name].volume,
        message:
            "Fetch {params.source} ({params.volume}) to {output}"
        script:
            "../scripts/download.py"


for number, (path, words) in enumerate(BY_HAND.items()):

    rule:
        name:
            f"by_hand_{number}"
        output:
            path,
        log:
            f"results/{RUN}/logs/by_hand_{number}.log",
        priority: 20
        localrule: True
        conda:
            "../envs/data.yaml"
        resources:
            mem_mb=100,
            runtime=1,
        params:
            cfg={"words": words},
        message:
            "{params.cfg[words]}"
        script:
            "../scripts/by_hand.py"


if SOURCE in DATASETS:

    rule prepare:
        input:
            lambda w: sources_of(w.case),
        output:
            **PREPARED,
        log:
            "results/{run}/logs/prepare/{case}.log",
        wildcard_constraints:
            case=DATASETS[SOURCE].pattern,
        conda:
            "../envs/data.yaml"
        resources:
            mem_mb=4000,
            runtime=30,
        params:
            cfg=lambda w: {
                "dataset": SOURCE,
                "case": w.case,
                "source": source_path(),
                "labelled": DATASETS[SOURCE].labelled,
            },
            code=code("prepare.py", f"xaiclip.data.{SOURCE}"),
        message:
            "Prepare {wildcards.case} of {params.cfg[dataset]}"
        script:
            "../scripts/prepare.py"

    rule samples:
        input:
            [file for case in CASES.values() for file in files_of(case)],
        output:
            paths.SAMPLES,
        log:
            "results/{run}/logs/samples.log",
        localrule: True
        conda:
            "../envs/data.yaml"
        resources:
            mem_mb=500,
            runtime=10,
        params:
            cfg={"cases": [row_of(case) for case in CASES.values()]},
            code=code("samples.py"),
        message:
            "The prepared cases of the data set as a sample sheet"
        script:
            "../scripts/samples.py"
