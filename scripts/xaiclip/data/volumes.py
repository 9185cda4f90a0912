"""Reading volumes into canonical orientation, and putting slices back where they came from."""

from __future__ import annotations

import gzip
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from xaiclip.data.geometry import (
    Geometry,
    Stored,
    Volume,
    check_affine,
    fit_plane,
    is_of_an_array,
    oriented_affine,
)
from xaiclip.data.metaimage import read_metaimage
from xaiclip.data.nifti import read_nifti
from xaiclip.data.nrrd import read_nrrd
from xaiclip.data.picture import PICTURES, read_npz, read_picture
from xaiclip.errors import CaseError
from xaiclip.files import atomic

#: Label ids beyond it are no longer whole in single precision.
MAX_LABEL = 2**24

_NIFTI = (".nii", ".nii.gz", ".hdr", ".img")
_META = (".mha", ".mhd")
_NRRD = (".nrrd", ".nhdr")
_DICOM = (".dcm", ".dicom")
#: Ends of the names of files that are read beside DICOM's, in lower case.
SUFFIXES = (*_NIFTI, *_META, *_NRRD, *PICTURES, ".npz")


def read_volume(
    path: str | os.PathLike[str],
    *,
    label: bool = False,
    orientation: str | None = None,
    segments: tuple[Geometry, Mapping[int, str]] | None = None,
) -> Volume:
    """Read a scan or a label map: a volume, or a single slice.

    NIfTI, MetaImage and NRRD files, DICOM, pictures (PNG, TIFF, JPEG) and MedSAM's npz.
    The voxels are brought to the nearest canonical axes, never resampled. A picture has no
    geometry: it lies as it is shown, the patient's right on the left.

    Args:
        path: the file, or the folder of a DICOM series.
        label: whether it is a label map, whose values must be whole and not negative.
        orientation: where the axes of a file lead that does not say so, such as ``LPS``.
        segments: what a DICOM segmentation needs to become a label map: the grid of its image, and
            the names of the label ids.

    Raises:
        CaseError: it cannot be read, or not be used; one sentence with the file and the cure.
    """
    path = Path(path)
    stored = _read(path, label, segments)
    array = stored.array.reshape((*stored.array.shape, 1, 1)[:3])
    shape = (array.shape[0], array.shape[1], array.shape[2])
    geometry, warnings = _geometry(stored, shape, path, orientation)
    _check_finite(array, path)
    if label:
        array = _whole(array, path)
    return Volume(geometry.to_canonical(array), geometry, path, (*stored.warnings, *warnings))


def _read(path: Path, label: bool, segments: tuple[Geometry, Mapping[int, str]] | None) -> Stored:
    name = path.name.lower()
    if not os.path.exists(path):
        raise CaseError("there is no such file; correct the path in the sample sheet.", path)
    if not path.is_dir() and not path.is_file():  # reading a pipe or a device may never end
        raise CaseError("is neither a file nor a folder; give one of them.", path)
    if path.is_dir() or name.endswith(_DICOM):
        from xaiclip.data.dicom import read_dicom, read_dicom_label  # an extra

        found = read_dicom_label(path, *segments) if label and segments else read_dicom(path)
        return Stored(*found, told=True)
    if name.endswith(_NIFTI):
        return read_nifti(path)
    if name.endswith(_META):
        return read_metaimage(path)
    if name.endswith(_NRRD):
        return read_nrrd(path)
    if name.endswith(PICTURES):
        return read_picture(path, label=label)
    if name.endswith(".npz"):
        return read_npz(path, label=label)
    raise CaseError(
        "not a known format; give NIfTI, MHA, NRRD, DICOM (folder, .dcm), PNG, TIFF or npz.",
        path,
    )


def _geometry(
    stored: Stored, shape: tuple[int, int, int], path: Path, orientation: str | None
) -> tuple[Geometry, list[str]]:
    """Where a volume lies, and what looks wrong about it."""
    affine, spacing = stored.affine, stored.spacing
    words = "its header does not tell where its axes lead"
    warnings = []
    if affine is not None:
        affine = fit_plane(affine, stored.array.shape)
        check_affine(affine, path)
        if not stored.told and is_of_an_array(affine, shape):
            if np.allclose(np.abs(np.diag(affine)), 1, atol=1e-6):
                affine = None
                words = "its affine is the identity, which no scanner writes"
            else:
                warnings.append(
                    "its axes and its origin are those of an array: were they ever set? Compare "
                    "left and right in a viewer."
                )
    if affine is not None:
        return Geometry(affine, shape), warnings
    if spacing is not None:
        spacing = (*spacing, 1.0, 1.0)[:3]
        if not np.isfinite(spacing).all() or min(spacing) <= 0 or set(spacing) == {1.0}:
            spacing = None
    codes = "LPS" if stored.shown else orientation
    if codes is None:
        raise CaseError(
            f"{words}, so left and right are unknown; write its geometry, or say in "
            "'data.orientation' where its axes lead.",
            path,
        )
    affine = oriented_affine(codes, spacing or (1.0, 1.0, 1.0))
    check_affine(affine, path)
    return Geometry(affine, shape, measured=spacing is not None), []


def _check_finite(array: NDArray[Any], path: Path) -> None:
    if array.dtype.kind == "f" and not all(np.isfinite(plane).all() for plane in array.T):
        raise CaseError("holds NaN or infinite voxels; replace them (by air, for instance).", path)


def _whole(array: NDArray[Any], path: Path) -> NDArray[Any]:
    """A label map in the smallest unsigned type; plane by plane, for it may be large."""
    if min(float(plane.min()) for plane in array.T) < -0.5:
        raise CaseError("a label map must hold whole numbers ≥ 0; was it resampled?", path)
    largest = max(float(plane.max()) for plane in array.T)
    if largest >= MAX_LABEL:
        raise CaseError(f"a label map must hold ids below {MAX_LABEL}; number it anew.", path)
    kind = np.min_scalar_type(int(np.rint(largest)))
    if array.dtype.kind != "f":
        return array.astype(kind, copy=False)
    whole = np.empty(array.shape, kind, order="F")
    for plane, target in zip(array.T, whole.T, strict=True):
        # a label that was stored with a scale factor comes back with rounding errors
        rounded = np.rint(plane)
        if np.abs(plane - rounded).max() > 1e-3:
            raise CaseError("a label map must hold whole numbers ≥ 0; was it resampled?", path)
        target[...] = rounded
    return whole


def check_same_grid(image: Volume, label: Volume) -> None:
    """A label must lie on its image's grid; it is never resampled.

    Raises:
        CaseError: the shapes differ, or a corner of the volume by more than a tenth of a voxel
            (headers are stored in single precision, and rounded by some tools).
    """
    a, b = image.geometry, label.geometry
    if a.canonical_shape != b.canonical_shape:
        raise CaseError(
            f"its grid {b.canonical_shape} differs from the image's {a.canonical_shape}; write the "
            "label on the image's whole grid (3D Slicer crops a .seg.nrrd: export it with the "
            "image as reference).",
            label.path,
        )
    if a.measured != b.measured:
        one, other = ("image", "label") if a.measured else ("label", "image")
        raise CaseError(
            f"the {one} has a geometry, the {other} has none, so they cannot be compared; give "
            "both with their geometry, or both as pictures.",
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
    slices: Mapping[int, NDArray[Any]] | Iterable[tuple[int, NDArray[Any]]],
    geometry: Geometry,
    *,
    fill: float = np.nan,
    dtype: type[np.generic] = np.float32,
) -> nib.Nifti1Image:
    """Put axial slices back into a volume in the stored orientation: the inverse of slicing.

    Args:
        slices: (H, W) by axial index in the canonical volume; none is kept.
        geometry: of the source volume.
        fill: of all other voxels.
        dtype: of the voxels.
    """
    canonical = np.full(geometry.canonical_shape, fill, dtype=dtype)
    for index, one in slices.items() if isinstance(slices, Mapping) else slices:
        canonical[::-1, ::-1, index] = one.T
    return _image(geometry.from_canonical(canonical), geometry.affine, measured=geometry.measured)


def write_volume(
    path: str | os.PathLike[str], stored: NDArray[Any], affine: NDArray[np.float64]
) -> None:
    """Write a stored array as ``.nii.gz``, atomically and byte for byte reproducible.

    Args:
        path: ends in ``.nii.gz``.
        stored: (X, Y, Z), of a type that NIfTI knows.
        affine: (4, 4) from stored voxel indices to RAS, mm.
    """
    write_image(path, _image(stored, affine), level=6)


def write_image(path: str | os.PathLike[str], image: nib.Nifti1Image, level: int = 1) -> None:
    """Write an image as ``.nii.gz``, atomically and byte for byte reproducible."""
    with atomic(path) as temporary:
        # a fixed time stamp keeps equal volumes equal on disk
        temporary.write_bytes(gzip.compress(image.to_bytes(), compresslevel=level, mtime=0))


def _image(
    stored: NDArray[Any], affine: NDArray[np.float64], *, measured: bool = True
) -> nib.Nifti1Image:
    """A NIfTI image whose header is made anew: nothing of a source's header comes along."""
    image = nib.Nifti1Image(stored, affine)
    image.set_sform(affine, "scanner")
    # for viewers that know the qform only; it cannot tell a sheared affine, and says so
    image.set_qform(affine, "scanner")
    corner = np.array([*stored.shape[:3], 1])
    if np.linalg.norm((image.get_qform() - affine) @ corner) > 0.01 * _shortest(affine):
        image.set_qform(affine, "unknown")
    image.header.set_xyzt_units("mm" if measured else "unknown")
    if not measured:
        image.header["descrip"] = b"voxel size and place are unknown"
    return image


def _shortest(affine: NDArray[np.float64]) -> float:
    return float(np.linalg.norm(affine[:3, :3], axis=0).min())
