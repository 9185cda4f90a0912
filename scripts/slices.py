"""Take the wanted axial slices of a batch's volumes."""

from pathlib import Path

from _job import job

with job(snakemake) as log:
    from xaiclip.data.sheet import Case
    from xaiclip.data.slices import STAGE, save_slices, take_slices
    from xaiclip.files import tree_sha256, write_json

    cfg = snakemake.params.cfg
    slices, skips, warnings = [], [], []
    for row in cfg["cases"]:
        label = Path(row["label"]) if row["label"] else None
        problem = Path(row["problem"]) if row["problem"] else None
        case = Case(
            row["name"], Path(row["image"]), label, row["modality"], row["split"], None, problem
        )
        settings = {
            key: cfg[key]
            for key in (
                *("classes", "labels", "window", "percentiles"),
                *("orientation", "implausible"),
            )
        }
        taken = take_slices(case, {**settings, **cfg["slices"]})
        slices += taken.slices
        skips += taken.skips
        warnings += taken.warnings
    for skip in skips:
        if skip.slice is not None or skip.stage != STAGE:  # a whole case was logged as it was lost
            log.warning("%s: %s", skip.case, skip.reason)
    for warning in warnings:
        log.warning("%s: %s", warning.case, warning.reason)
    log.info("%d slices of %d cases", len(slices), len(cfg["cases"]))
    save_slices(snakemake.output.slices, slices, skips, warnings)
    files = [row[key] for row in cfg["cases"] for key in ("image", "label") if row[key]]
    write_json(snakemake.output.checksums, {file: tree_sha256(file) for file in files})
