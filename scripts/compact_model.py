"""Train one of the compact models on the pool."""

from typing import TYPE_CHECKING

from _job import job

if TYPE_CHECKING:
    from _job import snakemake

with job(snakemake) as log:
    from pathlib import Path

    from xaiclip.device import set_threads

    set_threads(snakemake.threads)
    pool, folder = Path(snakemake.input.pool), Path(snakemake.output[0])
    cfg = snakemake.params.cfg
    if snakemake.wildcards.model == "clip":
        from compact.clip import ClipSettings, train_clip

        train_clip(pool, folder, ClipSettings(**cfg))
    else:
        from compact.sam import SamSettings, train_sam

        train_sam(pool, folder, SamSettings(**cfg))
