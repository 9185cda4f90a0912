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
        for name, state in sorted(_states(path).items()):
            size, changed = state or ("", "missing")
            digest.update(f"{name}\0{size} {changed}\n".encode(errors="surrogateescape"))
        digest.update(b"\n")
    return digest.hexdigest()[:16]


def _states(path: Path) -> dict[str, tuple[int, int] | None]:
    """Size and time of every file by its name below (or beside) ``path``; None: it is gone."""
    found: dict[str, tuple[int, int] | None] = {}
    if path.is_dir():  # as `input_files`, but without a look at each of a thousand slices twice
        waiting = [str(path)]
        while waiting:
            folder = waiting.pop()
            try:
                entries = list(os.scandir(folder))
            except OSError:
                found[folder[len(str(path)) + 1 :]] = None
                continue
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
                elif entry.is_file():
                    stat = entry.stat()
                    found[entry.path[len(str(path)) + 1 :]] = (stat.st_size, stat.st_mtime_ns)
        return found
    for file in input_files(path):
        name = os.path.relpath(file, path.parent)
        try:
            stat = file.stat()
            found[name] = (stat.st_size, stat.st_mtime_ns)
        except OSError:
            found[name] = None
    return found


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


def _quietly(look: Callable[[Path], Any], path: Path) -> Any:
    try:
        return look(path)
    except OSError:
        return None


def _sizes(path: Path) -> tuple[int, ...] | None:
    sizes = tuple(sorted(state[0] for state in _states(path).values() if state))
    return sizes if any(sizes) else None


def _sample(path: Path) -> bytes:
    """Start, middle and end of the largest file; of several, whichever comes first by these."""
    folder = path if path.is_dir() else path.parent
    sizes = {folder / name: state[0] for name, state in _states(path).items() if state}
    most = max(sizes.values())
    return min(_ends(file, size) for file, size in sizes.items() if size == most)


def _ends(file: Path, size: int) -> bytes:
    digest = hashlib.sha256()
    with open(file, "rb") as stream:
        for start in (0, size // 2, max(size - _BLOCK, 0)):
            stream.seek(start)
            digest.update(stream.read(_BLOCK))
    return digest.digest()


def _content(path: Path) -> tuple[str, ...]:
    """Checksums of the files, whatever they are called."""
    return tuple(sorted(sha256(file) for file in input_files(path)))
