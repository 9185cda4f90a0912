"""Take the wanted axial slices of a batch's volumes."""

from pathlib import Path
from typing import TYPE_CHECKING

from _job import job, redactor

if TYPE_CHECKING:
    from _job import snakemake

with job(snakemake) as log:
    import json
    from dataclasses import replace
    from functools import partial
    from typing import Any

    from xaiclip.data.footprint import checksum
    from xaiclip.data.record import save_slices
    from xaiclip.data.sheet import Case
    from xaiclip.data.slices import STAGE, take_slices
    from xaiclip.errors import CaseError
    from xaiclip.files import write_json
    from xaiclip.privacy import case_files

    cfg = snakemake.params.cfg
    found: Any = {}
    if snakemake.input.get("found"):
        found = json.loads(Path(snakemake.input.found).read_text(encoding="utf-8"))

    def chosen(name, planes):
        """The slices that the localizer chose of a scan."""
        if reason := found["reasons"].get(name):
            raise CaseError(reason)
        return found["slices"][name]

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
        taken = take_slices(case, {**settings, **cfg["slices"]}, partial(chosen, case.name))
        slices += taken.slices
        skips += taken.skips
        warnings += taken.warnings
        for skip in taken.skips:
            if skip.slice is not None or skip.stage != STAGE:  # else it was logged as it was lost
                log.warning("%s: %s", skip.case, skip.reason)
    redact = redactor(snakemake)
    skips = [replace(skip, reason=redact(skip.reason)) for skip in skips]
    warnings = [replace(one, reason=redact(one.reason)) for one in warnings]
    for warning in warnings:
        log.warning("%s: %s", warning.case, warning.reason)
    log.info("%d slices of %d cases", len(slices), len(cfg["cases"]))
    save_slices(snakemake.output.slices, slices, skips, warnings)
    files = case_files(cfg["cases"])
    write_json(
        snakemake.output.checksums,
        {
            case: {role: checksum(file) for role, file in roles.items() if file}
            for case, roles in files.items()
        },
    )
    write_json(
        snakemake.output.files,
        {
            case: {role: str(Path(file).absolute()) for role, file in roles.items() if file}
            for case, roles in files.items()
        },
        private=True,
    )
