"""How well the segmenter does, with the reference's boxes and with the ROI's."""

from _job import job

with job(snakemake):
    from xaiclip.report.tables import (
        SEGMENTER_COLUMNS,
        read_rows,
        read_skips,
        segmenter_table,
        write,
    )

    cfg = snakemake.params.cfg
    table = segmenter_table(
        read_rows(snakemake.input.segmenter, SEGMENTER_COLUMNS),
        skips=read_skips(snakemake.input.skipped, cfg["cases"]),
        seed=cfg["seed"],
        **cfg["statistics"],
    )
    write(table, snakemake.output.csv, snakemake.output.md)
