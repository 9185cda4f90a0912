"""Reading NIfTI: one file, packed or not whatever its name says, or a pair of header and voxels."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from xaiclip.data.geometry import (
    Stored,
    check_shape,
    check_size,
    first_line,
    fit_plane,
    is_valid,
    times,
)
from xaiclip.data.voxels import blocks_of, largest, open_regular, read_voxels
from xaiclip.errors import CaseError

#: By their code in the header: how many mm a unit has. A unit that is not told is mm.
_UNITS = {1: 1000.0, 2: 1.0, 3: 0.001}
#: Extensions of a header are no longer than that, bytes.
MAX_OFFSET = 2**26
#: How much the sizes of voxels may differ that two fields of a header give.
_TOLERANCE = 0.02


def read_nifti(path: Path) -> Stored:
    """The voxels of a NIfTI file (or pair), in the stored type if it is an integer, else float32.

    The sform counts; the qform where there is no valid sform. They must not contradict each other
    or the voxel sizes. A pair of the older Analyze format is read, and tells no directions.

    Raises:
        CaseError: it is damaged, too large, or contradicts itself.
    """
    path, voxels = pair_of(path)
    with open_regular(path) as stream:
        header = _read_header(stream, path)
    shape, dtype, offset, scale = _layout(header, path, voxels == path)
    check_shape(shape, path)
    if dtype.kind not in "iuf":
        raise CaseError("its voxels are colours or complex; give one real number each.", path)
    with open_regular(voxels) as stream:
        size = voxels.stat().st_size
        most = largest(size, "gzip" if _is_packed(stream) else "raw")
        check_size(shape, dtype.itemsize, path, most)
        affine, spacing, warnings = _place(header, shape, path)
        try:
            blocks = _from(_opened(stream), offset)
            array = read_voxels(blocks, shape, dtype.newbyteorder(header.endianness), scale)
        except (ValueError, OSError, EOFError) as error:  # gzip's and zlib's are among them
            raise CaseError(
                f"damaged or truncated ({first_line(error, path)}); copy it again.", path
            ) from error
    return Stored(array, affine, spacing, warnings=warnings)


def pair_of(path: Path) -> tuple[Path, Path]:
    """The file of the header and that of the voxels: the same, but for ``.hdr`` and ``.img``."""
    if path.suffix.lower() not in (".hdr", ".img"):
        return path, path
    header, voxels = (".HDR", ".IMG") if path.suffix.isupper() else (".hdr", ".img")
    return path.with_suffix(header), path.with_suffix(voxels)


def _is_packed(stream: IO[bytes]) -> bool:
    packed = stream.read(2) == b"\x1f\x8b"
    stream.seek(0)
    return packed


def _opened(stream: IO[bytes]) -> Any:
    """The stream, unpacked if it is gzip's: a name may say another thing."""
    return gzip.GzipFile(fileobj=stream) if _is_packed(stream) else stream


def _read_header(stream: IO[bytes], path: Path) -> Any:
    try:
        head = _opened(stream).read(540)
        known: list[Any] = [nib.Nifti1Header, nib.Nifti2Header]
        if path.suffix.lower() == ".hdr":
            known = [nib.nifti1.Nifti1PairHeader, nib.nifti2.Nifti2PairHeader, nib.AnalyzeHeader]
        for kind in known:
            length = kind.template_dtype.itemsize
            if len(head) >= length and kind.may_contain_header(head):
                return kind(head[:length])
        raise ValueError("its header is none")
    except Exception as error:  # a damaged header raises nearly anything
        raise CaseError(
            f"not a readable NIfTI file ({first_line(error, path)}); copy it again, or convert it.",
            path,
        ) from error


def _layout(
    header: Any, path: Path, single: bool
) -> tuple[tuple[int, ...], np.dtype[Any], int, tuple[float, float] | None]:
    """Shape, type, offset of the voxels in their file, and scale if there is one."""
    try:
        shape = tuple(int(size) for size in header.get_data_shape())
        dtype = np.dtype(header.get_data_dtype())
        slope, inter = header.get_slope_inter()
    except Exception as error:  # as above
        raise CaseError(
            f"not a readable NIfTI file ({first_line(error, path)}); copy it again, or convert it.",
            path,
        ) from error
    offset = float(header["vox_offset"])
    if not (header.template_dtype.itemsize + 4 if single else 0) <= offset <= MAX_OFFSET:
        raise CaseError(
            "damaged (its voxels begin in its header, or far away); copy it again.", path
        )
    scale = None if slope is None else (float(slope), float(inter or 0))
    return shape, dtype, int(offset), None if scale == (1, 0) else scale


def _from(stream: Any, offset: int) -> Iterator[bytes]:
    """The blocks of a stream, from an offset on."""
    left = offset
    for block in blocks_of(stream):
        if left < len(block):
            yield block[left:]
        left = max(left - len(block), 0)


def _place(
    header: Any, shape: tuple[int, ...], path: Path
) -> tuple[NDArray[np.float64] | None, tuple[float, ...] | None, tuple[str, ...]]:
    """Affine (mm), spacing (mm), warnings; the first two as far as the header tells them."""
    analyze = not hasattr(header, "get_qform")
    unit = 1.0 if analyze else _UNITS.get(int(header["xyzt_units"]) & 7, 1.0)
    pixdim = np.abs(np.asarray(header["pixdim"][1:4], dtype=np.float64)) * unit
    told = bool(np.isfinite(pixdim).all() and (pixdim > 0).all() and (pixdim != 1).any())
    spacing = tuple(float(size) for size in pixdim) if told else None
    if analyze or not (header["sform_code"] > 0 or header["qform_code"] > 0):
        return None, spacing, ()
    sform = qform = None
    if header["sform_code"] > 0:
        sform = _valid(header.get_sform(), shape, unit)
    if header["qform_code"] > 0:
        try:
            qform = _valid(header.get_qform(), shape, unit)
        except Exception:  # a quaternion that is none; nibabel has errors of many kinds
            qform = None
    if sform is None:
        if qform is None:
            raise CaseError("its affine is singular; write a valid qform or sform.", path)
        return qform, spacing, ()
    warnings = []
    sizes = np.linalg.norm(sform[:3, :3], axis=0)
    if told and not _same_sizes(sform, pixdim, shape):
        raise CaseError(
            f"its sform makes the voxels {times(f'{size:.3g}' for size in sizes)} mm, its pixdim "
            f"{times(f'{size:.3g}' for size in pixdim)} mm; correct the one that is wrong.",
            path,
        )
    if qform is not None:
        cosines = np.sum(sform[:3, :3] * qform[:3, :3], axis=0)
        cosines /= sizes * np.linalg.norm(qform[:3, :3], axis=0)
        if cosines.min() < 0.5:
            raise CaseError(
                f"its sform and qform contradict each other ({_codes(sform)} against "
                f"{_codes(qform)}), so left and right are unknown; correct the wrong one.",
                path,
            )
        corner = np.array([*np.maximum(np.array(shape[:3] + (1,) * (3 - len(shape))) - 1, 0), 1])
        apart = max(
            float(np.linalg.norm(((sform - qform) @ place)[:3]))
            for place in (np.array([0, 0, 0, 1]), corner)
        )
        if apart > max(sizes):
            warnings.append(
                f"its sform and qform lie up to {apart:.3g} mm apart; the sform counts here, but "
                "not in every viewer."
            )
    return sform, spacing, tuple(warnings)


def _valid(affine: Any, shape: tuple[int, ...], unit: float) -> NDArray[np.float64] | None:
    """An affine in mm; None if it is singular."""
    affine = np.array(affine, dtype=np.float64)
    affine[:3] *= unit
    affine = fit_plane(affine, shape)
    return affine if is_valid(affine) else None


def _same_sizes(
    affine: NDArray[np.float64], pixdim: NDArray[np.float64], shape: tuple[int, ...]
) -> bool:
    """Whether an affine's voxels have the sizes of ``pixdim``, along the axes or between planes."""
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    between = 1 / np.linalg.norm(np.linalg.inv(affine[:3, :3]), axis=1)  # sheared: tilted gantry
    for axis, size in enumerate(pixdim):
        one = axis >= len(shape) or shape[axis] == 1  # the thickness of a slice is anyone's guess
        near = min(abs(sizes[axis] - size), abs(between[axis] - size))
        if not one and near > _TOLERANCE * size:
            return False
    return True


def _codes(affine: NDArray[np.float64]) -> str:
    return "".join(nib.aff2axcodes(affine))
