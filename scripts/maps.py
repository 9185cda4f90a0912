"""Put a batch's maps back into the geometry of the scans, as NIfTI."""

from _job import job

with job(snakemake) as log:
    from collections import defaultdict
    from pathlib import Path

    import nibabel as nib

    from xaiclip.data.slices import load_slices, restore_slices
    from xaiclip.explain.attribution import load_attributions, to_slice_grid
    from xaiclip.files import atomic, write_text
    from xaiclip.organs import file_stem

    cfg = snakemake.params.cfg
    slices = {(one.case, one.index): one for one in load_slices(snakemake.input.slices)[0]}
    stacks = defaultdict(dict)
    for case, index, one in load_attributions(snakemake.input.attributions):
        name = f"{file_stem(one.organ)}_{cfg['method']}_{cfg['guidance']}"
        if not one.primary:
            name += f"_{one.variant}_{one.value}"
        stacks[case, name][index] = to_slice_grid(one.map, slices[case, index].image.shape)
    folder = Path(snakemake.output[0]).parents[1]
    for (case, name), stack in sorted(stacks.items()):
        geometry = slices[case, next(iter(stack))]
        with atomic(folder / case / f"{name}.nii.gz") as temporary:
            nib.save(restore_slices(stack, geometry), temporary)
    log.info("%d maps", len(stacks))
    written = [f"{case}/{name}.nii.gz\n" for case, name in sorted(stacks)]
    write_text(snakemake.output[0], "".join(written))
