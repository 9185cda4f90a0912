"""How well the segmenter does, with the reference's boxes and with the ROI's."""

from typing import TYPE_CHECKING

from _job import job

if TYPE_CHECKING:
    from _job import snakemake

with job(snakemake):
    from xaiclip.report.tables.data import read_rows, write
    from xaiclip.report.tables.left_out import read_skips
    from xaiclip.report.tables.segmenter import COLUMNS, segmenter_table

    cfg = snakemake.params.cfg
    table = segmenter_table(
        read_rows(snakemake.input.segmenter, COLUMNS),
        skips=read_skips(snakemake.input.skipped, cfg["cases"]),
        seed=cfg["seed"],
        **cfg["statistics"],
    )
    write(table, snakemake.output.csv, snakemake.output.md)
