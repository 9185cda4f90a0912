"""Put the demo's trained localizer, and a slice of its phantoms, into resources/compact."""

from typing import TYPE_CHECKING

from _job import job

if TYPE_CHECKING:
    from _job import snakemake

with job(snakemake) as log:
    from pathlib import Path

    from compact.shipping import ship_example, ship_localizer, write_sums

    target = Path(snakemake.scriptdir).parent / "resources" / "compact"
    made = {name: Path(path) for name, path in snakemake.input.items()}
    ship_localizer(made["weights"], made["history"], target)
    ship_example(made["image"], made["label"], target)
    log.info("%d files in %s", write_sums(target), target)
