"""Reading MHA, MHD and NRRD files, through ITK."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from xaiclip.data.geometry import check_shape, check_size
from xaiclip.data.nifti import MAX_GZIP_RATIO
from xaiclip.errors import CaseError

_DATA_FILE = re.compile(rb"^(?:ElementDataFile *=|data ?file:) *(?P<name>.*?)\r?$", re.I | re.M)


def read_itk(path: Path) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    _check_data_files(path)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
        check_components(reader.GetNumberOfComponents(), path)
        check_shape(reader.GetSize(), path)
        check_size(reader.GetSize(), 1, path, MAX_GZIP_RATIO * _bytes_of(path))
        image = reader.Execute()
    except (RuntimeError, MemoryError) as error:
        raise CaseError("damaged, truncated or of another format; copy it again.", path) from error
    for _ in range(image.GetDimension() - 3):  # trailing axes of length 1
        image = sitk.Extract(image, [*image.GetSize()[:-1], 0])
    return image_voxels(image), image_affine(image)


def _check_data_files(path: Path) -> None:
    """A header may name data files; they must be files of its own folder, and below it.

    Elsewhere lie other people's files, and devices that never end.
    """
    with open(path, "rb") as stream:
        head = stream.read(2**16)
    named = _DATA_FILE.search(head)
    if named is None:
        return
    names = [named["name"]]
    if names[0].upper().startswith(b"LIST"):
        names = head[named.end() :].split(b"\n")
    for name in names:
        file = Path(os.fsdecode(name.strip()))
        if file.is_absolute() or ".." in file.parts:
            raise CaseError(
                "its header names a data file in another folder; put them together.", path
            )
        target = path.parent / file
        if name.strip() and os.path.exists(target) and not target.is_file():
            raise CaseError("its header names data that are no file; correct it.", path)


def _bytes_of(path: Path) -> int:
    """Size of the file, or of its folder if the header may name others (.mhd, .nrrd)."""
    files = [path] if path.name.lower().endswith(".mha") else path.parent.iterdir()
    return sum(file.stat().st_size for file in files if file.is_file())


def image_voxels(image: sitk.Image) -> NDArray[np.float32]:
    """SimpleITK has the axes reversed."""
    return np.asarray(sitk.GetArrayViewFromImage(image).T, dtype=np.float32)


def image_affine(image: sitk.Image) -> NDArray[np.float64]:
    """SimpleITK counts from LPS."""
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine


def check_components(count: int, path: Path) -> None:
    if count != 1:
        raise CaseError(f"has {count} values in each voxel; give one channel.", path)
