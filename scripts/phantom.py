"""Write one phantom volume and its label map."""

from typing import TYPE_CHECKING

from _job import job

if TYPE_CHECKING:
    from _job import snakemake

with job(snakemake):
    from compact import phantom

    cfg = snakemake.params.cfg
    volume = phantom.generate(
        cfg["seed"], cfg["modality"], phantom.PhantomSettings(**cfg["settings"])
    )
    phantom.write(volume, snakemake.output.image, snakemake.output.label)
