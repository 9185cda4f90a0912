"""Write a batch's phantoms: volumes and their label maps."""

from typing import TYPE_CHECKING

from _job import job

if TYPE_CHECKING:
    from _job import snakemake

with job(snakemake) as log:
    from pathlib import Path

    from compact import phantom

    cfg = snakemake.params.cfg
    folder, settings = Path(snakemake.output[0]), phantom.PhantomSettings(**cfg["settings"])
    for name, case in cfg["cases"].items():
        volume = phantom.generate(case["seed"], case["modality"], settings)
        phantom.write(volume, folder / f"{name}.nii.gz", folder / f"{name}_labels.nii.gz")
    log.info("%d phantoms", len(cfg["cases"]))
