"""What a scan is on disk: its checksum, and the memory that reading it takes."""

from __future__ import annotations

import gzip
import os
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from xaiclip.data.inputs import input_files
from xaiclip.errors import CaseError, ConfigError
from xaiclip.files import files_sha256, sha256

#: Memory of Python and the libraries, MB; and of reading a scan with its label, bytes a voxel
#: (measured: 37 for MR in floating point, 17 for CT in whole numbers).
BASE_MB, BYTES_A_VOXEL = 500, 40
#: No job asks for more than that because of what a header claims.
MOST_MB = 64_000


def checksum(path: str | os.PathLike[str]) -> str | None:
    """SHA-256 of a scan: of a file, or of all files that reading it touches, with their names.

    None where that cannot be told, because the scan cannot be read either.
    """
    path = Path(path)
    try:
        files = list(input_files(path))
        if files == [path]:
            return sha256(path)
        return files_sha256(files, path if path.is_dir() else path.parent)
    except (OSError, CaseError, ConfigError):
        return None


def reading_mb(
    images: Iterable[str | os.PathLike[str]], slices: Mapping[str, Any] | None = None
) -> int:
    """Memory, MB, that it takes to read scans one after the other, with their labels.

    Args:
        images: files or folders; what is not there, or not readable, counts nothing.
        slices: the slice policy; ``all`` keeps a share of every scan until the batch is written.
    """
    voxels = [_voxels(Path(path)) for path in images]
    kept = 0.0
    if slices and slices.get("policy") == "all":
        kept = 2 * sum(voxels) / max(1, slices.get("every") or 1)  # image and label, a byte each
    most = BYTES_A_VOXEL * max(voxels, default=0) + kept
    return int(min(MOST_MB, BASE_MB + most / 1e6))


def _voxels(path: Path) -> int:
    """Voxels of a scan: as a NIfTI header has it, else at most one for each byte of its files."""
    try:
        if path.name.lower().endswith((".nii", ".nii.gz")) and path.is_file():
            return _nifti_voxels(path)
        return sum(os.stat(file).st_size for file in input_files(path))
    except (OSError, EOFError, ValueError, struct.error, CaseError):
        return 0


def _nifti_voxels(path: Path) -> int:
    with open(path, "rb") as stream:
        head = stream.read(64)
        if head[:2] == b"\x1f\x8b":
            stream.seek(0)
            with gzip.open(stream) as unpacked:
                head = unpacked.read(64)
    for order in "<>":
        size = struct.unpack_from(f"{order}i", head)[0]
        if size in (348, 540):
            layout, start = ("8h", 40) if size == 348 else ("6q", 16)
            rank, *sizes = struct.unpack_from(order + layout, head, start)
            voxels = 1
            for side in sizes[: max(0, min(rank, 4))]:
                voxels *= max(1, side)
            return voxels
    return 0
