"""Taking files out of zip and tar archives that come from outside."""

from __future__ import annotations

import lzma
import os
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path, PurePosixPath
from typing import IO

from xaiclip.download import check_space
from xaiclip.errors import CaseError, ConfigError
from xaiclip.files import atomic, check_kind

#: Largest content of an archive, and by how much it may exceed the archive.
MAX_BYTES = 1 << 40
MAX_RATIO = 200
#: A small archive may hold this much whatever the ratio.
SMALL = 64 << 20

_DAMAGED = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    OSError,
    NotImplementedError,
    RuntimeError,
)


def extract(
    archive: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    pick: Callable[[str], str | None] = lambda name: name,
) -> list[Path]:
    """Take files out of a .zip or .tar(.gz, .bz2, .xz) archive.

    Every member is checked before the first is written, also those that are not picked.

    Args:
        archive: the file.
        folder: where to put them; made if it does not exist.
        pick: gives for a member's name its path below ``folder``, or None to leave it.

    Returns:
        The files, sorted.

    Raises:
        ConfigError: no such archive, or not to be trusted: a member would leave the folder, is a
            link or a device, or claims an absurd size; nothing is written. Also if it cannot fit.
        CaseError: a picked member is damaged.
    """
    archive, folder = Path(archive), Path(folder)
    with _opened(archive) as members:
        listed = [(name, size, read, _target(archive, name, pick)) for name, size, read in members]
        content = sum(size for _, size, _, _ in listed)
        if content > min(MAX_BYTES, max(SMALL, MAX_RATIO * archive.stat().st_size)):
            raise ConfigError(
                f"{archive} claims to hold {content} bytes, more than an archive of its size can "
                "honestly hold: do not use it."
            )
        wanted = [(name, size, read, to) for name, size, read, to in listed if to is not None]
        folder.mkdir(parents=True, exist_ok=True)
        check_space(folder, sum(size for _, size, _, _ in wanted), f"unpacking {archive.name}")
        files = []
        for name, size, read, to in wanted:
            path = folder / to
            try:
                with atomic(path) as temporary, read() as source, open(temporary, "wb") as sink:
                    shutil.copyfileobj(_Limited(source, size), sink)
                    if sink.tell() != size:
                        raise EOFError
            except _DAMAGED as error:
                if getattr(error, "errno", None):  # the disk's fault
                    raise
                raise CaseError(
                    f"its member '{name}' is damaged; fetch the archive again.", archive
                ) from error
            files.append(path)
    return sorted(files)


class _Limited:
    """A stream that ends one byte behind its declared size: headers may lie."""

    def __init__(self, stream: IO[bytes], size: int) -> None:
        self._stream, self._left = stream, size + 1

    def read(self, count: int = -1) -> bytes:
        block = self._stream.read(self._left if count < 0 else min(count, self._left))
        self._left -= len(block)
        return block


_Member = tuple[str, int, Callable[[], IO[bytes]]]


@contextmanager
def _opened(archive: Path) -> Iterator[list[_Member]]:
    """The regular files of an archive: name, size, and how to open each."""
    check_kind(archive, "archive")
    with ExitStack() as stack:
        try:
            if zipfile.is_zipfile(archive):
                zipped = stack.enter_context(zipfile.ZipFile(archive))
                members = [_zip_member(archive, zipped, info) for info in zipped.infolist()]
            else:
                tarred = stack.enter_context(tarfile.open(archive))
                members = [_tar_member(archive, tarred, info) for info in tarred.getmembers()]
        except _DAMAGED as error:
            raise ConfigError(
                f"{archive} is truncated or no zip or tar archive: fetch it again."
            ) from error
        yield [member for member in members if member is not None]


def _zip_member(archive: Path, container: zipfile.ZipFile, info: zipfile.ZipInfo) -> _Member | None:
    kind = stat.S_IFMT(info.external_attr >> 16)
    # the name as stored: zipfile would mend some of what must be refused
    _check_name(archive, info.orig_filename)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise ConfigError(f"{archive} holds '{info.filename}', a link or device: do not use it.")
    if info.flag_bits & 1:
        raise ConfigError(f"{archive} is encrypted: unpack it yourself and pack it again.")
    if info.is_dir():
        return None
    return info.filename, info.file_size, lambda: container.open(info)


def _tar_member(archive: Path, container: tarfile.TarFile, info: tarfile.TarInfo) -> _Member | None:
    _check_name(archive, info.name)
    if not (info.isreg() or info.isdir()):
        raise ConfigError(f"{archive} holds '{info.name}', a link or device: do not use it.")
    if info.isdir():
        return None

    def opened() -> IO[bytes]:
        stream = container.extractfile(info)
        if stream is None:
            raise EOFError
        return stream

    return info.name, info.size, opened


def _check_name(archive: Path, name: str) -> None:
    path = PurePosixPath(name.replace("\\", "/"))
    unsafe = path.is_absolute() or ".." in path.parts or ":" in name or "\0" in name
    if unsafe or "\\" in name:
        raise ConfigError(
            f"{archive} holds '{name[:200]}', a path that could leave the folder it is unpacked "
            "into: do not use it."
        )


def _target(archive: Path, name: str, pick: Callable[[str], str | None]) -> str | None:
    to = pick(name)
    if to is not None:
        _check_name(archive, to)
    return to
