"""Make the phantoms that the compact models learn from."""

from _job import job

with job(snakemake):
    from pathlib import Path

    from xaiclip.data.pool import build_pool

    cfg = snakemake.params.cfg
    build_pool(
        Path(snakemake.output[0]),
        range(cfg["seed"], cfg["seed"] + cfg["volumes"]),
        mr_fraction=cfg["mr_fraction"],
        processes=snakemake.threads,
    )
