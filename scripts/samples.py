"""Write the sample sheet of a prepared data set, without the cases that could not be made."""

from typing import TYPE_CHECKING

from _job import job

if TYPE_CHECKING:
    from _job import snakemake

with job(snakemake) as log:
    from pathlib import Path

    from xaiclip.data.sheet import Case, write_sheet

    rows = snakemake.params.cfg["cases"]
    cases = []
    for row in rows:
        problem = Path(row["problem"]).read_text(encoding="utf-8").strip()
        if problem:
            log.warning("%s is left out: %s", row["name"], problem)
            continue
        label = Path(row["label"]) if row["label"] else None
        cases.append(Case(row["name"], Path(row["image"]), label, row["modality"], row["split"]))
    write_sheet(snakemake.output[0], cases)
    log.info("%d of %d cases", len(cases), len(rows))
