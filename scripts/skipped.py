"""List what was left out of the study, and why."""

from _job import job

with job(snakemake) as log:
    import pandas as pd

    from xaiclip.data.slices import load_slices
    from xaiclip.errors import Skip
    from xaiclip.files import atomic, load_arrays
    from xaiclip.roi import load_rois

    skips = []
    for path in snakemake.input.slices:
        skips += load_slices(path)[1]
    for path in snakemake.input.roi:
        skips += load_rois(path)[1]
    for path in snakemake.input.segmentation:
        skips += [Skip(**skip) for skip in load_arrays(path)[1]["skips"]]
    rows = pd.read_parquet(snakemake.input.explanations)
    # a row without a slice stands for a case that the slices' own skips tell of
    rows = rows[rows["skipped"].notna() & rows["slice"].notna()]
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
    with atomic(snakemake.output[0]) as temporary:
        table.sort_values(columns, na_position="first").to_csv(temporary, sep="\t", index=False)
    log.info("%d things left out, %d whole cases", len(table), int(table["organ"].isna().sum()))
