"""A table that a method brings along."""

from typing import TYPE_CHECKING

from _job import job

if TYPE_CHECKING:
    from _job import snakemake

with job(snakemake):
    from pathlib import Path

    from xaiclip.report.tables.data import read_rows, write
    from xaiclip.report.tables.left_out import read_skips
    from xaiclip.report.tables.shapley_units import COLUMNS, shapley_units

    # from maps, the rows of explanations and the method's settings to a table
    TABLES = {"shapley_units": (shapley_units, COLUMNS)}

    cfg = snakemake.params.cfg
    make, columns = TABLES[cfg["table"]]
    table = make(
        [Path(path) for path in snakemake.input.attributions],
        read_rows(snakemake.input.explanations, columns),
        classes=cfg["classes"],
        settings=cfg["settings"],
        skips=read_skips(snakemake.input.skipped, cfg["cases"]),
        seed=cfg["seed"],
        **cfg["statistics"],
    )
    write(table, snakemake.output.csv, snakemake.output.md)
