"""Where voxels lie, how a slice is shown, and what may not be taken for a volume."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xaiclip.errors import CaseError

#: The largest scan that is read: 512 × 512 × 2048.
MAX_VOXELS = 2**29
#: Its voxels as they are stored, bytes: 512 × 512 × 1024 of double precision.
MAX_BYTES = 2**31


@dataclass(frozen=True)
class Geometry:
    """Where the voxels of a stored volume lie.

    Canonical order is RAS: to the right, to the front, to the head. Only where the volume is a
    single sagittal or coronal slice, that slice is the canonical "axial" one: its order is ASR or
    RSA, so that it is shown with the head at the top.

    Attributes:
        affine: (4, 4) from stored voxel indices to RAS, mm.
        shape: of the stored array.
        measured: whether the voxels' sizes are known; if not, the affine counts in voxels.
    """

    affine: NDArray[np.float64]
    shape: tuple[int, int, int]
    measured: bool = True

    @property
    def _orientation(self) -> NDArray[np.float64]:
        from nibabel.orientations import io_orientation  # a second, which few readers need

        nearest = np.asarray(io_orientation(self.affine))
        single = [int(nearest[axis, 0]) for axis in range(3) if self.shape[axis] == 1]
        if single == [0]:
            rows = [1, 2, 0, 3]
        elif single == [1]:
            rows = [0, 2, 1, 3]
        else:
            return nearest
        return np.asarray(io_orientation(self.affine[rows]))

    @property
    def canonical_shape(self) -> tuple[int, int, int]:
        """Shape of the array in canonical order."""
        shape = [0, 0, 0]
        for axis, (target, _) in enumerate(self._orientation):
            shape[int(target)] = self.shape[axis]
        return shape[0], shape[1], shape[2]

    @property
    def canonical_affine(self) -> NDArray[np.float64]:
        """(4, 4) from canonical voxel indices to RAS, mm."""
        from nibabel.orientations import inv_ornt_aff

        return np.asarray(self.affine @ inv_ornt_aff(self._orientation, self.shape))

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel size along the canonical axes (right, anterior, superior), mm."""
        x, y, z = (float(size) for size in np.linalg.norm(self.canonical_affine[:3, :3], axis=0))
        return x, y, z

    def to_canonical(self, stored: NDArray[Any]) -> NDArray[Any]:
        """A stored array in canonical order; a view of it."""
        from nibabel.orientations import apply_orientation

        return np.asarray(apply_orientation(stored, self._orientation))

    def from_canonical(self, canonical: NDArray[Any]) -> NDArray[Any]:
        """A canonical array in the stored order."""
        from nibabel.orientations import apply_orientation, axcodes2ornt, ornt_transform

        back = ornt_transform(axcodes2ornt("RAS"), self._orientation)
        return np.asarray(apply_orientation(canonical, back))


@dataclass(frozen=True, eq=False)
class Volume:
    """A scan or a label map in canonical (RAS) order.

    Attributes:
        array: (X, Y, Z), a view in any memory order: an integer type where the file has one, else
            float32; for a label map the smallest unsigned type that holds it.
        geometry: of the stored file.
        path: the file.
        warnings: sentences about what looks wrong, which do not name the file.
    """

    array: NDArray[Any]
    geometry: Geometry
    path: Path
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Stored:
    """What a reader found: voxels in the file's order, and where they lie as far as it says.

    Attributes:
        array: (X, Y, Z), in fewer or more axes where the others are of length 1.
        affine: (4, 4) from voxel indices to RAS, mm; None where the file tells no directions.
        spacing: mm; None where it tells none.
        shown: whether it is a picture, whose first axis runs to the right of whoever looks at it,
            and whose second axis runs down.
        told: whether the format must tell the geometry, so that an unlikely one is meant (DICOM).
        warnings: sentences about what looks wrong, which do not name the file.
    """

    array: NDArray[Any]
    affine: NDArray[np.float64] | None
    spacing: tuple[float, ...] | None = None
    shown: bool = False
    told: bool = False
    warnings: tuple[str, ...] = ()


def lps_affine(
    directions: NDArray[np.float64], spacing: Sequence[float], origin: Sequence[float]
) -> NDArray[np.float64]:
    """The affine (4, 4) to RAS, mm, of an image whose header counts from LPS, as ITK's do.

    Args:
        directions: (n, n), one axis in each column; n = 2 is a slice across z. Of more than three
            axes the first three count.
        spacing: (n,), mm.
        origin: (n,), mm.
    """
    count = min(len(directions), 3)
    affine = np.eye(4)
    affine[:count, :count] = directions[:count, :count] * np.asarray(spacing)[:count]
    affine[:count, 3] = np.asarray(origin)[:count]
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine


def display(plane: NDArray[Any]) -> NDArray[Any]:
    """A canonical axial plane (X, Y) as (H, W), as a radiologist sees it.

    Row 0 is anterior, column 0 is the patient's right.
    """
    return np.ascontiguousarray(plane[::-1, ::-1].T)


def check_shape(shape: Sequence[int], path: Path) -> None:
    """One 3D volume, or one slice, whichever of the axes it lacks.

    Raises:
        CaseError: it is neither.
    """
    if any(size != 1 for size in shape[3:]):
        raise CaseError(
            f"has the shape {times(shape)}; give one 3D volume (one time point, or one label map "
            "instead of a channel for each organ).",
            path,
        )
    if sum(size > 1 for size in shape[:3]) < 2:
        raise CaseError(f"has the shape {times(shape)}; give one 3D volume or one slice.", path)


def check_size(shape: Sequence[int], itemsize: int, path: Path, most: int | None = None) -> None:
    """A header must not make us take memory that its file cannot fill, or that nobody has.

    Args:
        shape: that the header claims.
        itemsize: bytes of a voxel as stored.
        path: the file.
        most: bytes that the file can hold, uncompressed; None where that is unknown.

    Raises:
        CaseError: it claims more.
    """
    count = 1
    for size in shape:
        count *= int(size)
    if min(shape) < 1 or (most is not None and count * itemsize > most):
        raise CaseError(
            f"its header claims {times(shape)} voxels, more than the file can hold; it is damaged "
            "or truncated, copy it again.",
            path,
        )
    if count > MAX_VOXELS or count * itemsize > MAX_BYTES:
        raise CaseError(
            f"its header claims {times(shape)} voxels of {itemsize} bytes, more than is read "
            f"({MAX_BYTES // 2**20} MiB); crop it, or store it in 16 bits.",
            path,
        )


def is_valid(affine: NDArray[np.float64]) -> bool:
    """Whether an affine is finite and not singular."""
    spatial = affine[:3, :3]
    if not np.isfinite(affine).all() or not np.isfinite(np.square(spatial)).all():
        return False
    sizes = np.linalg.norm(spatial, axis=0)
    return bool((sizes > 0).all() and abs(np.linalg.det(spatial / sizes)) >= 1e-3)


def check_affine(affine: NDArray[np.float64], path: Path) -> None:
    """Refuse an affine that no scanner makes.

    Raises:
        CaseError: it is singular, or its voxels are no patient's.
    """
    if not is_valid(affine):
        raise CaseError("its affine is singular; write a valid qform or sform.", path)
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    if sizes.max() > 100 or sizes.min() < 0.01:
        raise CaseError(
            f"its voxels measure {times(f'{size:.3g}' for size in sizes)} mm; correct the header "
            "(its units, too).",
            path,
        )


def fit_plane(affine: NDArray[np.float64], shape: Sequence[int]) -> NDArray[np.float64]:
    """The affine of a single slice, which needs no step to the next one: a missing step is 1 mm.

    Args:
        affine: (4, 4).
        shape: of the stored array.
    """
    single = [axis for axis in range(3) if axis >= len(shape) or shape[axis] == 1]
    if len(single) != 1 or not np.isfinite(affine).all():
        return affine
    (axis,) = single
    if np.linalg.norm(affine[:3, axis]) > 0:
        return affine
    normal = np.cross(affine[:3, (axis + 1) % 3], affine[:3, (axis + 2) % 3])
    fitted = affine.copy()
    with np.errstate(all="ignore"):
        fitted[:3, axis] = normal / np.linalg.norm(normal)
    return fitted


def oriented_affine(codes: str, spacing: Sequence[float]) -> NDArray[np.float64]:
    """The affine (4, 4) of an array whose axes lead to where ``codes`` say; its origin is 0.

    Args:
        codes: such as ``LPS``: the first axis leads to the left, the second to the back, the third
            to the head.
        spacing: (3,), mm.
    """
    affine = np.eye(4)
    from nibabel.orientations import axcodes2ornt

    for axis, ((row, sign), size) in enumerate(zip(axcodes2ornt(codes), spacing, strict=True)):
        affine[:3, axis] = 0
        affine[int(row), axis] = sign * size
    return affine


def is_of_an_array(affine: NDArray[np.float64], shape: Sequence[int]) -> bool:
    """Whether an affine's place is what libraries write when nobody told them one.

    Its axes are x, y and z; the first voxel, or the middle of the volume, lies at 0.

    Args:
        affine: (4, 4).
        shape: of the stored array.
    """
    steps = np.abs(np.diag(affine)[:3])
    turned = np.abs(affine[:3, :3] - np.diag(np.diag(affine)[:3])).max() > 1e-6 * steps.max()
    middle = affine[:3, :3] @ ((np.array(shape) - 1) / 2) + affine[:3, 3]
    at_zero = min(np.abs(affine[:3, 3]).max(), np.abs(middle).max()) < 1e-3
    return not turned and bool(at_zero)


def times(sizes: Iterable[object]) -> str:
    return " × ".join(map(str, sizes))


def first_line(error: BaseException, path: Path) -> str:
    text = str(error).replace(str(path), path.name).strip() or type(error).__name__
    return text.splitlines()[0].rstrip(".")
