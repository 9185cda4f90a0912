"""Reading and writing files: whole or not at all, and never a pickle."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
import tempfile
import time
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.npyio import NpzFile
from numpy.typing import ArrayLike, NDArray

from xaiclip.errors import ConfigError, Skip, StorageError

#: How the names of files begin that are being written; those that a killed job left, too.
TEMPORARY = ".tmp-"
#: A larger file is no scan and no model: reading it for its checksum would take hours.
MAX_DIGEST = 2**38
_META = "__meta__"
_FULL = (
    "cannot be written: the disk is full, or your quota of it. Free some space and run again; "
    "what is finished is kept."
)
_READ_ONLY = (
    "cannot be written: its folder is read-only, or not yours. Make it writable, or run in "
    "another one (snakemake --directory); what is finished is kept."
)
_STORAGE = {
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,
    errno.EROFS: _READ_ONLY,
    errno.EACCES: _READ_ONLY,
    errno.EPERM: _READ_ONLY,  # a private folder of somebody else
    errno.EFBIG: (
        "cannot be written: it is larger than a file may be here (`ulimit -f`). Raise the limit "
        "and run again; what is finished is kept."
    ),
}


@contextmanager
def atomic(path: str | os.PathLike[str], private: bool = False) -> Iterator[Path]:
    """Give a temporary name beside ``path``; move it into place only if the block succeeds.

    The temporary name keeps the suffixes of ``path``, for writers that choose a format by them.
    A reader therefore sees the old file or the whole new one, never a part. A ``private`` file,
    and the folder that it is in, are for their owner alone.

    Raises:
        StorageError: the disk is full, or the folder may not be written to.
    """
    path = Path(path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if private:
            path.parent.chmod(0o700)
        handle, name = tempfile.mkstemp(prefix=TEMPORARY, suffix="-" + path.name, dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        # mkstemp makes private files; results are for whom the umask says
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o600 if private else 0o666 & ~umask)
        os.replace(temporary, path)
    except Exception as error:
        if sentence := _storage_sentence(error, path):
            raise StorageError(sentence) from error
        raise
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def check_writable(folder: str | os.PathLike[str]) -> None:
    """Refuse a folder that cannot be written to, or not be made.

    Raises:
        StorageError: what `atomic` would raise in it.
    """
    nearest = Path(folder).absolute()
    while not nearest.exists():
        nearest = nearest.parent
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        raise StorageError(f"'{folder}' {_STORAGE[errno.EACCES]}")


def _storage_sentence(error: BaseException | None, path: Path) -> str | None:
    """What to tell people if an error, or one behind it, is of the disk that ``path`` is on."""
    while error is not None:
        # an error about another file, say an input, is not about the disk of this one
        named = getattr(error, "filename", None)
        if named is None or Path(str(named)).parent == path.parent:
            for code, words in _STORAGE.items():
                # some libraries pass on the system's words alone
                if getattr(error, "errno", None) == code or os.strerror(code) in str(error):
                    return f"'{path}' {words}"
        error = error.__cause__ or error.__context__
    return None


def check_date(path: str | os.PathLike[str]) -> None:
    """Refuse a file dated in the future: Snakemake would remove what is made of it, every time.

    Raises:
        ConfigError: its time is more than a few seconds ahead of the clock.
    """
    try:
        ahead = os.stat(path).st_mtime - time.time()
    except OSError:  # not there yet
        return
    if ahead > 10:
        date = datetime.fromtimestamp(os.stat(path).st_mtime).isoformat(" ", "minutes")
        raise ConfigError(
            f"'{path}' is dated in the future ({date}): `touch` it, or a copy of it where you may "
            "write; or correct the clock."
        )


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write UTF-8 text atomically."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | os.PathLike[str], value: Any, private: bool = False) -> None:
    """Write JSON atomically, indented, with a final newline; ``private`` as for `atomic`."""
    with atomic(path, private) as temporary:
        # a file's name may hold bytes that are no text
        text = json.dumps(value, indent=2, ensure_ascii=private)
        temporary.write_text(text + "\n", encoding="utf-8")


class ArrayWriter:
    """Writes named arrays to one .npz file, one after the other: none is kept.

    ``meta``, JSON-able, may be set until the end. Use it inside `writing_arrays`.
    """

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._archive = archive
        self.meta: Any = None

    def __setitem__(self, name: str, array: ArrayLike) -> None:
        """Write an array; its name may contain slashes.

        Raises:
            TypeError: it holds Python objects.
        """
        packed = np.asarray(array)
        if packed.dtype.hasobject:
            raise TypeError(f"array '{name}' holds Python objects; only plain numbers are stored")
        # as numpy.savez_compressed does, which wants all arrays at once
        with self._archive.open(f"{name}.npy", "w", force_zip64=True) as stream:
            np.lib.format.write_array(stream, packed, allow_pickle=False)


@contextmanager
def writing_arrays(path: str | os.PathLike[str]) -> Iterator[ArrayWriter]:
    """One compressed .npz file, atomically; what is written to it depends on the content alone."""
    with (
        atomic(path) as temporary,
        zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive,
    ):
        writer = ArrayWriter(archive)
        yield writer
        writer[_META] = np.frombuffer(json.dumps(writer.meta).encode(), dtype=np.uint8)


def save_arrays(
    path: str | os.PathLike[str], arrays: Mapping[str, NDArray[Any]], meta: Any = None
) -> None:
    """Write named arrays and a JSON-able ``meta`` to one file of `writing_arrays`."""
    with writing_arrays(path) as writer:
        for name, array in arrays.items():
            writer[name] = array
        writer.meta = meta


class Arrays(Mapping[str, NDArray[Any]]):
    """What `save_arrays` wrote: an array is read when it is asked for, and not kept.

    ``meta`` is there at once. Use it inside `open_arrays`, which holds the file.
    """

    def __init__(self, stored: NpzFile) -> None:
        self._stored = stored
        self._names = dict.fromkeys(name for name in stored.files if name != _META)
        self.meta: Any = (
            json.loads(stored[_META].tobytes().decode()) if _META in stored.files else None
        )

    def __getitem__(self, name: str) -> NDArray[Any]:
        return np.asarray(self._stored[name])

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def below(self, prefix: str) -> dict[str, NDArray[Any]]:
        """Read the arrays whose names start so; their names come without that start."""
        return {name.removeprefix(prefix): self[name] for name in self if name.startswith(prefix)}


@contextmanager
def open_arrays(path: str | os.PathLike[str]) -> Iterator[Arrays]:
    """The file that `save_arrays` wrote, for reading a few arrays of many."""
    with np.load(path, allow_pickle=False) as stored:
        yield Arrays(stored)


def load_arrays(path: str | os.PathLike[str]) -> tuple[dict[str, NDArray[Any]], Any]:
    """Read what `save_arrays` wrote: the arrays by name, and ``meta``."""
    with open_arrays(path) as stored:
        return dict(stored), stored.meta


def load_meta(path: str | os.PathLike[str]) -> Any:
    """The ``meta`` alone of what `save_arrays` wrote; no array is read."""
    with open_arrays(path) as stored:
        return stored.meta


def load_skips(path: str | os.PathLike[str]) -> list[Skip]:
    """What a stage left out, as its `save_arrays` file has it."""
    return [Skip(**skip) for skip in load_meta(path)["skips"]]


def digest(path: str | os.PathLike[str], kind: str) -> str:
    """Hexadecimal ``sha256`` or ``md5`` of a file's content.

    Raises:
        ConfigError: it is no regular file (reading a device or a pipe may never end), or larger
            than `MAX_DIGEST`.
    """
    # a pipe that nobody writes to would hold up the opening itself
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as stream:
        found = os.fstat(stream.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise ConfigError(f"'{path}' is not a regular file; give one.")
        if found.st_size > MAX_DIGEST:
            raise ConfigError(f"'{path}' has {found.st_size / 2**30:.0f} GiB; give a smaller file.")
        return hashlib.file_digest(stream, kind).hexdigest()


def sha256(path: str | os.PathLike[str]) -> str:
    """Hexadecimal SHA-256 of a file's content."""
    return digest(path, "sha256")


def files_sha256(files: Iterable[str | os.PathLike[str]], folder: str | os.PathLike[str]) -> str:
    """SHA-256 of files' contents and of their names below ``folder``, in whatever order."""
    total = hashlib.sha256()
    for name, file in sorted(
        (Path(os.path.relpath(file, folder)).as_posix(), file) for file in files
    ):
        total.update(os.fsencode(name) + f"\0{sha256(file)}\n".encode())
    return total.hexdigest()


def verify(path: Path, checksum: str) -> None:
    """Compare a file with ``sha256:…`` or ``md5:…``.

    Raises:
        ConfigError: another kind of checksum, no such file, or the file differs.
    """
    kind, _, wanted = checksum.partition(":")
    if kind not in ("sha256", "md5") or not wanted:
        raise ConfigError(f"checksum '{checksum}' should be sha256:… or md5:….")
    if not path.is_file():
        raise ConfigError(f"the file {path} does not exist.")
    found = digest(path, kind)
    if found != wanted.lower():
        raise ConfigError(
            f"{path} has {kind} {found}, not {wanted}: it is damaged or another file, "
            "fetch it again."
        )


def impostor(head: bytes) -> str | None:
    """What a file is that should hold data, if its first bytes show that it does not.

    Returns:
        Words that follow the file's name in a sentence, with the cure; None for data.
    """
    head = head.lstrip()
    if not head:
        return "is empty: fetch it again"
    if head[:1] == b"<":
        return "is a web page, not data: open the link in a browser and save the file"
    if head.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer, not data: run `git lfs pull`"
    return None


def check_kind(path: Path, what: str) -> None:
    """Refuse what is plainly no data; ``what`` is the file's part in the sentence.

    Raises:
        ConfigError: no such file, an empty one, a web page, or a Git LFS pointer.
    """
    if not path.is_file():
        raise ConfigError(f"the {what} {path} does not exist.")
    with open(path, "rb") as stream:
        words = impostor(stream.read(512))
    if words:
        raise ConfigError(f"{path} {words}.")
