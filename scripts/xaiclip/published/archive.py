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

from xaiclip.errors import CaseError, ConfigError
from xaiclip.files import atomic, check_kind
from xaiclip.published.download import check_space

#: Largest content of an archive, and by how much it may exceed the archive.
MAX_BYTES = 1 << 40
MAX_RATIO = 200
#: A small archive may hold this much whatever the ratio.
SMALL = 64 << 20
#: Members of an archive; each takes about 1 kB of memory.
MAX_MEMBERS = 200_000
#: Bytes of a zip's table of members, and of a header that only gives a tar's member a longer name.
MAX_TABLE = 16 << 20
MAX_HEADER = 64 << 10
MAX_NAME = 1000

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
    """Take files out of a .zip or .tar(.gz, .bz2) archive.

    Every member is checked before the first is written, also those that are not picked.

    Args:
        archive: the file.
        folder: where to put them; made if it does not exist.
        pick: gives for a member's name its path below ``folder``, or None to leave it.

    Returns:
        The files, sorted.

    Raises:
        ConfigError: no such archive, or not to be trusted: a member would leave the folder, is a
            link or a device, or there are too many of them, or they claim an absurd size; nothing
            is written. Also if it cannot fit.
        CaseError: a picked member is damaged.
    """
    archive, folder = Path(archive), Path(folder)
    with _opened(archive) as members:
        listed = [(name, size, read, _target(archive, name, pick)) for name, size, read in members]
        wanted = [(name, size, read, to) for name, size, read, to in listed if to is not None]
        _check_targets(archive, [to for *_, to in wanted])
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
                    f"its member {name!r:.200} is damaged; fetch the archive again.", archive
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


class _TarInfo(tarfile.TarInfo):
    """A member whose header is no bomb: tarfile reads one whole, however long it says it is."""

    def _proc_member(self, tar: tarfile.TarFile) -> tarfile.TarInfo:
        longer = self.type in _HEADERS and self.size > MAX_HEADER
        if longer or self.type == tarfile.GNUTYPE_SPARSE:
            raise _Bomb
        member: tarfile.TarInfo = super()._proc_member(tar)  # type: ignore[misc]
        return member

    def _refuse(self, *_: object) -> None:
        raise _Bomb

    # maps of holes, which say by themselves how long they are
    _proc_gnusparse_00 = _proc_gnusparse_01 = _proc_gnusparse_10 = _refuse


#: Members that only say something about the next one.
_HEADERS = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)


class _Bomb(Exception):
    """A header that would take more memory than any honest one."""


@contextmanager
def _opened(archive: Path) -> Iterator[list[_Member]]:
    """The regular files of an archive: name, size, and how to open each."""
    check_kind(archive, "archive")
    with ExitStack() as stack:
        try:
            if zipfile.is_zipfile(archive):
                _check_table(archive)
                zipped = stack.enter_context(zipfile.ZipFile(archive))
                found = (_zip_member(archive, zipped, info) for info in zipped.infolist())
            else:
                tarred = stack.enter_context(_open_tar(archive))
                found = (_tar_member(archive, tarred, info) for info in tarred)
            members = _counted(archive, found)
        except _Bomb as error:
            raise ConfigError(
                f"{archive} holds a header of a size that no honest archive has, or a file with "
                "holes: do not use it."
            ) from error
        except _DAMAGED as error:
            raise ConfigError(
                f"{archive} is truncated or no zip or tar archive: fetch it again."
            ) from error
        yield members


def _counted(archive: Path, found: Iterator[_Member | None]) -> list[_Member]:
    """The members, refused as soon as there are too many of them, or they claim too much.

    To come to a tar's next member, all of this one is unpacked.
    """
    most, members, content = _most(archive), [], 0
    for number, member in enumerate(found, start=1):
        if number > MAX_MEMBERS:
            raise ConfigError(f"{archive} holds more than {MAX_MEMBERS} members: do not use it.")
        if member is None:
            continue
        members.append(member)
        content += member[1]
        if content > most:
            raise ConfigError(
                f"{archive} claims to hold {content} bytes, more than an archive of its size can "
                "honestly hold: do not use it."
            )
    return members


def _most(archive: Path) -> int:
    """Bytes that an archive of its size can honestly hold."""
    return min(MAX_BYTES, max(SMALL, MAX_RATIO * archive.stat().st_size))


def _check_table(archive: Path) -> None:
    """A zip's table of members is read whole: it must be of a size to be read."""
    with open(archive, "rb") as stream:
        end = zipfile._EndRecData(stream)  # type: ignore[attr-defined]
    if end is None:
        raise zipfile.BadZipFile
    if end[zipfile._ECD_SIZE] > MAX_TABLE:  # type: ignore[attr-defined]
        raise _Bomb


def _open_tar(archive: Path) -> tarfile.TarFile:
    with open(archive, "rb") as stream:
        head = stream.read(6)
    if head.startswith((b"\xfd7zXZ", b"\x5d\0\0")):
        # its header may ask for gigabytes of memory, and Python's reader takes no limit
        raise ConfigError(
            f"{archive} is packed with xz, which is not read here: unpack it yourself and pack it "
            "again as .tar.gz."
        )
    packing = "gz" if head.startswith(b"\x1f\x8b") else "bz2" if head.startswith(b"BZh") else ""
    return tarfile.open(archive, f"r:{packing}", tarinfo=_TarInfo)  # type: ignore[call-overload]


def _zip_member(archive: Path, container: zipfile.ZipFile, info: zipfile.ZipInfo) -> _Member | None:
    kind = stat.S_IFMT(info.external_attr >> 16)
    # the name as stored: zipfile would mend some of what must be refused
    _check_name(archive, info.orig_filename)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise ConfigError(
            f"{archive} holds {info.filename!r:.200}, a link or device: do not use it."
        )
    if info.flag_bits & 1:
        raise ConfigError(f"{archive} is encrypted: unpack it yourself and pack it again.")
    if info.is_dir():
        return None
    return info.filename, info.file_size, lambda: container.open(info)


def _tar_member(archive: Path, container: tarfile.TarFile, info: tarfile.TarInfo) -> _Member | None:
    _check_name(archive, info.name)
    # what lies before it is headers and members, all of it unpacked to come here
    if info.issparse() or info.offset_data > 2 * _most(archive):
        raise _Bomb
    if not (info.isreg() or info.isdir()):
        raise ConfigError(f"{archive} holds {info.name!r:.200}, a link or device: do not use it.")
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
            f"{archive} holds {name!r:.200}, a path that could leave the folder it is unpacked "
            "into: do not use it."
        )
    if len(name) > MAX_NAME or not name.isprintable():
        raise ConfigError(
            f"{archive} holds {name!r:.200}, which is too long for a name, or has characters that "
            "cannot be shown: do not use it."
        )


def _check_targets(archive: Path, targets: list[str]) -> None:
    """No two files are the same, nor one of them the folder of another."""
    seen = set(targets)
    folders = {str(above) for to in seen for above in PurePosixPath(to).parents}
    if len(seen) < len(targets) or seen & folders:
        raise ConfigError(f"{archive} holds two files of one name: do not use it.")


def _target(archive: Path, name: str, pick: Callable[[str], str | None]) -> str | None:
    to = pick(name)
    if to is not None:
        _check_name(archive, to)
    return to
