"""Turn one published case into NIfTI, or say why that cannot be done."""

from _job import job

with job(snakemake) as log:
    import importlib
    from pathlib import Path

    from xaiclip.errors import CaseError
    from xaiclip.files import write_text

    cfg = snakemake.params.cfg
    adapter = importlib.import_module(f"xaiclip.data.{cfg['dataset']}")
    image = Path(snakemake.output.image)
    label = Path(snakemake.output.label) if cfg["labelled"] else None
    problem = ""
    try:
        adapter.prepare(cfg["case"], Path(cfg["source"]), image, label)
    except CaseError as error:
        problem = str(error)
        log.warning("%s: %s", cfg["case"], problem)
        for volume in (image, label):  # never read: the problem is
            if volume is not None:
                volume.write_bytes(b"")
    write_text(snakemake.output.problem, problem)
