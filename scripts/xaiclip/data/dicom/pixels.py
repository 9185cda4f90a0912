"""The voxels of DICOM files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.pixels.utils import iter_pixels
from pydicom.uid import RLELossless

from xaiclip.data.dicom import decode
from xaiclip.data.dicom.files import Header
from xaiclip.data.dicom.frames import Frame
from xaiclip.data.geometry import MAX_VOXELS, check_size
from xaiclip.errors import CaseError

#: Of one plane: 8192 × 8192. Decoders take several times its bytes.
MAX_PLANE = 2**26
#: No compression of grey values gets further; a header that claims more than that is lying.
MAX_RATIO = 1032
#: A slope this close to 1 is 1 that was written with rounding: less than 0.01 apart for 16 bits.
ONE = 1e-7


def check_pixels(header: Header) -> None:
    """Compare what a header claims with what its file holds, before any memory is taken.

    Raises:
        CaseError: the file is cut off, or its pixels are of another number, or kind.
    """
    assert header.pixels is not None
    file, (start, length) = header.file, header.pixels
    frames = header.whole("NumberOfFrames", default=1)
    shape = (header.whole("Columns"), header.whole("Rows"), frames)
    bits, samples = header.whole("BitsAllocated"), header.whole("SamplesPerPixel", default=1)
    if bits not in (1, 8, 16, 32, 64) or samples not in (1, 3, 4):
        raise CaseError(
            f"has {samples} values of {bits} bits in each voxel; export it again.", file
        )
    compressed = header.syntax.is_encapsulated
    size = file.stat().st_size
    check_size(shape, max(1, bits // 8), file, size * (MAX_RATIO if compressed else 8))
    if shape[0] * shape[1] > MAX_PLANE:
        raise CaseError(f"claims planes of {shape[0]} × {shape[1]} pixels; export it again.", file)
    if compressed:
        _check_fragments(header, frames, shape[0] * shape[1] * max(1, bits // 8))
        return
    expected = -(-shape[0] * shape[1] * frames * samples * bits // 8)
    if start + max(length, expected) > size:
        raise CaseError("was cut off; copy it again.", file)
    if length not in (expected, expected + expected % 2):
        raise CaseError(
            f"has {length if length >= 0 else 'an unknown number of'} bytes of pixels where its "
            f"rows, columns and frames make {expected}; its header is damaged, export it again.",
            file,
        )


def _check_fragments(header: Header, frames: int, plane: int) -> None:
    """A compressed file holds whole fragments, at least one a frame, and the mark of their end."""
    assert header.pixels is not None
    most = 2 * plane + 2**12 if header.syntax == RLELossless else header.file.stat().st_size
    count, ends = -1, False  # the first item is the table of offsets
    with open(header.file, "rb") as stream:
        stream.seek(header.pixels[0])
        while len(head := stream.read(8)) == 8:
            length = int.from_bytes(head[4:], "little")
            if head[:4] == b"\xfe\xff\xdd\xe0":
                ends = True
                break
            if head[:4] != b"\xfe\xff\x00\xe0":
                break
            if count >= 0 and length > most:
                raise CaseError("its compressed frames are longer than their pixels.", header.file)
            stream.seek(length, os.SEEK_CUR)
            count += 1
    if not ends or count < frames:
        raise CaseError(
            "was cut off, or holds fewer frames than it claims; copy it again.", header.file
        )


def read_planes(frames: Sequence[Frame], path: Path) -> NDArray[Any]:
    """The voxels of planes, each by its own rescale slope and intercept.

    Args:
        frames: in their order.
        path: the file or folder, for messages.

    Returns:
        (columns, rows, frames): int16 if all values are whole and fit, else float32.

    Raises:
        CaseError: they cannot be decoded.
    """
    place = {(frame.file, frame.index): k for k, frame in enumerate(frames)}
    headers = list({frame.file: frame.header for frame in frames}.values())
    rows, columns = frames[0].shape
    check_size((rows, columns, len(frames)), 1, path, MAX_VOXELS)
    try:
        array: NDArray[Any] = np.zeros((len(frames), rows, columns), np.int16)
        for file, index, stored in decoded(headers):
            if (k := place.get((file, index))) is None:  # a copy of another frame
                continue
            values = _scaled(stored, frames[k].rescale)
            if array.dtype == np.int16 and not _fits(values):
                array = array.astype(np.float32)
            array[k] = values
    except MemoryError as error:
        raise CaseError("is too large for the memory of this machine.", path) from error
    return array.T


def decoded(headers: Iterable[Header]) -> Iterator[tuple[Path, int, NDArray[Any]]]:
    """The stored values of all frames of some files: file, index, and (rows, columns) of numbers.

    Raises:
        CaseError: a file cannot be decoded.
    """
    headers = list(headers)
    foreign = [header for header in headers if _needs_foreign(header)]
    with closing(_foreign(foreign)) as planes:
        for header in headers:
            count = header.whole("NumberOfFrames", default=1)
            source = planes if header in foreign else _own(header)
            for index in range(count):
                try:
                    plane = next(source, None)
                except MemoryError:
                    raise
                except Exception as error:  # decoders raise nearly anything
                    raise _undecodable(header) from error
                if plane is None or plane.shape != (header.whole("Rows"), header.whole("Columns")):
                    raise _undecodable(header)
                yield header.file, index, plane


def _undecodable(header: Header) -> CaseError:
    return CaseError(
        "its pixels cannot be decoded; copy it again, or convert it to an uncompressed file "
        "(dcmconv, gdcmconv --raw).",
        header.file,
    )


def _needs_foreign(header: Header) -> bool:
    return header.syntax.is_encapsulated and header.syntax != RLELossless


def _own(header: Header) -> Generator[NDArray[Any], None, None]:
    """The frames of a file that pydicom decodes itself."""
    if header.whole("BitsAllocated") == 1 and not header.syntax.is_encapsulated:
        yield from _bits(header)
        return
    yield from iter_pixels(header.file, raw=True, transfer_syntax_uid=header.syntax)


def _bits(header: Header) -> Iterator[NDArray[np.uint8]]:
    """Frames of one bit a pixel, which need not begin with a byte (pydicom wants that of files)."""
    assert header.pixels is not None
    shape = header.whole("Rows"), header.whole("Columns")
    size = shape[0] * shape[1]
    with open(header.file, "rb") as stream:
        for index in range(header.whole("NumberOfFrames", default=1)):
            first, skipped = divmod(index * size, 8)
            stream.seek(header.pixels[0] + first)
            packed = np.frombuffer(stream.read((skipped + size + 7) // 8), np.uint8)
            bits = np.unpackbits(packed, count=skipped + size, bitorder="little")
            yield bits[skipped:].reshape(shape)


def _foreign(headers: Sequence[Header]) -> Generator[NDArray[Any], None, None]:
    """The frames of files that a library in C++ decodes, in a process of its own.

    Damaged data can end that process, or take all its memory or time; then a frame is missing.
    """
    if not headers:
        return
    command = [sys.executable, "-P", decode.__file__]
    request = json.dumps([[str(header.file), header.syntax] for header in headers])
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            with process.stdin as stdin:
                stdin.write(request.encode())
            for header in headers:
                shape = header.whole("Rows"), header.whole("Columns")
                for _ in range(header.whole("NumberOfFrames", default=1)):
                    content = process.stdout.read(4 * shape[0] * shape[1])
                    if len(content) < 4 * shape[0] * shape[1]:
                        return
                    yield np.frombuffer(content, "<i4").reshape(shape)
        finally:
            process.kill()


def _scaled(stored: NDArray[Any], rescale: tuple[float, float] | None) -> NDArray[Any]:
    slope, intercept = rescale or (1.0, 0.0)
    if stored.dtype.kind in "iu" and abs(slope - 1) < ONE and intercept.is_integer():
        return stored.astype(np.int64) + int(intercept) if abs(intercept) < 2**31 else stored * 1.0
    return stored * np.float64(slope) + intercept


def _fits(values: NDArray[Any]) -> bool:
    limits = np.iinfo(np.int16)
    return values.dtype.kind == "i" and limits.min <= values.min() and values.max() <= limits.max
