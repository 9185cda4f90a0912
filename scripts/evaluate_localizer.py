"""Dice and AUC-ROC of the localizer on each slice of a batch."""

from typing import TYPE_CHECKING

from _job import job

if TYPE_CHECKING:
    from _job import snakemake

with job(snakemake) as log:
    import numpy as np

    from xaiclip.errors import left_out, whole
    from xaiclip.localizer.probabilities import open_probabilities
    from xaiclip.metrics.localization import PooledAuc, localizer_scores
    from xaiclip.metrics.schema import LOCALIZER, write_table
    from xaiclip.preprocess import load_preprocessed

    cfg = snakemake.params.cfg
    modality = {case["name"]: case["modality"] for case in cfg["cases"]}
    pooled = PooledAuc(cfg["classes"])
    with open_probabilities(snakemake.input.localization) as maps:
        rows, skips = [], whole(maps.skips)
        for piece in load_preprocessed(snakemake.input.preprocessed):
            if piece.key not in maps:
                continue
            common = {
                "case": piece.case,
                "slice": piece.index,
                "variant": cfg["variant"],
                "modality": modality[piece.case],
            }
            if piece.label is None:
                rows += [
                    {**common, "class": name, "skipped": "the case has no reference label"}
                    for name in cfg["classes"]
                ]
                continue
            with left_out(skips, piece.case, "evaluate_localizer", piece.index):
                prob = maps[piece.key].astype(np.float32)
                scores = localizer_scores(prob, piece.label, cfg["classes"])
                pooled.update(prob, piece.label)
                rows += [{**common, **row} for row in scores]
    for row in rows:
        if "skipped" not in row and not row["n_pixels"]:
            row["skipped"] = "the reference lacks this class in the slice"
    rows += [
        {
            "case": skip.case,
            "slice": skip.slice,
            "variant": cfg["variant"],
            "modality": modality[skip.case],
            "class": name,
            "skipped": skip.reason,
        }
        for skip in skips
        for name in cfg["classes"]
    ]
    log.info("%d rows", len(rows))
    write_table(snakemake.output.rows, rows, LOCALIZER)
    pooled.save(snakemake.output.pooled, skips)
