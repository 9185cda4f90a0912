"""Reading volumes into canonical orientation, and putting slices back where they came from."""

from __future__ import annotations

import gzip
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from xaiclip.data.dicom import read_dicom, read_dicom_label
from xaiclip.data.geometry import Geometry, Volume, check_affine
from xaiclip.data.itk import read_itk
from xaiclip.data.nifti import read_nifti
from xaiclip.errors import CaseError
from xaiclip.files import atomic

#: Label ids beyond it are no longer whole in single precision.
MAX_LABEL = 2**24

_NIFTI = (".nii", ".nii.gz")
_ITK = (".mha", ".mhd", ".nrrd", ".nhdr")
_DICOM = (".dcm", ".dicom")


def read_volume(
    path: str | os.PathLike[str],
    *,
    label: bool = False,
    segments: tuple[Geometry, Mapping[int, str]] | None = None,
) -> Volume:
    """Read a NIfTI, MHA, NRRD or DICOM file, or a folder that holds one DICOM series.

    The voxels are brought to the nearest canonical axes, never resampled. Of a NIfTI file that has
    both, the sform counts; one that has neither sform nor qform says nothing of left and right and
    is refused.

    Args:
        path: the file or folder.
        label: whether it is a label map, whose values must be whole and not negative.
        segments: what a DICOM segmentation needs to become a label map: the grid of its image, and
            the names of the label ids.

    Raises:
        CaseError: it cannot be read, or not be used; one sentence with the file and the cure.
    """
    path = Path(path)
    name = path.name.lower()
    if not os.path.exists(path):
        raise CaseError("there is no such file; correct the path in the sample sheet.", path)
    if not path.is_dir() and not path.is_file():  # reading a pipe or a device may never end
        raise CaseError("is neither a file nor a folder; give one of them.", path)
    stored: NDArray[Any]
    if path.is_dir() or name.endswith(_DICOM):
        if label and segments:
            stored, affine = read_dicom_label(path, *segments)
        else:
            stored, affine = read_dicom(path)
    elif name.endswith(_NIFTI):
        stored, affine = read_nifti(path)
    elif name.endswith(_ITK):
        stored, affine = read_itk(path)
    else:
        raise CaseError(
            "not a known format; give NIfTI (.nii, .nii.gz), MHA, NRRD or DICOM (folder, .dcm).",
            path,
        )
    check_affine(affine, path)
    geometry = Geometry(affine, (stored.shape[0], stored.shape[1], stored.shape[2]))
    if not np.isfinite(stored).all():
        raise CaseError("holds NaN or infinite voxels; replace them (by air, for instance).", path)
    if label:
        # a label that was stored with a scale factor comes back with rounding errors
        whole = np.rint(stored)
        if np.abs(stored - whole).max() > 1e-3 or whole.min() < 0:
            raise CaseError("a label map must hold whole numbers ≥ 0; was it resampled?", path)
        if whole.max() >= MAX_LABEL:
            raise CaseError(f"a label map must hold ids below {MAX_LABEL}; number it anew.", path)
        stored = whole.astype(np.int32)
    return Volume(np.ascontiguousarray(geometry.to_canonical(stored)), geometry, path)


def check_same_grid(image: Volume, label: Volume) -> None:
    """A label must lie on its image's grid; it is never resampled.

    Raises:
        CaseError: the shapes differ, or a corner of the volume by more than a tenth of a voxel
            (headers are stored in single precision, and rounded by some tools).
    """
    a, b = image.geometry, label.geometry
    if a.canonical_shape != b.canonical_shape:
        raise CaseError(
            f"its grid {b.canonical_shape} differs from the image's {a.canonical_shape}; resample "
            "the label to the image.",
            label.path,
        )
    corners = np.array(np.meshgrid(*[(0, size - 1) for size in a.canonical_shape])).reshape(3, -1)
    corners = np.vstack([corners, np.ones(corners.shape[1])])
    apart = np.linalg.norm(((a.canonical_affine - b.canonical_affine) @ corners)[:3], axis=0).max()
    if apart > 0.1 * min(a.spacing):
        raise CaseError(
            f"lies up to {apart:.2g} mm away from the image; resample the label to it, or correct "
            "its header.",
            label.path,
        )


def restore(
    slices: Mapping[int, NDArray[Any]],
    geometry: Geometry,
    *,
    fill: float = np.nan,
    dtype: type[np.generic] = np.float32,
) -> nib.Nifti1Image:
    """Put axial slices back into a volume in the stored orientation: the inverse of slicing.

    Args:
        slices: (H, W) by axial index in the canonical volume.
        geometry: of the source volume.
        fill: of all other voxels.
        dtype: of the voxels.
    """
    canonical = np.full(geometry.canonical_shape, fill, dtype=dtype)
    for index, one in slices.items():
        canonical[::-1, ::-1, index] = one.T
    image = nib.Nifti1Image(geometry.from_canonical(canonical), geometry.affine)
    # both, for viewers that know only one
    image.set_sform(geometry.affine, "scanner")
    image.set_qform(geometry.affine, "scanner")
    image.header.set_xyzt_units("mm")
    return image


def write_volume(
    path: str | os.PathLike[str], stored: NDArray[Any], affine: NDArray[np.float64]
) -> None:
    """Write a stored array as ``.nii.gz``, atomically and byte for byte reproducible.

    Args:
        path: ends in ``.nii.gz``.
        stored: (X, Y, Z), of a type that NIfTI knows.
        affine: (4, 4) from stored voxel indices to RAS, mm.
    """
    image = nib.Nifti1Image(stored, affine)
    image.header.set_xyzt_units("mm")
    image.set_qform(affine, code=1)
    image.set_sform(affine, code=1)
    with atomic(path) as temporary:
        # a fixed time stamp keeps equal volumes equal on disk
        temporary.write_bytes(gzip.compress(image.to_bytes(), compresslevel=6, mtime=0))
