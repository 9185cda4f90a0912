"""Put a case's maps back into the geometry of its scan, as NIfTI."""

from typing import TYPE_CHECKING

from _job import job

if TYPE_CHECKING:
    from _job import snakemake

with job(snakemake) as log:
    from contextlib import ExitStack
    from pathlib import Path

    from xaiclip.data.record import load_slices
    from xaiclip.explain.attribution import open_attributions
    from xaiclip.export.nifti import write_maps
    from xaiclip.files import write_json

    case, organs = (snakemake.params.cfg[key] for key in ("case", "organs"))
    slices = {one.index: one for one in load_slices(snakemake.input.slices, [case])[0]}
    with ExitStack() as stack:
        attributions = {}
        for path in snakemake.input.attributions:
            method, guidance = Path(path).parts[-3:-1]
            attributions[method, guidance] = stack.enter_context(open_attributions(path))
        folder = Path(snakemake.output.variants).parent
        skips = write_maps(folder, case, slices, attributions, organs, snakemake.threads)
    log.info("%d maps", sum(1 for _ in folder.rglob("*.nii.gz")))
    write_json(snakemake.output.skips, [skip.to_dict() for skip in skips])
