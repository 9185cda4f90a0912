"""Published files that lie here already: compared with their checksum, once and when touched."""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from pathlib import Path

from xaiclip.errors import ConfigError
from xaiclip.files import verify, write_json
from xaiclip.published.download import Remote
from xaiclip.published.packaged import Packaged


def check_published(path: str | os.PathLike[str], remote: Remote | Packaged, memory: Path) -> None:
    """Refuse a file that is not the published one, whoever put it there.

    Args:
        path: the file.
        remote: what it should be.
        memory: a folder that remembers what was compared, so that gigabytes are read once; where
            it cannot be written they are read each time.

    Raises:
        ConfigError: the file differs; one sentence with the cure.
    """
    path = Path(path)
    cure = f"it is no {remote.name}: move it away, and it is fetched again"
    if not path.is_file():
        raise ConfigError(f"{path} is no file: move it away, and {remote.name} is fetched.")
    if _remembered(path, memory) == _state(path, remote.checksum):
        return
    size = path.stat().st_size
    if remote.size is not None and size != remote.size:
        raise ConfigError(f"{path} has {size} bytes instead of {remote.size}; {cure}.")
    try:
        verify(path, remote.checksum)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror}).") from None
    except ConfigError:
        kind, _, wanted = remote.checksum.partition(":")
        raise ConfigError(f"{path} has another {kind} than {wanted}; {cure}.") from None
    remember(path, remote.checksum, memory)


def remember(path: str | os.PathLike[str], checksum: str, memory: Path) -> None:
    """Note that a file, as it is now, has this checksum."""
    with suppress(OSError):
        write_json(_note(Path(path), memory), _state(Path(path), checksum))


def _state(path: Path, checksum: str) -> dict[str, str | int]:
    stat = path.stat()
    # the time of the last change of the file's record cannot be set by hand
    return {"checksum": checksum, "size": stat.st_size, "changed": stat.st_ctime_ns}


def _note(path: Path, memory: Path) -> Path:
    return memory / f"{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]}.json"


def _remembered(path: Path, memory: Path) -> object:
    try:
        return json.loads(_note(path, memory).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
