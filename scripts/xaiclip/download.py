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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xaiclip.errors import ConfigError
from xaiclip.files import impostor, verify

log = logging.getLogger(__name__)

CHUNK = 1 << 20
#: Left free on the disk beside the file.
SPARE = 64 << 20


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
        return self.about if self.size is None else _bytes(self.size)


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

    Args:
        remote: what to fetch.
        target: where to put it; a file there with the right checksum is left alone.
        attempts: tries in a row that bring nothing.
        wait: seconds before the second try, doubled each time.
        timeout: seconds without a byte.

    Raises:
        ConfigError: it cannot be had. One sentence with the address, the reason and the cure; a
            part that can be resumed is kept, anything else is removed.
    """
    target = Path(target)
    part = target.with_name(f".{target.name}.part")
    if not re.match(r"https?://", remote.url):
        raise ConfigError(f"the address '{remote.url}' must begin with https:// or http://.")
    if target.is_file():
        try:
            verify(target, remote.checksum)
            return
        except ConfigError:
            log.warning("%s is not the published file: it is replaced", target)
    target.parent.mkdir(parents=True, exist_ok=True)
    failures = 0
    while True:
        resumed = before = _held(part)
        try:
            _receive(remote, part, timeout)
        except _Broken as error:
            failures = 0 if _held(part) > before else failures + 1
            if failures >= attempts:
                kept = f"; {_bytes(_held(part))} of it are kept" if _held(part) else ""
                raise ConfigError(
                    f"{remote.url} could not be fetched in {attempts} tries ({error}): check the "
                    f"connection and run again{kept}, or put the file at {target} by hand."
                ) from None
            pause = wait * 2 ** max(failures - 1, 0)
            log.warning("%s (%s): next try in %.0f s", remote.name, error, pause)
            time.sleep(pause)
            continue
        try:
            verify(part, remote.checksum)
        except ConfigError as error:
            found = str(error).split(" has ")[-1].split(":")[0]
            part.unlink()
            if resumed:  # the first piece may stem from another file
                log.warning("%s has a wrong checksum after resuming: from the start", remote.name)
                continue
            raise ConfigError(
                f"{remote.url} has {found}: the file there is damaged or another one; "
                f"try again later, or put the right file at {target} by hand."
            ) from None
        part.replace(target)
        log.info("%s: %s, checksum right", target, _bytes(target.stat().st_size))
        return


def check_space(folder: Path, needed: int, what: str) -> None:
    """Refuse what cannot fit.

    Raises:
        ConfigError: fewer than ``needed`` bytes (and a margin) are free where ``folder`` lies.
    """
    free = shutil.disk_usage(folder).free
    if free < needed + SPARE:
        raise ConfigError(
            f"{what} needs {_bytes(needed)}, but only {_bytes(free)} are free in {folder}: "
            "make room there, or use another disk."
        )


def _receive(remote: Remote, part: Path, timeout: float) -> None:
    """Bring ``part`` to its full length."""
    have = _held(part)
    if remote.size is not None:
        if have > remote.size:
            part.unlink()
            have = 0
        if have == remote.size:
            return
        check_space(part.parent, remote.size - have, remote.name)
    request = urllib.request.Request(remote.url, headers={"User-Agent": "xaiclip"})
    if have:
        request.add_header("Range", f"bytes={have}-")
    try:
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            start, total = _extent(answer, have)
            if start not in (0, have):
                part.unlink()
                raise _Broken("the server resumes at another place")
            if start == 0:
                _check_head(answer, remote, total)
                if total is not None:
                    check_space(part.parent, total, remote.name)
            elif total != (remote.size or total):
                part.unlink()
                raise _Broken("the file there has changed")
            _store(answer, remote, part, start, total)
    except urllib.error.HTTPError as error:
        _refuse(error, remote, part)
    except (http.client.HTTPException, OSError) as error:
        reason = getattr(error, "reason", None) or error
        raise _Broken(str(reason) or type(error).__name__) from error


def _store(answer: Any, remote: Remote, part: Path, start: int, total: int | None) -> None:
    """Write what arrives behind the first ``start`` bytes."""
    expected = remote.size if remote.size is not None else total
    told = time.monotonic()
    length = start
    with open(part, "ab" if start else "wb") as stream:
        while block := answer.read(CHUNK):
            if length == 0 and (words := impostor(block[:512])):
                stream.close()
                part.unlink()
                raise ConfigError(f"what {remote.url} gives {words}.")
            stream.write(block)
            length += len(block)
            if expected is not None and length > expected:
                stream.close()
                part.unlink()
                raise ConfigError(
                    f"{remote.url} gives more than {expected} bytes: it is not {remote.name}; "
                    "put the right file there by hand."
                )
            if time.monotonic() - told > 10:
                told = time.monotonic()
                share = f" of {_bytes(expected)}" if expected else ""
                log.info("%s: %s%s", remote.name, _bytes(length), share)
    if expected is not None and length < expected:
        raise _Broken(f"the connection broke after {length} of {expected} bytes")


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


def _refuse(error: urllib.error.HTTPError, remote: Remote, part: Path) -> None:
    """Tell what is worth another try from what is not."""
    if error.code == 416:  # nothing lies behind what we have: the part is no part of it
        part.unlink(missing_ok=True)
        raise _Broken("the server has no such range") from error
    if error.code >= 500 or error.code in (408, 429):
        raise _Broken(f"the server answers {error.code}") from error
    reasons = {401: "wants a login", 403: "refuses access", 404: "is not there", 410: "is gone"}
    reason = reasons.get(error.code, "cannot be had")
    raise ConfigError(
        f"{remote.url} {reason} (HTTP {error.code}): look for {remote.name} on its page and put "
        "it there by hand."
    ) from error


def _held(part: Path) -> int:
    return part.stat().st_size if part.is_file() else 0


def _bytes(count: int) -> str:
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count} bytes"
