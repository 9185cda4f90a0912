"""Voxels out of files: in blocks, never more than a header may claim, in a narrow type."""

from __future__ import annotations

import bz2
import gzip
import os
import stat
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from xaiclip.errors import CaseError

#: Largest compression of a deflate stream; a header that claims more than that is lying.
MAX_RATIO = 1032
#: bzip2 packs a block of 900 kB of one value into 45 bytes.
MAX_BZIP2_RATIO = 2**15
#: Bytes that may follow the voxels of a file; more is a mistake, or an attack.
MAX_TRAILING = 2**20

_BLOCK = 2**22


def kept_type(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The type in which voxels are kept: the file's own, single precision for wider numbers."""
    if dtype.kind in "iub":
        return np.dtype(f"{'u' if dtype.kind == 'b' else dtype.kind}{dtype.itemsize}")
    return np.dtype(np.float32)


def read_voxels(
    blocks: Iterable[bytes],
    shape: Sequence[int],
    dtype: np.dtype[Any],
    scale: tuple[float, float] | None = None,
) -> NDArray[Any]:
    """Voxels of a stream, the first axis fastest.

    All blocks are read, so that a checksum at a stream's end is met.

    Args:
        blocks: of bytes, of any length.
        shape: of the array.
        dtype: as stored, with its byte order.
        scale: slope and intercept, or None for the stored values.

    Returns:
        In Fortran order and native byte order: of the stored type if it is an integer and not
        scaled, else float32.

    Raises:
        ValueError: the stream ends too early, or goes on long after the voxels.
    """
    kept = kept_type(dtype) if scale is None else np.dtype(np.float32)
    voxels = np.empty(int(np.prod(shape)), kept)
    filled, length, rest = 0, 0, b""
    for block in blocks:
        length += len(block)
        block = rest + block if rest else block
        count = min(len(block) // dtype.itemsize, voxels.size - filled)
        stored = np.frombuffer(block, dtype, count)
        if scale is None:
            with np.errstate(over="ignore", invalid="ignore"):
                voxels[filled : filled + count] = stored
        else:
            with np.errstate(over="ignore", invalid="ignore"):
                voxels[filled : filled + count] = stored * np.float64(scale[0]) + scale[1]
        filled += count
        rest = block[count * dtype.itemsize :] if filled < voxels.size else b""
        if length > voxels.size * dtype.itemsize + MAX_TRAILING:
            raise ValueError("it goes on long after its voxels")
    if filled < voxels.size:
        raise ValueError(f"{length} bytes instead of {voxels.size * dtype.itemsize}")
    return voxels.reshape(tuple(shape), order="F")


def blocks_of(stream: IO[bytes]) -> Iterator[bytes]:
    """A stream from where it stands to its end."""
    while block := stream.read(_BLOCK):
        yield block


def inflated(stream: IO[bytes]) -> Iterator[bytes]:
    """A deflate stream, with a header of zlib or of gzip, unpacked in blocks.

    Raises:
        ValueError: it is damaged or ends too early.
    """
    unpack = zlib.decompressobj(wbits=47)
    while not unpack.eof:
        packed = unpack.unconsumed_tail or stream.read(_BLOCK)
        if not packed:
            raise ValueError("its compressed voxels end too early")
        try:
            yield unpack.decompress(packed, _BLOCK)
        except zlib.error as error:
            raise ValueError(str(error)) from error


def unpacked(stream: IO[bytes], encoding: str) -> Iterator[bytes]:
    """A stream unpacked from ``raw``, ``zlib``, ``gzip`` (of many members, too) or ``bzip2``."""
    if encoding == "zlib":
        return inflated(stream)
    if encoding == "gzip":
        return blocks_of(gzip.GzipFile(fileobj=stream))  # type: ignore[arg-type]
    if encoding == "bzip2":
        return blocks_of(bz2.BZ2File(stream))
    return blocks_of(stream)


def largest(size: int, encoding: str) -> int:
    """How many bytes a file of ``size`` bytes can hold, unpacked."""
    return size * {"raw": 1, "bzip2": MAX_BZIP2_RATIO}.get(encoding, MAX_RATIO)


@contextmanager
def open_regular(path: Path) -> Iterator[IO[bytes]]:
    """Open a file to read; a pipe or a device may never end, and opening one may hang.

    Raises:
        CaseError: it is no regular file, or may not be read.
    """
    try:
        number = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise CaseError("there is no such file; correct the path.", path) from None
    except OSError as error:
        raise CaseError(f"cannot be opened ({os.strerror(error.errno or 0)}).", path) from error
    with open(number, "rb") as stream:
        if not stat.S_ISREG(os.fstat(number).st_mode):
            raise CaseError("is no regular file; give one.", path)
        yield stream


def ascii_blocks(blocks: Iterable[bytes], dtype: np.dtype[Any]) -> Iterator[bytes]:
    """Numbers written as text, as bytes of ``dtype``.

    Raises:
        ValueError: other text.
    """
    rest = b""
    for block in blocks:
        text = rest + block
        cut = max(text.rfind(white) for white in (b" ", b"\n", b"\t", b"\r", b",")) + 1
        rest = text[cut:]
        if len(rest) > 100:
            raise ValueError("its voxels are no numbers")
        yield np.array(text[:cut].replace(b",", b" ").split(), dtype=dtype).tobytes()
    yield np.array(rest.split(), dtype=dtype).tobytes()
