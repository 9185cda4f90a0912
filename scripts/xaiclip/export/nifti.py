"""The maps of a case as NIfTI files, in the geometry of its scan."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from xaiclip.data.geometry import Geometry
from xaiclip.data.record import Slice
from xaiclip.data.volumes import restore, write_image
from xaiclip.errors import Skip, left_out
from xaiclip.explain.attribution import StoredAttributions, to_slice_grid
from xaiclip.organs import file_stem

if TYPE_CHECKING:
    import nibabel as nib
    from numpy.typing import NDArray

STAGE = "maps"
#: Folder of the maps that the tables do not show, below the case's.
VARIANTS = "variants"
#: Of a file without any value: in its header.
LEFT_OUT = b"left out: skipped.tsv says why"
_NOWHERE = Geometry(np.eye(4), (1, 1, 1), measured=False)


def write_maps(
    folder: str | os.PathLike[str],
    case: str,
    slices: Mapping[int, Slice],
    attributions: Mapping[tuple[str, str], StoredAttributions],
    organs: Sequence[str],
    threads: int = 1,
) -> list[Skip]:
    """Write every map of a case.

    ``{organ}_{method}_{guidance}.nii.gz`` is the map that the tables show. It is there for each
    organ, method and guidance: of what was left out it has no value (NaN) anywhere, in the scan's
    geometry, or in a single voxel if the scan could not be read. The other maps,
    ``variants/{organ}_{method}_{guidance}_{variant}_{value}.nii.gz``, are there if they were made.

    Args:
        folder: of the case's maps.
        case: the case.
        slices: its slices by axial index; empty where none could be used.
        attributions: of the case's batch, by method and guidance.
        organs: the organs that are explained.
        threads: files that are written side by side.

    Returns:
        What could not be restored.
    """
    folder, skips = Path(folder), list[Skip]()
    geometry = next((one.geometry for one in slices.values()), _NOWHERE)
    (folder / VARIANTS).mkdir(parents=True, exist_ok=True)

    def write(job: tuple[str, str, str, str, dict[int, int]]) -> None:
        name, organ, method, guidance, stack = job
        image = None
        with left_out(skips, case, f"{STAGE} ({method}, {guidance})", organ=organ):
            stored = attributions[method, guidance]
            maps = ((index, stored.read(i).map) for index, i in stack.items())
            image = _restored(maps, slices) if stack else None
        if image is not None:
            write_image(folder / name, image)
        elif "/" not in name:
            write_image(folder / name, _blank(geometry))

    jobs = []
    for (method, guidance), stored in attributions.items():
        stacks: dict[tuple[str, str], dict[int, int]] = defaultdict(dict)
        for organ in organs:
            stacks[organ, f"{file_stem(organ)}_{method}_{guidance}.nii.gz"] = {}
        for i, row in stored.find(case=case):
            name = f"{file_stem(row['organ'])}_{method}_{guidance}"
            if not row["primary"]:
                name = f"{VARIANTS}/{name}_{row['variant']}_{row['value']}"
            stacks[row["organ"], f"{name}.nii.gz"][row["slice"]] = i
        jobs += [(name, organ, method, guidance, stack) for (organ, name), stack in stacks.items()]
    with ThreadPoolExecutor(max(1, threads)) as executor:
        list(executor.map(write, jobs))
    # in an order of their own, whichever thread was first
    return sorted(skips, key=lambda skip: (skip.stage, skip.organ or ""))


def _restored(
    maps: Iterable[tuple[int, NDArray[np.float32]]], slices: Mapping[int, Slice]
) -> nib.Nifti1Image:
    """Maps on the canonical grid, each with its axial index, in the volume; NaN elsewhere."""
    grids = ((index, to_slice_grid(one, slices[index].image.shape)) for index, one in maps)
    return restore(grids, next(iter(slices.values())).geometry)


def _blank(geometry: Geometry) -> nib.Nifti1Image:
    """A volume without any value."""
    image = restore({}, geometry)
    image.header["descrip"] = LEFT_OUT
    return image
