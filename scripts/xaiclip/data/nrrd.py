"""NRRD files (.nrrd, .nhdr)."""

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
    "i1": ("signed char", "int8", "int8_t"),
    "u1": ("uchar", "unsigned char", "uint8", "uint8_t"),
    "i2": ("short", "short int", "signed short", "signed short int", "int16", "int16_t"),
    "u2": ("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"),
    "i4": ("int", "signed int", "int32", "int32_t"),
    "u4": ("uint", "unsigned int", "uint32", "uint32_t"),
    "i8": ("longlong", "long long", "long long int", "signed long long", "int64", "int64_t"),
    "u8": ("ulonglong", "unsigned long long", "unsigned long long int", "uint64", "uint64_t"),
    "f4": ("float",),
    "f8": ("double",),
}
_DTYPES = {name: code for code, names in _TYPES.items() for name in names}
_ENCODINGS = {
    "raw": "raw",
    "gzip": "gzip",
    "gz": "gzip",
    "bzip2": "bzip2",
    "bz2": "bzip2",
    "ascii": "ascii",
    "text": "ascii",
    "txt": "ascii",
}
#: Signs of the axes, seen from LPS; a space without anatomy is none.
_SPACES = {
    "left-posterior-superior": (1, 1, 1),
    "lps": (1, 1, 1),
    "right-anterior-superior": (-1, -1, 1),
    "ras": (-1, -1, 1),
    "left-anterior-superior": (1, -1, 1),
    "las": (1, -1, 1),
}


def read_nrrd(path: Path) -> Stored:
    """The voxels of a NRRD file.

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
        if re.fullmatch(rb"NRRD\d{4}\s*", stream.readline(64)) is None:
            raise CaseError("damaged, or not a NRRD file; write it again.", path)
        fields, listed = _fields(stream, path)
        with understood(path, "damaged or says what is not understood; write the file again."):
            return _parse(fields, listed, stream.tell(), path)


def _fields(stream: IO[bytes], path: Path) -> tuple[dict[str, str], list[str]]:
    """Fields in lower case without spaces, and the names below ``data file: LIST``."""
    fields: dict[str, str] = {}
    listed: list[str] = []
    while stream.tell() < MAX_HEADER:
        line = stream.readline(MAX_HEADER)
        text = line.decode("utf-8", "surrogateescape").rstrip("\r\n")
        if not text.strip():  # an empty line, or the end of the file
            return fields, listed
        if fields.get("datafile", "").upper().startswith("LIST"):
            listed.append(text.strip())
            continue
        if text.startswith("#"):
            continue
        name, colon, value = text.partition(":")
        if not colon:
            break
        if value.startswith("="):  # a key of the user's own
            continue
        field = re.sub(r"\s", "", name).lower()
        if field in fields:
            raise CaseError(f"its header says '{field}' twice; take one out.", path)
        fields[field] = value.strip()
    raise CaseError("its header is damaged or endless; write the file again.", path)


def _parse(fields: dict[str, str], listed: list[str], start: int, path: Path) -> Header:
    count = int(fields["dimension"])
    shape = tuple(int(size) for size in fields["sizes"].split())
    if len(shape) != count or not 1 <= count <= 8:
        raise ValueError("sizes")
    code = _DTYPES[fields["type"].lower()]
    encoding = fields["encoding"].lower()
    if encoding not in _ENCODINGS:
        raise CaseError("its encoding is not read; write it raw or with gzip.", path)
    order = {"little": "<", "big": ">", "": "" if code[1] == "1" else None}
    endian = order[fields.get("endian", "").lower()]
    if endian is None and _ENCODINGS[encoding] != "ascii":
        raise CaseError("its header tells no 'endian'; write the file again.", path)
    files = _files(fields.get("datafile"), listed, count, path)
    axes = _axes(fields, shape, path)
    start = 0 if files else start
    skip = int(fields.get("byteskip", "0"))
    if skip == -1 and encoding == "raw":
        start, skip = -1, 0
    if skip < 0:
        raise ValueError("byte skip")
    return Header(
        path,
        tuple(shape[axis] for axis in axes),
        np.dtype((endian or "<") + code),
        _ENCODINGS[encoding],
        files,
        start,
        int(fields.get("lineskip", "0")),
        skip,
        *_place(fields, axes, count, path),
    )


def _files(value: str | None, listed: list[str], count: int, path: Path) -> list[Path]:
    """The data files; none where the voxels follow the header."""
    if value is None:
        if path.name.lower().endswith(".nhdr"):
            raise CaseError("its header names no data file; write the file again.", path)
        return []
    words = value.split()
    if words and words[0].upper() == "LIST":
        if len(words) > 1 and int(words[1]) != count - 1:
            raise CaseError("its list of data files is not one of slices; write one file.", path)
        return [named_file(path, name) for name in listed]
    if "%" in value:
        return numbered_files(path, words)
    return [named_file(path, value)]


def _axes(fields: dict[str, str], shape: tuple[int, ...], path: Path) -> list[int]:
    """The axes of space: those without a direction must hold one value."""
    vectors = _vectors(fields.get("spacedirections", ""))
    if vectors and len(vectors) != len(shape):
        raise ValueError("directions")
    kinds = fields.get("kinds", "").lower().split()
    other = [vector is None for vector in vectors] or [
        kind in ("list", "vector", "none") or "color" in kind or "matrix" in kind
        for kind in (kinds if len(kinds) == len(shape) else ())
    ]
    for axis, dropped in enumerate(other):
        if dropped and shape[axis] != 1:
            raise CaseError(f"has {shape[axis]} values in each voxel; give one channel.", path)
    return [axis for axis in range(len(shape)) if not (other and other[axis])]


def _vectors(text: str) -> list[list[float] | None]:
    """``(1,0,0) none (0,1,0)`` as lists of numbers; None for ``none``."""
    found = re.findall(r"\(([^()]*)\)|(none)", text, re.I)
    return [None if none else [float(v) for v in inner.split(",")] for inner, none in found]


def _place(
    fields: dict[str, str], axes: list[int], count: int, path: Path
) -> tuple[NDArray[np.float64] | None, tuple[float, ...] | None]:
    """Affine and spacing, as far as the header tells them."""
    units = re.findall(r'"([^"]*)"', fields.get("spaceunits", fields.get("units", "")))
    if any(unit.lower() not in ("mm", "millimeter", "millimeters", "", "???") for unit in units):
        raise CaseError("its header is not in mm; write it in mm.", path)
    vectors = _vectors(fields.get("spacedirections", ""))
    if not vectors:
        sizes = fields.get("spacings", "").split()
        spacing = tuple(float(sizes[axis]) for axis in axes) if len(sizes) == count else None
        return None, None if spacing is None or np.isnan(spacing).any() else spacing
    columns = np.array([vectors[axis] for axis in axes], dtype=np.float64).T
    sizes = np.linalg.norm(columns, axis=0)
    spacing = tuple(float(size) for size in sizes)
    signs = _SPACES.get(fields.get("space", "").lower().removesuffix("-time"))
    if fields.get("spacedimension") in ("2", "4") and "space" not in fields:
        signs = (1, 1, 1)  # as ITK writes them, for want of a name
    if signs is None:
        return None, spacing
    if "spaceorigin" in fields:
        (origin,) = _vectors(fields["spaceorigin"])
    else:
        origin = [0.0] * len(columns)
    turn = np.diag([*signs, 1][: len(columns)]).astype(np.float64)
    with np.errstate(all="ignore"):
        directions = turn @ columns / sizes
    return lps_affine(directions, spacing, turn @ np.array(origin)), spacing
