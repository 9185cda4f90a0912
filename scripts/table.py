"""Make a table, and those that are made beside it."""

from typing import TYPE_CHECKING

from _job import job

if TYPE_CHECKING:
    from _job import snakemake

with job(snakemake):
    from pathlib import Path

    from xaiclip.report.catalogue import load
    from xaiclip.report.tables.data import Study, write

    cfg, out = snakemake.params.cfg, snakemake.output
    files = {name: [Path(path) for path in paths] for name, paths in cfg["files"].items()}
    study = Study(files, **cfg["study"])
    for place, csv, md in zip(cfg["places"], out.csv, out.md, strict=True):
        write(load(place)(study), csv, md)
