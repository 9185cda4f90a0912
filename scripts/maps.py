"""Put a batch's maps back into the geometry of the scans, as NIfTI."""

from typing import TYPE_CHECKING

from _job import job

if TYPE_CHECKING:
    from _job import snakemake

with job(snakemake) as log:
    from collections import defaultdict
    from pathlib import Path

    import nibabel as nib

    from xaiclip.data.slices import load_slices, restore_slices
    from xaiclip.errors import Skip, left_out
    from xaiclip.explain.attribution import Attribution, load_attributions, to_slice_grid
    from xaiclip.files import atomic, write_json, write_text
    from xaiclip.organs import file_stem

    cfg = snakemake.params.cfg
    slices = {(one.case, one.index): one for one in load_slices(snakemake.input.slices)[0]}
    stacks: dict[tuple[str, str], dict[int, Attribution]] = defaultdict(dict)
    skips: list[Skip] = []
    written = []
    for case, index, one in load_attributions(snakemake.input.attributions):
        name = f"{file_stem(one.organ)}_{cfg['method']}_{cfg['guidance']}"
        if not one.primary:
            name += f"_{one.variant}_{one.value}"
        stacks[case, name][index] = one
    folder = Path(snakemake.output.written).parents[1]
    for (case, name), stack in sorted(stacks.items()):
        one, geometry = next(iter(stack.values())), slices[case, next(iter(stack))]
        with left_out(skips, case, f"maps ({cfg['method']}, {cfg['guidance']})", organ=one.organ):
            grids = {
                index: to_slice_grid(one.map, slices[case, index].image.shape)
                for index, one in stack.items()
            }
            with atomic(folder / case / f"{name}.nii.gz") as temporary:
                nib.save(restore_slices(grids, geometry), temporary)
            written.append(f"{case}/{name}.nii.gz\n")
    log.info("%d maps", len(written))
    write_json(snakemake.output.skips, [skip.to_dict() for skip in skips])
    write_text(snakemake.output.written, "".join(written))
