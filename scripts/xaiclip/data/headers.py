"""What the header of a MetaImage or NRRD file says, and the voxels that it tells of.

Both are read here and not by ITK: one parser decides which files are opened, and how much of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xaiclip.data.geometry import Stored, check_shape, check_size
from xaiclip.data.voxels import (
    ascii_blocks,
    blocks_of,
    largest,
    open_regular,
    read_voxels,
    unpacked,
)
from xaiclip.errors import CaseError

#: A longer header is refused: what it says must be read whole.
MAX_HEADER = 2**20


@dataclass(frozen=True, eq=False)
class Header:
    """Where the voxels stand in which files, and where they lie in the patient.

    Attributes:
        path: of the header.
        shape: of the array, the first axis fastest.
        dtype: of the voxels, with their byte order.
        encoding: ``raw``, ``zlib``, ``gzip``, ``bzip2`` or ``ascii``.
        files: the data files, in order; none where the voxels follow the header.
        start: where the voxels begin in their file, bytes; -1: they end the file.
        lines: that are passed over after ``start``.
        skip: bytes that are passed over after unpacking.
        affine: (4, 4) from voxel indices to RAS, mm; None where the header tells no directions.
        spacing: mm; None where the header tells none.
    """

    path: Path
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    encoding: str
    files: list[Path]
    start: int
    lines: int
    skip: int
    affine: NDArray[np.float64] | None
    spacing: tuple[float, ...] | None


@contextmanager
def understood(path: Path, words: str) -> Iterator[None]:
    """A header that says what cannot be costs its case.

    Raises:
        CaseError: "its header is …", with ``words``.
    """
    try:
        yield
    except CaseError:
        raise
    except (ValueError, KeyError, IndexError, OverflowError) as error:
        raise CaseError(f"its header is {words}", path) from error


def read_described(header: Header) -> Stored:
    """The voxels that a header tells of.

    Raises:
        CaseError: they are damaged, or too many.
    """
    path, dtype = header.path, header.dtype
    check_shape(header.shape, path)
    size = sum(file.stat().st_size for file in header.files or [path])
    check_size(header.shape, dtype.itemsize, path)
    itemsize = 1 if header.encoding == "ascii" else dtype.itemsize
    check_size(header.shape, itemsize, path, largest(size, header.encoding))
    try:
        voxels = read_voxels(_blocks(header), header.shape, dtype)
    except CaseError:
        raise
    except (ValueError, OSError, EOFError) as error:
        raise CaseError(f"damaged or truncated ({error}); copy it again.", path) from error
    # a slice that tells no directions lies as viewers show it
    return Stored(voxels, header.affine, header.spacing, shown=len(header.shape) == 2)


def _blocks(header: Header) -> Iterator[bytes]:
    """The bytes of the voxels, in order."""
    for file in header.files or [header.path]:
        with open_regular(file) as stream:
            size = int(np.prod(header.shape)) * header.dtype.itemsize
            stream.seek(header.start if header.start >= 0 else max(_length(file) - size, 0))
            for _ in range(header.lines):
                stream.readline()
            if header.encoding == "ascii":
                yield from ascii_blocks(blocks_of(stream), header.dtype)
                continue
            left = header.skip
            for block in unpacked(stream, header.encoding):
                yield block[left:]
                left = max(left - len(block), 0)


def _length(file: Path) -> int:
    return file.stat().st_size


def named_file(path: Path, name: str) -> Path:
    """The data file that a header names, which must lie in its folder, or below it.

    Elsewhere lie other people's files, and devices that never end. Links are followed first.

    Raises:
        CaseError: it lies elsewhere, or is not there.
    """
    wanted = Path(name)
    if not name or "\0" in name or wanted.is_absolute() or ".." in wanted.parts:
        raise CaseError("its header names a data file in another folder; put them together.", path)
    file = path.parent / wanted
    try:
        target = file.resolve(strict=True)
    except (OSError, RuntimeError) as error:
        raise CaseError(
            "its header names a data file that is not there; put them together.", path
        ) from error
    if not target.is_relative_to(path.parent.resolve()) and not target.is_relative_to(
        path.resolve().parent
    ):
        raise CaseError("its header names a data file in another folder; put them together.", path)
    if not target.is_file():
        raise CaseError("its header names data that are no file; correct it.", path)
    return file


def numbered_files(path: Path, words: Sequence[str]) -> list[Path]:
    """The data files of a header's pattern: ``slice%03d.raw 1 10 1`` (first, last, step).

    Raises:
        CaseError: it is another pattern, or a file of it lies elsewhere.
    """
    try:
        name, first, last, step = words[0], int(words[1]), int(words[2]), int(words[3])
        digits = re.fullmatch(r"[^%]*%0?(\d?)d[^%]*", name)
        numbers = range(first, last + (1 if step > 0 else -1), step)
        if digits is None or len(words) > 5 or len(numbers) > 10**4:
            raise ValueError("pattern")
        names = [name % number for number in numbers]
    except (ValueError, IndexError) as error:
        raise CaseError(
            "its header's pattern of data files is not understood; write one file.", path
        ) from error
    return [named_file(path, name) for name in names]
