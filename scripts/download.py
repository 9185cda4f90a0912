"""Fetch a published file."""

from typing import TYPE_CHECKING

from _job import job

if TYPE_CHECKING:
    from _job import snakemake

with job(snakemake):
    from xaiclip.published.download import Remote, fetch

    fetch(Remote(**snakemake.params.cfg), snakemake.output[0])
