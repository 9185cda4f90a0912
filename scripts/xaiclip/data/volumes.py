"""Reading volumes into canonical orientation, and putting slices back where they came from."""

from __future__ import annotations

import gzip
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import SimpleITK as sitk
from nibabel.orientations import (
    apply_orientation,
    axcodes2ornt,
    inv_ornt_aff,
    io_orientation,
    ornt_transform,
)
from numpy.typing import NDArray

from xaiclip.errors import CaseError
from xaiclip.files import atomic

#: A larger volume is refused before any memory is taken: 8 times a 512 × 512 × 1000 CT.
MAX_VOXELS = 2**31
#: Largest compression of a gzip stream; a header that claims more than that is lying.
MAX_GZIP_RATIO = 1032
#: Label ids beyond it are no longer whole in single precision.
MAX_LABEL = 2**24
#: Bytes that may follow the voxels of a compressed file; more is a mistake, or an attack.
MAX_TRAILING = 2**20

_DATA_FILE = re.compile(rb"^(?:ElementDataFile *=|data ?file:) *(?P<name>.*?)\r?$", re.I | re.M)
_NIFTI = (".nii", ".nii.gz")
_ITK = (".mha", ".mhd", ".nrrd", ".nhdr")


@dataclass(frozen=True)
class Geometry:
    """Where the voxels of a stored volume lie.

    Attributes:
        affine: (4, 4) from stored voxel indices to RAS, mm.
        shape: of the stored array.
    """

    affine: NDArray[np.float64]
    shape: tuple[int, int, int]

    @property
    def _orientation(self) -> NDArray[np.float64]:
        return np.asarray(io_orientation(self.affine))

    @property
    def canonical_shape(self) -> tuple[int, int, int]:
        """Shape of the array in RAS order."""
        shape = [0, 0, 0]
        for axis, (target, _) in enumerate(self._orientation):
            shape[int(target)] = self.shape[axis]
        return shape[0], shape[1], shape[2]

    @property
    def canonical_affine(self) -> NDArray[np.float64]:
        """(4, 4) from canonical voxel indices to RAS, mm."""
        return np.asarray(self.affine @ inv_ornt_aff(self._orientation, self.shape))

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel size along the canonical axes (right, anterior, superior), mm."""
        x, y, z = (float(size) for size in np.linalg.norm(self.canonical_affine[:3, :3], axis=0))
        return x, y, z

    def to_canonical(self, stored: NDArray[Any]) -> NDArray[Any]:
        """A stored array in RAS order."""
        return np.asarray(apply_orientation(stored, self._orientation))

    def from_canonical(self, canonical: NDArray[Any]) -> NDArray[Any]:
        """A RAS array in the stored order."""
        back = ornt_transform(axcodes2ornt("RAS"), self._orientation)
        return np.asarray(apply_orientation(canonical, back))


@dataclass(frozen=True, eq=False)
class Volume:
    """A scan or a label map in canonical (RAS) order.

    Attributes:
        array: (X, Y, Z): float32, or for a label map int32.
        geometry: of the stored file.
        path: the file.
    """

    array: NDArray[Any]
    geometry: Geometry
    path: Path


def display(plane: NDArray[Any]) -> NDArray[Any]:
    """A canonical axial plane (X, Y) as (H, W), as a radiologist sees it.

    Row 0 is anterior, column 0 is the patient's right.
    """
    return np.ascontiguousarray(plane[::-1, ::-1].T)


def read_volume(path: str | os.PathLike[str], *, label: bool = False) -> Volume:
    """Read a NIfTI, MHA or NRRD file, or a folder that holds one DICOM series.

    The voxels are brought to the nearest canonical axes, never resampled. Of a NIfTI file that has
    both, the sform counts; one that has neither sform nor qform says nothing of left and right and
    is refused.

    Args:
        path: the file or folder.
        label: whether it is a label map, whose values must be whole and not negative.

    Raises:
        CaseError: it cannot be read, or not be used; one sentence with the file and the cure.
    """
    path = Path(path)
    name = path.name.lower()
    if not os.path.exists(path):
        raise CaseError(f"{path}: there is no such file; correct the path in the sample sheet.")
    if not path.is_dir() and not path.is_file():  # reading a pipe or a device may never end
        raise CaseError(f"{path}: is neither a file nor a folder; give one of them.")
    if path.is_dir():
        stored, affine = _read_dicom(path)
    elif name.endswith(_NIFTI):
        stored, affine = _read_nifti(path)
    elif name.endswith(_ITK):
        stored, affine = _read_itk(path)
    else:
        raise CaseError(
            f"{path}: not a known format; give NIfTI (.nii, .nii.gz), MHA, NRRD or a DICOM folder."
        )
    _check_affine(affine, path)
    geometry = Geometry(affine, (stored.shape[0], stored.shape[1], stored.shape[2]))
    if not np.isfinite(stored).all():
        raise CaseError(
            f"{path}: holds NaN or infinite voxels; replace them (by air, for instance)."
        )
    if label:
        # a label that was stored with a scale factor comes back with rounding errors
        whole = np.rint(stored)
        if np.abs(stored - whole).max() > 1e-3 or whole.min() < 0:
            raise CaseError(f"{path}: a label map must hold whole numbers ≥ 0; was it resampled?")
        if whole.max() >= MAX_LABEL:
            raise CaseError(f"{path}: a label map must hold ids below {MAX_LABEL}; number it anew.")
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
            f"{label.path}: its grid {b.canonical_shape} differs from {a.canonical_shape} of "
            f"{image.path}; resample the label to the image."
        )
    corners = np.array(np.meshgrid(*[(0, size - 1) for size in a.canonical_shape])).reshape(3, -1)
    corners = np.vstack([corners, np.ones(corners.shape[1])])
    apart = np.linalg.norm(((a.canonical_affine - b.canonical_affine) @ corners)[:3], axis=0).max()
    if apart > 0.1 * min(a.spacing):
        raise CaseError(
            f"{label.path}: lies up to {apart:.2g} mm away from {image.path}; "
            "resample the label to the image, or correct its header."
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


def _read_nifti(path: Path) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    try:
        image: Any = nib.load(path)
        shape = tuple(int(size) for size in image.shape)
        dtype = np.dtype(image.header.get_data_dtype())
        oriented = image.header["sform_code"] > 0 or image.header["qform_code"] > 0
    except Exception as error:  # a damaged header raises nearly anything
        raise CaseError(
            f"{path}: not a readable NIfTI file ({_first_line(error, path)}); copy it again, or "
            "convert it."
        ) from error
    _check_shape(shape, path)
    if dtype.kind not in "iuf":
        raise CaseError(f"{path}: its voxels are colours or complex; give one real number each.")
    size = path.stat().st_size
    compressed = path.name.lower().endswith(".gz")
    _check_size(shape, dtype.itemsize, path, size * (MAX_GZIP_RATIO if compressed else 1))
    if not oriented:
        raise CaseError(
            f"{path}: has neither sform nor qform, so left and right are unknown; write one."
        )
    try:
        if compressed:
            end = int(image.dataobj.offset) + int(np.prod(shape)) * dtype.itemsize
            _check_stream(path, end)
        stored = image.get_fdata(dtype=np.float32, caching="unchanged")
    except Exception as error:  # as above
        raise CaseError(
            f"{path}: damaged or truncated ({_first_line(error, path)}); copy it again."
        ) from error
    return stored.reshape(shape[:3]), np.asarray(image.affine, dtype=np.float64)


def _check_stream(path: Path, end: int) -> None:
    """Read a gzip stream to its end, where its checksum is; nibabel stops before it.

    Nothing but a header stands in memory yet: a stream that is too short, or goes on and on, ends
    here.

    Args:
        path: the file.
        end: where the voxels end in the uncompressed file, bytes.
    """
    length = 0
    with gzip.open(path) as stream:
        while block := stream.read(2**20):
            length += len(block)
            if length > end + MAX_TRAILING:
                raise ValueError("it goes on long after its voxels")
    if length < end:
        raise ValueError(f"{length} bytes instead of {end}")


def _read_itk(path: Path) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    _check_data_files(path)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
        _check_components(reader.GetNumberOfComponents(), path)
        _check_shape(reader.GetSize(), path)
        _check_size(reader.GetSize(), 1, path, MAX_GZIP_RATIO * _bytes_of(path))
        image = reader.Execute()
    except (RuntimeError, MemoryError) as error:
        raise CaseError(
            f"{path}: damaged, truncated or of another format; copy it again."
        ) from error
    for _ in range(image.GetDimension() - 3):  # trailing axes of length 1
        image = sitk.Extract(image, [*image.GetSize()[:-1], 0])
    return _voxels(image), _affine(image)


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
                f"{path}: its header names a data file in another folder; put them together."
            )
        target = path.parent / file
        if name.strip() and os.path.exists(target) and not target.is_file():
            raise CaseError(f"{path}: its header names data that are no file; correct it.")


def _bytes_of(path: Path) -> int:
    """Size of the file, or of its folder if the header may name others (.mhd, .nrrd)."""
    files = [path] if path.name.lower().endswith(".mha") else path.parent.iterdir()
    return sum(file.stat().st_size for file in files if file.is_file())


def _read_dicom(folder: Path) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    reader = sitk.ImageSeriesReader()
    try:
        series = reader.GetGDCMSeriesIDs(str(folder))
    except (RuntimeError, MemoryError) as error:
        raise CaseError(
            f"{folder}: holds a damaged DICOM file; export the series again."
        ) from error
    if not series:
        raise CaseError(f"{folder}: holds no DICOM series; give the folder of the .dcm files.")
    if len(series) > 1:
        raise CaseError(
            f"{folder}: holds {len(series)} DICOM series ({', '.join(series)}); "
            "give each a folder of its own."
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
            raise CaseError(f"{file}: not a readable DICOM file; get it again.") from error
        normal = np.array(reader.GetDirection()).reshape(3, 3)[:, 2]
        heights[file] = float(normal @ reader.GetOrigin())
    ordered = sorted(files, key=lambda file: (heights[file], file.name))
    stored, affine = _read_series(ordered, folder)
    _check_affine(affine, folder)
    geometry = Geometry(affine, (stored.shape[0], stored.shape[1], stored.shape[2]))
    return Volume(np.ascontiguousarray(geometry.to_canonical(stored)), geometry, folder), ordered


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
            f"{folder}: its DICOM series cannot be read as one volume; convert it to NIfTI."
        ) from error
    _check_components(image.GetNumberOfComponentsPerPixel(), folder)
    _check_shape(image.GetSize(), folder)
    affine = _affine(image)
    if len(files) > 1:  # one file of several frames carries its geometry elsewhere
        affine[:3, 2] = _step([_position(reader, k, folder) for k in range(len(files))], folder)
    return _voxels(image), affine


def _position(reader: sitk.ImageSeriesReader, index: int, folder: Path) -> list[float]:
    """Image Position (Patient) of a file, in RAS."""
    try:
        text = reader.GetMetaData(index, "0020|0032")
        x, y, z = (float(part) for part in text.split("\\"))
    except (RuntimeError, ValueError) as error:
        raise CaseError(
            f"{folder}: a DICOM file has no image position; export the series again."
        ) from error
    return [-x, -y, z]


def _step(positions: Sequence[Sequence[float]], folder: Path) -> NDArray[np.float64]:
    """From slice to slice, mm. ITK takes it from the normal, which misses a tilted gantry."""
    steps = np.diff(np.array(positions), axis=0)
    mean = steps.mean(axis=0)
    if np.abs(steps - mean).max() > 0.1 * np.linalg.norm(mean):
        raise CaseError(
            f"{folder}: its DICOM slices are not evenly spaced; add what is missing, "
            "or take out what belongs to another image."
        )
    return np.asarray(mean)


def _voxels(image: sitk.Image) -> NDArray[np.float32]:
    """SimpleITK has the axes reversed."""
    return np.asarray(sitk.GetArrayViewFromImage(image).T, dtype=np.float32)


def _affine(image: sitk.Image) -> NDArray[np.float64]:
    """SimpleITK counts from LPS."""
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine


def _check_components(count: int, path: Path) -> None:
    if count != 1:
        raise CaseError(f"{path}: has {count} values in each voxel; give one channel.")


def _check_shape(shape: Sequence[int], path: Path) -> None:
    if len(shape) < 3 or any(size != 1 for size in shape[3:]):
        raise CaseError(
            f"{path}: has the shape {_times(shape)}; give one 3D volume (one time point)."
        )
    if min(shape[:3]) == 1:
        raise CaseError(f"{path}: is a single slice ({_times(shape)}); give a volume.")


def _check_size(shape: Sequence[int], itemsize: int, path: Path, most: int) -> None:
    """A header must not make us take memory that its file cannot fill."""
    voxels = int(np.prod(shape, dtype=object))
    if min(shape) < 1 or voxels > MAX_VOXELS or voxels * itemsize > most:
        raise CaseError(
            f"{path}: its header claims {_times(shape)} voxels, more than the file can hold (or "
            "than anyone scans); it is damaged or truncated, copy it again."
        )


def _check_affine(affine: NDArray[np.float64], path: Path) -> None:
    spatial = affine[:3, :3]
    sizes = np.linalg.norm(spatial, axis=0) if np.isfinite(affine).all() else np.zeros(3)
    if not (sizes > 0).all() or abs(np.linalg.det(spatial / sizes)) < 1e-3:
        raise CaseError(f"{path}: its affine is singular; write a valid qform or sform.")
    if sizes.max() > 100 or sizes.min() < 0.01:
        raise CaseError(
            f"{path}: its voxels measure {_times(f'{size:.3g}' for size in sizes)} mm; "
            "correct the header."
        )


def _times(sizes: Iterable[object]) -> str:
    return " × ".join(map(str, sizes))


def _first_line(error: BaseException, path: Path) -> str:
    text = str(error).replace(str(path), path.name).strip() or type(error).__name__
    return text.splitlines()[0].rstrip(".")
