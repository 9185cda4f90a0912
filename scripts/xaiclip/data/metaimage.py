"""MetaImage files (.mha, .mhd)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from xaiclip.data.geometry import Stored, lps_affine
from xaiclip.data.headers import (
    MAX_HEADER,
    Header,
    named_file,
    numbered_files,
    read_described,
    understood,
)
from xaiclip.data.voxels import open_regular
from xaiclip.errors import CaseError

_TYPES = {
    "CHAR": "i1",
    "UCHAR": "u1",
    "SHORT": "i2",
    "USHORT": "u2",
    "INT": "i4",
    "UINT": "u4",
    "LONG": "i4",
    "ULONG": "u4",
    "LONG_LONG": "i8",
    "ULONG_LONG": "u8",
    "FLOAT": "f4",
    "DOUBLE": "f8",
}
_LINE = re.compile(r"\s*([^=:]*[^=:\s])\s*[=:]\s*(.*?)\s*")
_MATRIX = ("transformmatrix", "rotation", "orientation")
_OFFSET = ("offset", "origin", "position")


def read_metaimage(path: Path) -> Stored:
    """The voxels of a MetaImage.

    Raises:
        CaseError: it is damaged, or of a kind that is not read.
    """
    return read_described(read_header(path))


def read_header(path: Path) -> Header:
    """What a header says; no voxel is read.

    Raises:
        CaseError: it is damaged, names data elsewhere, or says what is not understood.
    """
    with open_regular(path) as stream:
        fields, after = _fields(stream, path)
        with understood(path, "damaged or not a MetaImage's; write the file again."):
            return _parse(fields, after, stream, path)


def _fields(stream: IO[bytes], path: Path) -> tuple[dict[str, str], int]:
    """Keys in lower case, and where the line of the data file, the last one, ends."""
    fields: dict[str, str] = {}
    while stream.tell() < MAX_HEADER:
        line = stream.readline(MAX_HEADER)
        if not line:
            break
        text = line.decode("utf-8", "surrogateescape").rstrip("\r\n")
        if not text.strip():
            continue
        match = _LINE.fullmatch(text)
        if match is None:
            break
        key = match[1].lower()
        if key in fields:
            raise CaseError(f"its header says '{key}' twice; take one out.", path)
        fields[key] = match[2]
        if key == "elementdatafile":
            return fields, stream.tell()
    raise CaseError(
        "damaged, or not a MetaImage: its header names no data; write the file again.", path
    )


def _parse(fields: dict[str, str], after: int, stream: IO[bytes], path: Path) -> Header:
    count = int(fields["ndims"])
    shape = tuple(int(size) for size in fields["dimsize"].split())
    if len(shape) != count or not 1 <= count <= 7:
        raise ValueError("sizes")
    channels = int(fields.get("elementnumberofchannels", "1"))
    if channels != 1:
        raise CaseError(f"has {channels} values in each voxel; give one channel.", path)
    if _floats(fields, "elementtointensityfunctionslope", 1) != [1] or _floats(
        fields, "elementtointensityfunctionoffset", 0
    ) != [0]:
        raise CaseError("its voxels are scaled by its header; write them unscaled.", path)
    if fields.get("distanceunits", "mm").lower() not in ("mm", "?", ""):
        raise CaseError("its header is not in mm; write it in mm.", path)
    name = fields["elementtype"].upper().removeprefix("MET_")
    big = any(_true(fields, key) for key in ("binarydatabyteordermsb", "elementbyteordermsb"))
    compressed = _true(fields, "compresseddata")
    encoding = "zlib" if compressed else "raw" if _true(fields, "binarydata", "true") else "ascii"
    skip = int(fields.get("headersize", "0"))
    files = _files(fields["elementdatafile"], count, stream, path)
    if skip < -1 or (files is not None and skip and (compressed or len(files) > 1)):
        raise CaseError("its 'HeaderSize' is not understood; write the file again.", path)
    return Header(
        path,
        shape,
        np.dtype((">" if big else "<") + _TYPES[name]),
        encoding,
        files or [],
        after if files is None else skip,
        0,
        0,
        *_place(fields, count, path),
    )


def _floats(fields: dict[str, str], key: str, default: float) -> list[float]:
    return [float(value) for value in fields.get(key, str(default)).split()]


def _true(fields: dict[str, str], key: str, default: str = "false") -> bool:
    return fields.get(key, default)[:1].upper() in ("T", "Y", "1")


def _files(value: str, count: int, stream: IO[bytes], path: Path) -> list[Path] | None:
    """The data files; None where the voxels follow the header."""
    words = value.split()
    if value.upper() == "LOCAL":
        return None
    if words and words[0].upper() == "LIST":
        if len(words) > 1 and int(words[1].rstrip("dD")) != count - 1:
            raise CaseError("its list of data files is not one of slices; write one file.", path)
        rest = stream.read(MAX_HEADER).decode("utf-8", "surrogateescape")
        return [named_file(path, line.strip()) for line in rest.splitlines() if line.strip()]
    if "%" in value:
        return numbered_files(path, words)
    return [named_file(path, value)]


def _place(
    fields: dict[str, str], count: int, path: Path
) -> tuple[NDArray[np.float64] | None, tuple[float, ...] | None]:
    """Affine and spacing, as far as the header tells them."""
    text = fields.get("elementspacing", fields.get("elementsize"))
    spacing = None if text is None else tuple(float(size) for size in text.split())
    matrix = next((fields[key] for key in _MATRIX if key in fields), None)
    offset = next((fields[key] for key in _OFFSET if key in fields), None)
    if spacing is not None and len(spacing) != count:
        raise ValueError("spacing")
    if matrix is None:
        # 'AnatomicalOrientation' alone does not help: its letters are read as where the axes come
        # from by some, as where they lead to by others
        return None, spacing
    directions = np.array([float(value) for value in matrix.split()]).reshape(count, count).T
    origin = [0.0] * count if offset is None else [float(value) for value in offset.split()]
    if len(origin) != count:
        raise ValueError("offset")
    return lps_affine(directions, spacing or (1.0,) * count, origin), spacing
