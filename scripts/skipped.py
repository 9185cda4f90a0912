"""List what was left out of the study, and why; and what was used though it looks wrong."""

from _job import job

with job(snakemake) as log:
    import pandas as pd
    import pyarrow.compute as pc

    from xaiclip.errors import Skip
    from xaiclip.files import atomic, load_meta

    inputs = snakemake.input
    paths = (*inputs.slices, *inputs.roi, *inputs.segmentation)
    skips = [Skip(**skip) for path in paths for skip in load_meta(path)["skips"]]
    # a row without a slice stands for a case that the slices' own skips tell of
    rows = pd.read_parquet(
        inputs.explanations,
        columns=["case", "slice", "organ", "method", "guidance", "skipped"],
        filters=pc.field("skipped").is_valid() & pc.field("slice").is_valid(),
    )
    skips += [
        Skip(
            row.case,
            f"explain ({row.method}, {row.guidance})",
            row.skipped,
            int(row.slice),
            row.organ,
        )
        for row in rows.itertuples()
    ]
    columns = ["case", "slice", "organ", "stage", "reason"]
    table = pd.DataFrame([skip.to_dict() for skip in skips], columns=columns).drop_duplicates()
    table["slice"] = table["slice"].astype("Int64")
    with atomic(snakemake.output.skipped) as temporary:
        table.sort_values(columns, na_position="first").to_csv(temporary, sep="\t", index=False)
    log.info("%d things left out, %d whole cases", len(table), int(table["organ"].isna().sum()))
    warnings = [row for path in inputs.slices for row in load_meta(path)["warnings"]]
    doubts = pd.DataFrame(warnings, columns=["case", "stage", "reason"]).drop_duplicates()
    with atomic(snakemake.output.warnings) as temporary:
        doubts.sort_values(list(doubts)).to_csv(temporary, sep="\t", index=False)
    log.info("%d warnings", len(doubts))
