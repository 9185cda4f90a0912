"""Which files are read with a case's image or label: its own, and those that a header names."""

from __future__ import annotations

import os
from pathlib import Path

from xaiclip.data import metaimage, nifti, nrrd
from xaiclip.errors import CaseError


def input_files(path: str | os.PathLike[str]) -> list[Path]:
    """Every file that reading an image or a label touches; no voxel is read.

    A folder stands for all files below it, a header (``.mhd``, ``.nhdr``, ``.hdr``) for itself and
    its data files. A header that cannot be read stands for itself: whoever reads it says why.

    Args:
        path: the file or folder of a sample sheet.
    """
    path = Path(path)
    if path.is_dir():
        return sorted(file for file in path.rglob("*") if file.is_file())
    try:
        return [path, *_data_files(path)]
    except (CaseError, OSError):
        return [path]


def _data_files(path: Path) -> list[Path]:
    name = path.name.lower()
    if name.endswith((".mhd", ".mha")):
        return metaimage.read_header(path).files
    if name.endswith((".nhdr", ".nrrd")):
        return nrrd.read_header(path).files
    if name.endswith((".hdr", ".img")):
        return [file for file in nifti.pair_of(path) if file != path and file.is_file()]
    return []
