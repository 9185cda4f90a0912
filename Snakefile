# XAI-CLIP: which results exist. How each one comes to be stands in rules/, in the order of the data.
from snakemake.utils import min_version

min_version("9.0")


configfile: "config/config.yaml"


report: "docs/report/workflow.rst"


include: "rules/project.smk"
include: "rules/common.smk"
include: "rules/inputs.smk"
include: "rules/download.smk"
include: "rules/data.smk"
include: "rules/compact.smk"
include: "rules/localizer.smk"
include: "rules/segmenter.smk"
include: "rules/explain.smk"
include: "rules/evaluate.smk"
include: "rules/report.smk"
include: "rules/stale.smk"


rule all:
    default_target: True
    input:
        expand("results/{run}/metrics/{name}.parquet", run=RUN, name=METRICS),
        expand("results/{run}/tables/{name}.md", run=RUN, name=TABLES),
        expand("results/{run}/figures/{name}.png", run=RUN, name=FIGURES),
        expand(
            "results/{run}/maps/{case}/{name}",
            run=RUN,
            case=BATCHES["test"],
            name=[*MAPS, "variants"],
        ),
        expand("results/{run}/{name}.tsv", run=RUN, name=["skipped", "warnings"]),
        expand("results/{run}/provenance.json", run=RUN),
