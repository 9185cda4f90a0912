"""Put the demo's trained localizer into resources/compact."""

from typing import TYPE_CHECKING

from _job import job

if TYPE_CHECKING:
    from _job import snakemake

with job(snakemake) as log:
    from pathlib import Path

    from compact.localizer import ship

    target = Path(snakemake.scriptdir).parent / "resources" / "compact"
    ship(Path(snakemake.input.weights), Path(snakemake.input.history), target)
    log.info("shipped in %s", target)
