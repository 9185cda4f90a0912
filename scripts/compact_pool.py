"""Draw the phantoms that the compact models learn from."""

from typing import TYPE_CHECKING

from _job import job

if TYPE_CHECKING:
    from _job import snakemake

if __name__ == "__main__":  # the processes that draw them import this file, too
    with job(snakemake):
        from compact.pool import build_pool

        build_pool(snakemake.output[0], **snakemake.params.cfg, workers=snakemake.threads)
