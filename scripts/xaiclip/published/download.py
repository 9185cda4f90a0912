"""Fetching published files: resumed, retried, checked, and moved into place only when whole."""

from __future__ import annotations

import http.client
import logging
import os
import re
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xaiclip.errors import ConfigError
from xaiclip.files import check_writable, impostor, verify
from xaiclip.published.parts import Part, held_part, open_url

log = logging.getLogger(__name__)

CHUNK = 1 << 20
#: Left free on the disk beside the file.
SPARE = 64 << 20
#: Bytes a second below which a connection counts as broken, and a try that brought fewer bytes
#: than this counts as one that brought nothing.
SLOWEST = 1000
LEAST = 32 << 10
#: Bytes of a file whose size nobody tells.
MAX_UNKNOWN = 1 << 36


@dataclass(frozen=True)
class Remote:
    """A published file.

    Attributes:
        name: file name here.
        url: http or https.
        checksum: ``sha256:…`` or ``md5:…``.
        size: in bytes; None where it is not known beforehand.
        about: the size in words, where ``size`` is None.
    """

    name: str
    url: str
    checksum: str
    size: int | None = None
    about: str = "of unknown size"

    @property
    def volume(self) -> str:
        """The size, for people."""
        return self.about if self.size is None else in_words(self.size)

    @property
    def source(self) -> str:
        """Where it comes from, for people."""
        return self.url


class _Broken(Exception):
    """The connection broke or the server is busy: worth another try."""


def fetch(
    remote: Remote,
    target: str | os.PathLike[str],
    *,
    attempts: int = 6,
    wait: float = 2.0,
    timeout: float = 60.0,
) -> None:
    """Fetch a file whole, or leave a ``.part`` beside ``target`` that the next call resumes.

    What arrived so far stays in ``.{name}.part``; a broken connection, a timeout, an answer of
    5xx, 408 or 429 is tried again, from where it stopped if the server can do that. A try that
    brought something does not count. The file moves to ``target`` after its checksum is right.
    Of several processes that want the same file one fetches it, and the others wait.

    Args:
        remote: what to fetch.
        target: where to put it; a file there with the right checksum is left alone.
        attempts: tries in a row that bring nothing.
        wait: seconds before the second try, doubled each time.
        timeout: seconds without a byte, until an answer begins, and in which at least `SLOWEST`
            bytes a second arrive.

    Raises:
        ConfigError: it cannot be had. One sentence with the address, the reason and the cure; a
            part that can be resumed is kept, anything else is removed.
        StorageError: the folder cannot be written to.
    """
    target = Path(target)
    if not re.match(r"https?://", remote.url):
        raise ConfigError(f"the address {remote.url!r} must begin with https:// or http://.")
    with missing(target, remote.checksum) as part:
        if part is not None:
            _complete(remote, target, part, attempts, wait, timeout)
            part.move(target)
            log.info("%s: %s, checksum right", target, in_words(target.stat().st_size))


@contextmanager
def missing(target: Path, checksum: str) -> Iterator[Part | None]:
    """The part of a file that is to be fetched, for this process alone; None if the file is there.

    Raises:
        ConfigError: ``target`` is a folder or the like.
        StorageError: its folder cannot be written to.
    """
    if target.exists() and not target.is_file():
        raise ConfigError(f"{target} is no file: move it away, and it is fetched.")
    if is_whole(target, checksum):
        yield None
        return
    check_writable(target.parent)
    target.parent.mkdir(parents=True, exist_ok=True)
    with held_part(target) as part:
        # another process may have fetched it meanwhile
        if is_whole(target, checksum):
            part.remove()
            yield None
            return
        if target.is_file():
            log.warning("%s is not the published file: it is replaced", target)
        yield part


def is_whole(target: Path, checksum: str) -> bool:
    """Whether the file is there, and the right one."""
    try:
        verify(target, checksum)
    except ConfigError:
        return False
    return True


def _complete(
    remote: Remote, target: Path, part: Part, attempts: int, wait: float, timeout: float
) -> None:
    """Bring the part to its full length and the right checksum, in as many tries as it takes."""
    failures = 0
    while True:
        resumed = before = part.length
        try:
            _receive(remote, part, timeout)
        except _Broken as error:
            failures = 0 if part.length >= before + LEAST else failures + 1
            if failures >= attempts:
                kept = f"; {in_words(part.length)} of it are kept" if part.length else ""
                raise ConfigError(
                    f"{remote.url} could not be fetched in {attempts} tries ({error}): check the "
                    f"connection and run again{kept}, or put the file at {target} by hand."
                ) from None
            pause = wait * 2 ** max(failures - 1, 0)
            log.warning("%s (%s): next try in %.0f s", remote.name, error, pause)
            time.sleep(pause)
            continue
        kind, _, wanted = remote.checksum.partition(":")
        found = part.digest(kind)
        if found == wanted.lower():
            return
        part.cut(0)
        if resumed:  # the first piece may stem from another file
            log.warning("%s has a wrong checksum after resuming: from the start", remote.name)
            continue
        raise ConfigError(
            f"{remote.url} has {kind} {found}, not {wanted}: the file there is damaged or another "
            f"one; try again later, or put the right file at {target} by hand."
        )


def check_space(folder: Path, needed: int, what: str) -> None:
    """Refuse what cannot fit.

    Raises:
        ConfigError: fewer than ``needed`` bytes (and a margin) are free where ``folder`` lies.
    """
    free = shutil.disk_usage(folder).free
    if free < needed + SPARE:
        raise ConfigError(
            f"{what} needs {in_words(needed)}, but only {in_words(free)} are free in {folder}: "
            "make room there, or use another disk."
        )


def _receive(remote: Remote, part: Part, timeout: float) -> None:
    """Bring ``part`` to its full length."""
    if remote.size is not None:
        if part.length > remote.size:
            part.cut(0)
        if part.length == remote.size:
            return
        check_space(part.folder, remote.size - part.length, remote.name)
    have = part.length
    request = urllib.request.Request(remote.url, headers={"User-Agent": "xaiclip"})
    if have:
        request.add_header("Range", f"bytes={have}-")
    try:
        with open_url(request, timeout) as answer:
            start, total = _extent(answer, have)
            if start not in (0, have):
                part.cut(0)
                raise _Broken("the server resumes at another place")
            if start == 0:
                _check_head(answer, remote, total)
                if total is not None:
                    check_space(part.folder, total, remote.name)
            elif total != (remote.size or total):
                part.cut(0)
                raise _Broken("the file there has changed")
            _store(answer, remote, part, start, total, timeout)
    except urllib.error.HTTPError as error:
        _refuse(error, remote, part)
    except (http.client.HTTPException, OSError) as error:
        reason = getattr(error, "reason", None) or error
        raise _Broken(str(reason) or type(error).__name__) from error


def _store(
    answer: Any, remote: Remote, part: Part, start: int, total: int | None, timeout: float
) -> None:
    """Write what arrives behind the first ``start`` bytes."""
    expected = remote.size if remote.size is not None else total
    most = MAX_UNKNOWN if expected is None else expected
    told = window = time.monotonic()
    brought = 0
    part.cut(start)
    # what has arrived, and not all of a chunk: a byte now and then would never fill one
    while block := answer.read1(CHUNK):
        if part.length == 0 and (words := impostor(block[:512])):
            raise ConfigError(f"what {remote.url} gives {words}.")
        part.write(block)
        brought += len(block)
        if part.length > most:
            part.cut(0)
            raise ConfigError(
                f"{remote.url} gives more than {most} bytes: it is not {remote.name}; "
                "put the right file there by hand."
            )
        now = time.monotonic()
        if now - window > timeout:
            if brought < SLOWEST * timeout:
                raise _Broken(f"only {brought} bytes arrived in {now - window:.0f} s")
            if expected is None:
                check_space(part.folder, 0, remote.name)
            window, brought = now, 0
        if now - told > 10:
            told = now
            share = f" of {in_words(expected)}" if expected else ""
            log.info("%s: %s%s", remote.name, in_words(part.length), share)
    if not part.length:
        raise _Broken(f"the connection broke after 0 of {expected or 'some'} bytes")
    if expected is not None and part.length < expected:
        raise _Broken(f"the connection broke after {part.length} of {expected} bytes")


def _extent(answer: Any, have: int) -> tuple[int, int | None]:
    """First byte of an answer, and the length of the whole file if it is told."""
    if answer.status == 206:
        match = re.fullmatch(
            r"bytes (\d+)-\d+/(\d+|\*)", answer.headers.get("Content-Range", "").strip()
        )
        if match is None:
            return -1, None
        return int(match[1]), None if match[2] == "*" else int(match[2])
    length = answer.headers.get("Content-Length")
    return 0, int(length) if length and length.isdigit() else None


def _check_head(answer: Any, remote: Remote, total: int | None) -> None:
    """A web page or a file of another length is recognised before it is stored."""
    if answer.headers.get_content_type() in ("text/html", "application/xhtml+xml"):
        raise ConfigError(
            f"what {remote.url} gives is a web page, not data: open the link in a browser and "
            f"save the file as {remote.name}."
        )
    if None not in (total, remote.size) and total != remote.size:
        raise ConfigError(
            f"{remote.url} has {total} bytes instead of {remote.size}: it is another file or "
            "version."
        )


def _refuse(error: urllib.error.HTTPError, remote: Remote, part: Part) -> None:
    """Tell what is worth another try from what is not."""
    if error.code == 416:  # nothing lies behind what we have: the part is no part of it
        part.cut(0)
        raise _Broken("the server has no such range") from error
    if error.code >= 500 or error.code in (408, 429):
        raise _Broken(f"the server answers {error.code}") from error
    reasons = {401: "wants a login", 403: "refuses access", 404: "is not there", 410: "is gone"}
    reason = reasons.get(error.code, "cannot be had")
    raise ConfigError(
        f"{remote.url} {reason} (HTTP {error.code}): look for {remote.name} on its page and put "
        "it there by hand."
    ) from error


def in_words(count: int) -> str:
    """A number of bytes, for people."""
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count} bytes"
