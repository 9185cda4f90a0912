"""Reading DICOM: a folder with one series, or files of one slice each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from xaiclip.data.geometry import Geometry, Volume, check_affine, check_shape
from xaiclip.data.itk import check_components, image_affine, image_voxels
from xaiclip.errors import CaseError


def read_dicom(folder: Path) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    reader = sitk.ImageSeriesReader()
    try:
        series = reader.GetGDCMSeriesIDs(str(folder))
    except (RuntimeError, MemoryError) as error:
        raise CaseError("holds a damaged DICOM file; export the series again.", folder) from error
    if not series:
        raise CaseError("holds no DICOM series; give the folder of the .dcm files.", folder)
    if len(series) > 1:
        raise CaseError(
            f"holds {len(series)} DICOM series ({', '.join(series)}); "
            "give each a folder of its own.",
            folder,
        )
    files = reader.GetGDCMSeriesFileNames(str(folder), series[0])
    return _read_series([Path(file) for file in files], folder)


def read_slices(files: Sequence[Path]) -> tuple[Volume, list[Path]]:
    """Read DICOM files of one slice each as one volume, whatever series they claim to belong to.

    Args:
        files: of one folder, in any order.

    Returns:
        The volume, and the files in the order of the stored array's last axis. A stored array
        (x, y, z) has the pixel in column x and row y of file z.

    Raises:
        CaseError: they cannot be read, or are no volume.
    """
    if not files:
        raise CaseError("there are no DICOM files.")
    folder = files[0].parent
    reader = sitk.ImageFileReader()
    heights = {}
    for file in files:
        reader.SetFileName(str(file))
        try:
            reader.ReadImageInformation()
        except (RuntimeError, MemoryError) as error:
            raise CaseError("not a readable DICOM file; get it again.", file) from error
        normal = np.array(reader.GetDirection()).reshape(3, 3)[:, 2]
        heights[file] = float(normal @ reader.GetOrigin())
    ordered = sorted(files, key=lambda file: (heights[file], file.name))
    stored, affine = _read_series(ordered, folder)
    check_affine(affine, folder)
    geometry = Geometry(affine, (stored.shape[0], stored.shape[1], stored.shape[2]))
    return Volume(np.ascontiguousarray(geometry.to_canonical(stored)), geometry, folder), ordered


def _read_series(
    files: Sequence[Path], folder: Path
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """The stored array (x, y, z) and affine of DICOM files in the order of their slices."""
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames([str(file) for file in files])
    reader.MetaDataDictionaryArrayUpdateOn()
    try:
        image = reader.Execute()
    except (RuntimeError, MemoryError) as error:
        raise CaseError(
            "its DICOM series cannot be read as one volume; convert it to NIfTI.", folder
        ) from error
    check_components(image.GetNumberOfComponentsPerPixel(), folder)
    check_shape(image.GetSize(), folder)
    affine = image_affine(image)
    if len(files) > 1:  # one file of several frames carries its geometry elsewhere
        affine[:3, 2] = _step([_position(reader, k, folder) for k in range(len(files))], folder)
    return image_voxels(image), affine


def _position(reader: sitk.ImageSeriesReader, index: int, folder: Path) -> list[float]:
    """Image Position (Patient) of a file, in RAS."""
    try:
        text = reader.GetMetaData(index, "0020|0032")
        x, y, z = (float(part) for part in text.split("\\"))
    except (RuntimeError, ValueError) as error:
        raise CaseError(
            "a DICOM file has no image position; export the series again.", folder
        ) from error
    return [-x, -y, z]


def _step(positions: Sequence[Sequence[float]], folder: Path) -> NDArray[np.float64]:
    """From slice to slice, mm. ITK takes it from the normal, which misses a tilted gantry."""
    steps = np.diff(np.array(positions), axis=0)
    mean = steps.mean(axis=0)
    if np.abs(steps - mean).max() > 0.1 * np.linalg.norm(mean):
        raise CaseError(
            "its DICOM slices are not evenly spaced; add what is missing, "
            "or take out what belongs to another image.",
            folder,
        )
    return np.asarray(mean)
