"""Draw the figures."""

from typing import TYPE_CHECKING

from _job import job

if TYPE_CHECKING:
    from _job import snakemake

with job(snakemake) as log:
    from pathlib import Path

    from xaiclip.report.figures import FIGURES
    from xaiclip.report.sources import Settings, sources_of
    from xaiclip.report.style import save

    cfg = snakemake.params.cfg
    settings = Settings(**cfg["settings"])
    outputs = {Path(path).stem: Path(path) for path in snakemake.output}
    for name, files in cfg["figures"].items():
        # the study's folder holds figures/ and all that they are drawn from
        figure = FIGURES[name](sources_of(files, outputs[name].parents[1]), settings)
        save(figure, outputs[name], settings.dpi)
        log.info("%s", outputs[name])
