"""Table III: explanations without and with guidance; and the same for every variant."""

from _job import job

with job(snakemake):
    from xaiclip.report.tables import (
        EXPLANATION_COLUMNS,
        read_rows,
        read_skips,
        table3,
        table3_variants,
        write,
    )

    cfg, out = snakemake.params.cfg, snakemake.output
    rows = read_rows(snakemake.input.explanations, EXPLANATION_COLUMNS)
    common = {
        "skips": read_skips(snakemake.input.skipped, cfg["cases"]),
        "seed": cfg["seed"],
        **cfg["statistics"],
    }
    write(table3(rows, **common), out.csv, out.md)
    write(table3_variants(rows, **common), out.variants_csv, out.variants_md)
