# Results that the configuration no longer asks for: `snakemake stale` lists them, `snakemake prune` removes them.
from xaiclip.workflow.stale import stale_files

# a file of another name is the user's; logs stay
WRITTEN = [paths.below(path) for path in paths.DROPPED]

CONFIGURED = {
    "run": [RUN],
    "case": sorted(CASES),
    "batch": batches("train") + batches("test"),
    "variant": VARIANTS,
    "method": METHODS,
    "guidance": GUIDANCES,
    "name": TABLES,
    "organ": [file_stem(organ) for organ in ORGANS],
    "figure": FIGURES,
}


rule stale:
    log:
        f"results/{RUN}/logs/stale.log",
    localrule: True
    conda:
        "../envs/data.yaml"
    resources:
        mem_mb=1000,
        runtime=30,
    params:
        files=lambda w: stale_files(filled(paths.FOLDER, run=RUN), WRITTEN, CONFIGURED),
        prune=False,
    message:
        "Results of cases, methods and figures that the configuration no longer names"
    script:
        "../scripts/stale.py"


rule prune:
    log:
        f"results/{RUN}/logs/prune.log",
    localrule: True
    conda:
        "../envs/data.yaml"
    resources:
        mem_mb=1000,
        runtime=30,
    params:
        files=lambda w: stale_files(filled(paths.FOLDER, run=RUN), WRITTEN, CONFIGURED),
        prune=True,
    message:
        "Remove results of cases, methods and figures that the configuration no longer names"
    script:
        "../scripts/stale.py"
