"""Put the trained compact models, their curves and a slice into resources/compact."""

from typing import TYPE_CHECKING

from _job import job

if TYPE_CHECKING:
    from _job import snakemake

with job(snakemake) as log:
    from pathlib import Path

    from compact.shipping import draw_curves, ship, ship_example, write_sums

    target = Path(snakemake.scriptdir).parent / "resources" / "compact"
    made = snakemake.input
    for folder in (made.clip, made.sam, made.localizer):
        ship(Path(folder), target)
    draw_curves(target)
    ship_example(target)
    log.info("%d files in %s", write_sums(target), target)
