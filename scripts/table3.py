"""Table III: explanations without and with guidance; and the same for every variant."""

from typing import TYPE_CHECKING

from _job import job

if TYPE_CHECKING:
    from _job import snakemake

with job(snakemake):
    from xaiclip.report.tables.data import read_rows, write
    from xaiclip.report.tables.explanations import COLUMNS, table3
    from xaiclip.report.tables.left_out import read_skips
    from xaiclip.report.tables.variants import table3_variants

    cfg, out = snakemake.params.cfg, snakemake.output
    rows = read_rows(snakemake.input.explanations, COLUMNS)
    common = {
        "skips": read_skips(snakemake.input.skipped, cfg["cases"]),
        "seed": cfg["seed"],
        **cfg["statistics"],
    }
    write(table3(rows, **common), out.csv, out.md)
    write(table3_variants(rows, **common), out.variants_csv, out.variants_md)
