"""Put the demo's trained localizer, and a slice of its phantoms, into resources/compact."""

from typing import TYPE_CHECKING

from _job import job

if TYPE_CHECKING:
    from _job import snakemake

with job(snakemake) as log:
    from pathlib import Path

    from compact.shipping import ship_example, ship_localizer, write_sums

    target = Path(snakemake.scriptdir).parent / "resources" / "compact"
    made = snakemake.input
    ship_localizer(Path(made.weights), Path(made.history), target)
    case = Path(made.phantoms) / "test_ct_000"
    ship_example(Path(f"{case}.nii.gz"), Path(f"{case}_labels.nii.gz"), target)
    log.info("%d files in %s", write_sums(target), target)
