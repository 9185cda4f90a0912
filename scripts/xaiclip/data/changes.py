"""What tells that a file was changed or is another one's copy, without reading all of it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from xaiclip.data.inputs import input_files
from xaiclip.files import sha256

_BLOCK = 1 << 16


def signature(*paths: str | os.PathLike[str] | None) -> str | None:
    """Names, sizes and times of every file that reading ``paths`` touches, as 16 hex digits.

    It changes if a file is replaced, also by an older one, and if one is added to a folder. The
    paths themselves do not count. None if there is no path.
    """
    given = [Path(path) for path in paths if path]
    if not given:
        return None
    digest = hashlib.sha256()
    for path in given:
        for file in input_files(path):
            try:
                stat = os.stat(file)
                state = f"{stat.st_size} {stat.st_mtime_ns}"
            except OSError:
                state = "missing"
            name = os.path.relpath(file, path if path.is_dir() else path.parent)
            digest.update(f"{name}\0{state}\n".encode(errors="surrogateescape"))
        digest.update(b"\n")
    return digest.hexdigest()[:16]


def twins(first: Iterable[Path], second: Iterable[Path]) -> tuple[Path, Path] | None:
    """A scan of ``first`` and one of ``second`` that hold the same bytes.

    Only files of equal size are opened, and only where samples of them agree are they read whole.
    Empty files, and those that cannot be read, are left to whoever reads them.
    """
    sides = [list(first), list(second)]
    keys: list[dict[Path, Any]] = []
    for look in (_sizes, _sample, _content):
        keys = [{path: _quietly(look, path) for path in side} for side in sides]
        shared = set(keys[0].values()) & set(keys[1].values()) - {None}
        sides = [[path for path in side if side[path] in shared] for side in keys]
    for one in sides[0]:
        for other in sides[1]:
            if keys[0][one] == keys[1][other]:
                return one, other
    return None


def _quietly(look: Callable[[list[Path]], Any], path: Path) -> Any:
    try:
        return look([file for file in input_files(path) if file.is_file()])
    except OSError:
        return None


def _sizes(files: list[Path]) -> tuple[int, ...] | None:
    sizes = tuple(sorted(file.stat().st_size for file in files))
    return sizes if any(sizes) else None


def _sample(files: list[Path]) -> bytes:
    """Start, middle and end of the largest file; of several, whichever comes first by these."""
    sizes = [file.stat().st_size for file in files]
    return min(
        _ends(file, size) for file, size in zip(files, sizes, strict=True) if size == max(sizes)
    )


def _ends(file: Path, size: int) -> bytes:
    digest = hashlib.sha256()
    with open(file, "rb") as stream:
        for start in (0, size // 2, max(size - _BLOCK, 0)):
            stream.seek(start)
            digest.update(stream.read(_BLOCK))
    return digest.digest()


def _content(files: list[Path]) -> tuple[str, ...]:
    """Checksums of the files, whatever they are called."""
    return tuple(sorted(sha256(file) for file in files))
