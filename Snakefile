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
        expand(paths.METRICS, run=RUN, name=METRICS),
        expand(paths.TABLE, run=RUN, name=TABLES, kind="md"),
        expand(paths.FIGURE, run=RUN, figure=FIGURES),
        expand(
            [*MAPS, paths.VARIANTS],
            run=RUN,
            case=BATCHES["test"],
        ),
        expand([paths.SKIPPED, paths.WARNINGS], run=RUN),
        expand(paths.PROVENANCE, run=RUN),
