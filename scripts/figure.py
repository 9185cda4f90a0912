"""Draw one figure."""

from typing import TYPE_CHECKING

from _job import job

if TYPE_CHECKING:
    from _job import snakemake

with job(snakemake) as log:
    from pathlib import Path

    from xaiclip.report.figures import FIGURES
    from xaiclip.report.sources import Settings, sources_of
    from xaiclip.report.style import save

    cfg = dict(snakemake.params.cfg)
    output = Path(snakemake.output[0])
    draw = FIGURES[cfg.pop("figure")]
    settings = Settings(**cfg)
    # the study's folder holds figures/ and all that they are drawn from
    figure = draw(sources_of(snakemake.input, output.parents[1]), settings)
    save(figure, output, settings.dpi)
    log.info("%s", output)
