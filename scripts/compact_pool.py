"""Draw the phantoms that the compact models learn from."""

from _job import job

if __name__ == "__main__":  # the processes that draw them import this file, too
    with job(snakemake):
        from compact.pool import build_pool

        build_pool(snakemake.output[0], **snakemake.params.cfg, workers=snakemake.threads)
