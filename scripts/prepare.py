"""Turn one published case into NIfTI, or say why that cannot be done."""

from typing import TYPE_CHECKING

from _job import job

if TYPE_CHECKING:
    from _job import snakemake

with job(snakemake) as log:
    import importlib
    from pathlib import Path

    from xaiclip.errors import Skip, left_out
    from xaiclip.files import write_text

    cfg = snakemake.params.cfg
    adapter = importlib.import_module(f"xaiclip.data.{cfg['dataset']}")
    image = Path(snakemake.output.image)
    label = Path(snakemake.output.label) if cfg["labelled"] else None
    skips: list[Skip] = []
    with left_out(skips, cfg["case"], "prepare"):
        adapter.prepare(cfg["case"], Path(cfg["source"]), image, label)
    if skips:
        for volume in (image, label):  # never read: the problem is
            if volume is not None:
                volume.write_bytes(b"")
    write_text(snakemake.output.problem, skips[0].reason if skips else "")
