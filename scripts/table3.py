"""Table III: explanations without and with guidance; and the same for every variant."""

from _job import job

with job(snakemake):
    import pandas as pd

    from xaiclip.report.tables import (
        EXPLANATION_COLUMNS,
        read_skips,
        table3,
        table3_variants,
        write,
    )

    cfg, out = snakemake.params.cfg, snakemake.output
    rows = pd.read_parquet(snakemake.input.explanations, columns=EXPLANATION_COLUMNS)
    common = {
        "skips": read_skips(snakemake.input.skipped, cfg["cases"]),
        "seed": cfg["seed"],
        **cfg["statistics"],
    }
    write(table3(rows, **common), out.csv, out.md)
    write(table3_variants(rows, **common), out.variants_csv, out.variants_md)
