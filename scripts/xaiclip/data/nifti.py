"""Reading NIfTI files."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from xaiclip.data.geometry import check_shape, check_size, first_line
from xaiclip.errors import CaseError

#: Largest compression of a gzip stream; a header that claims more than that is lying.
MAX_GZIP_RATIO = 1032
#: Bytes that may follow the voxels of a compressed file; more is a mistake, or an attack.
MAX_TRAILING = 2**20


def read_nifti(path: Path) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    try:
        image: Any = nib.load(path)
        shape = tuple(int(size) for size in image.shape)
        dtype = np.dtype(image.header.get_data_dtype())
        oriented = image.header["sform_code"] > 0 or image.header["qform_code"] > 0
    except Exception as error:  # a damaged header raises nearly anything
        raise CaseError(
            f"not a readable NIfTI file ({first_line(error, path)}); copy it again, or convert it.",
            path,
        ) from error
    check_shape(shape, path)
    if dtype.kind not in "iuf":
        raise CaseError("its voxels are colours or complex; give one real number each.", path)
    size = path.stat().st_size
    compressed = path.name.lower().endswith(".gz")
    check_size(shape, dtype.itemsize, path, size * (MAX_GZIP_RATIO if compressed else 1))
    if not oriented:
        raise CaseError(
            "has neither sform nor qform, so left and right are unknown; write one.", path
        )
    try:
        if compressed:
            end = int(image.dataobj.offset) + int(np.prod(shape)) * dtype.itemsize
            _check_stream(path, end)
        stored = image.get_fdata(dtype=np.float32, caching="unchanged")
    except Exception as error:  # as above
        raise CaseError(
            f"damaged or truncated ({first_line(error, path)}); copy it again.", path
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
