"""Table II: how well the localizer finds each class, with and without the text."""

from typing import TYPE_CHECKING

from _job import job

if TYPE_CHECKING:
    from _job import snakemake

with job(snakemake):
    from xaiclip.metrics.localization import PooledAuc
    from xaiclip.report.tables.data import read_rows, write
    from xaiclip.report.tables.left_out import read_skips
    from xaiclip.report.tables.localizer import COLUMNS, table2

    cfg = snakemake.params.cfg
    pooled: dict[str, PooledAuc] = {}
    for path in snakemake.input.pooled:
        variant = "no_text" if "/no_text_" in path else "text"
        one = PooledAuc.load(path)
        pooled[variant] = pooled[variant] + one if variant in pooled else one
    table = table2(
        read_rows(snakemake.input.localizer, COLUMNS),
        pooled={variant: counts.auc() for variant, counts in pooled.items()},
        skips=read_skips(snakemake.input.skipped, cfg["cases"]),
        seed=cfg["seed"],
        **cfg["statistics"],
    )
    write(table, snakemake.output.csv, snakemake.output.md)
