"""Fetch a published file."""

from _job import job

with job(snakemake):
    from xaiclip.published.download import Remote, fetch

    fetch(Remote(**snakemake.params.cfg), snakemake.output[0])
