"""Gather the metrics of all batches into one table."""

from typing import TYPE_CHECKING

from _job import job

if TYPE_CHECKING:
    from _job import snakemake

with job(snakemake):
    from xaiclip.metrics import schema

    kind = {
        "localizer": schema.LOCALIZER,
        "segmenter": schema.SEGMENTER,
        "explanations": schema.EXPLANATIONS,
    }[snakemake.params.cfg["name"]]
    schema.concat_tables(snakemake.input, snakemake.output[0], kind)
