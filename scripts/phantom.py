"""Write one phantom volume and its label map."""

from _job import job

with job(snakemake):
    from compact import phantom

    cfg = snakemake.params.cfg
    volume = phantom.generate(
        cfg["seed"], cfg["modality"], phantom.PhantomSettings(**cfg["settings"])
    )
    phantom.write(volume, snakemake.output.image, snakemake.output.label)
