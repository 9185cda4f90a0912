"""SAROS: CT of many TCIA collections, resampled to 5 mm by the data set's own download script.

``case_000/image.nii.gz`` and ``case_000/body-regions.nii.gz``. The labels are body regions and
parts on every fifth axial slice, 255 elsewhere; none is an organ of ours, so there is no
reference. They do tell where the abdomen is.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from xaiclip.data.volumes import check_same_grid, read_volume, write_volume
from xaiclip.errors import CaseError

ABDOMINAL_CAVITY = 3
IGNORE = 255


def prepare(case: str, source: Path, image: Path, label: Path | None) -> None:
    """Crop a case's CT to the axial slices of its abdomen.

    From the lowest to the highest annotated slice that shows the abdominal cavity, so that the
    slice policy ``middle`` finds the middle of the abdomen in a scan of any length.

    Args:
        case: name as published.
        source: folder of the case folders.
        image: the NIfTI file to write.
        label: None; there is no reference.

    Raises:
        CaseError: files are missing, cannot be read, or show no abdomen.
    """
    folder = source / case
    if not (folder / "image.nii.gz").is_file():
        raise CaseError(
            "holds no image.nii.gz; get the case with SAROS's own download script (some "
            "collections ask for a signed licence).",
            folder,
        )
    scan = read_volume(folder / "image.nii.gz")
    regions = read_volume(folder / "body-regions.nii.gz", label=True)
    check_same_grid(scan, regions)
    held = np.flatnonzero((regions.array == ABDOMINAL_CAVITY).any(axis=(0, 1)))
    if held.size < 2:
        raise CaseError(
            "fewer than two annotated slices show the abdominal cavity; leave it out.",
            folder,
        )
    low, high = int(held[0]), int(held[-1])
    affine = scan.geometry.canonical_affine.copy()
    affine[:3, 3] += low * affine[:3, 2]
    write_volume(image, scan.array[:, :, low : high + 1], affine)
