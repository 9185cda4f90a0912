"""List what was left out of the study, and why; and what was used though it looks wrong."""

from typing import TYPE_CHECKING

from _job import job

if TYPE_CHECKING:
    from _job import snakemake

with job(snakemake) as log:
    import json
    from pathlib import Path
    from typing import Any

    import pandas as pd
    import pyarrow.compute as pc

    from xaiclip.errors import UNEXPECTED, Skip
    from xaiclip.files import atomic, load_meta, load_skips

    inputs = snakemake.input
    stages = (*inputs.slices, *inputs.preprocessed, *inputs.stages)
    skips = [skip for path in stages for skip in load_skips(path)]
    for path in inputs.maps:
        skips += [Skip(**skip) for skip in json.loads(Path(path).read_text(encoding="utf-8"))]
    # a row without a slice stands for a case that the slices' own skips tell of
    rows: Any = pd.read_parquet(  # the cells of a frame have no types
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
    # of the segmenter's rows, what the stages before it do not tell of
    told = {(skip.case, skip.slice) for skip in skips if skip.organ is None}
    rows = pd.read_parquet(
        inputs.segmenter,
        columns=["case", "slice", "organ", "skipped"],
        filters=pc.starts_with(pc.field("skipped"), UNEXPECTED) & pc.field("slice").is_valid(),
    )
    skips += [
        Skip(row.case, "evaluate_segmenter", row.skipped, int(row.slice), row.organ)
        for row in rows.itertuples()
        if (row.case, int(row.slice)) not in told
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
        doubts.sort_values(list(doubts.columns)).to_csv(temporary, sep="\t", index=False)
    log.info("%d warnings", len(doubts))
