"""What a download stands on: a file of one's own, for one process, and a server that answers."""

from __future__ import annotations

import hashlib
import http.client
import logging
import os
import socket
import stat
import tempfile
import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from xaiclip.errors import ConfigError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

log = logging.getLogger(__name__)


class Part:
    """An open file that grows until it is whole, and then takes its place.

    All is done through the open file, so that nothing put in its place meanwhile is touched.
    """

    def __init__(self, stream: int, path: Path) -> None:
        self.stream, self.path = stream, path
        self.folder = path.parent

    @property
    def length(self) -> int:
        """Bytes that are there."""
        return os.fstat(self.stream).st_size

    def cut(self, length: int) -> None:
        """Keep the first bytes."""
        os.ftruncate(self.stream, length)

    def write(self, block: bytes) -> None:
        """Add at the end."""
        os.lseek(self.stream, 0, os.SEEK_END)
        left = memoryview(block)
        while left:
            left = left[os.write(self.stream, left) :]

    def digest(self, kind: str) -> str:
        """Hexadecimal checksum of what is there."""
        total, place = hashlib.new(kind), 0
        while block := os.pread(self.stream, 1 << 20, place):
            total.update(block)
            place += len(block)
        return total.hexdigest()

    def move(self, target: Path) -> None:
        """Take the place of ``target``."""
        if not self.is_at():
            raise ConfigError(f"{self.path} was taken away while it was fetched: run again.")
        self.path.replace(target)

    def remove(self) -> None:
        """Leave nothing."""
        if self.is_at():
            self.path.unlink()

    def is_at(self) -> bool:
        """Whether the open file is the one that its path names."""
        try:
            there = os.stat(self.path, follow_symlinks=False)
        except OSError:
            return False
        return os.path.samestat(there, os.fstat(self.stream))

    def is_own(self) -> bool:
        """Whether it is a plain file of this user, with no second name."""
        found = os.fstat(self.stream)
        own = not hasattr(os, "getuid") or found.st_uid == os.getuid()
        return stat.S_ISREG(found.st_mode) and own and found.st_nlink == 1


@contextmanager
def held_part(target: Path) -> Iterator[Part]:
    """The part of ``target`` that was fetched so far, for this process alone.

    It is removed if it stays empty. Where somebody put something else there (a link, another
    user's file), or files cannot be locked, a new file with a name that cannot be foreseen takes
    its place.
    """
    path = target.with_name(f".{target.name}.part")
    part = _locked(path, target.name)
    if part is None:
        stream, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".part", dir=path.parent)
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(stream, 0o666 & ~umask)
        part = Part(stream, Path(name))
    try:
        yield part
    finally:
        if part.length == 0 or part.path != path:
            part.remove()
        os.close(part.stream)


def _locked(path: Path, name: str) -> Part | None:
    """The part at its usual place; None if what is there is not one's own."""
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    while True:
        try:
            stream = os.open(path, flags, 0o666)
        except OSError:
            with suppress(OSError):  # a link, a folder: gone if it may be removed
                path.unlink()
                continue
            return None
        part = Part(stream, path)
        if not part.is_own():  # a pipe, another user's, one that has a second name
            os.close(stream)
            with suppress(OSError):
                path.unlink()
                continue
            return None
        if not _lock(stream, name):
            os.close(stream)
            return None
        # who waited may hold a file that has moved to its place meanwhile
        if part.is_at():
            return part
        os.close(stream)


def _lock(stream: int, name: str) -> bool:
    """Wait until no other process has the file; False where files cannot be locked."""
    if fcntl is None:
        return False
    try:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("%s is being fetched by another process: this one waits", name)
            fcntl.flock(stream, fcntl.LOCK_EX)
    except OSError:
        return False
    return True


def open_url(request: urllib.request.Request, timeout: float) -> Any:
    """Open an http or https address, and follow it to others of these, never to a file.

    Args:
        request: what to ask.
        timeout: seconds without a byte, and until the answer's head has arrived.

    Returns:
        The answer, as of `urllib.request.urlopen`.
    """
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler,
        _Http,
        _Https,
        urllib.request.HTTPRedirectHandler,
        urllib.request.HTTPDefaultErrorHandler,
        urllib.request.HTTPErrorProcessor,
        urllib.request.UnknownHandler,
    ):
        opener.add_handler(handler())
    return opener.open(request, timeout=timeout)


def _timed(kind: type[http.client.HTTPConnection]) -> Callable[..., Any]:
    """A connection that is closed if the answer's head has not arrived in time.

    A timeout alone counts from byte to byte, and a head can come in thousands of them.
    """

    class Timed(kind):  # type: ignore[misc,valid-type]
        def getresponse(self) -> http.client.HTTPResponse:
            late = threading.Event()
            waited = threading.Timer(self.timeout, _hang_up, [self.sock, late])
            waited.daemon = True
            waited.start()
            try:
                answer: http.client.HTTPResponse = super().getresponse()
            finally:
                waited.cancel()
            if late.is_set():  # what there was of the head is taken for all of it
                raise TimeoutError("no answer in time")
            return answer

    return Timed


def _hang_up(connection: socket.socket, late: threading.Event) -> None:
    late.set()
    with suppress(OSError):
        socket.socket.shutdown(connection, socket.SHUT_RDWR)


class _Http(urllib.request.HTTPHandler):
    def http_open(self, req: urllib.request.Request) -> Any:
        return self.do_open(_timed(http.client.HTTPConnection), req)


class _Https(urllib.request.HTTPSHandler):
    def https_open(self, req: urllib.request.Request) -> Any:
        return self.do_open(
            _timed(http.client.HTTPSConnection),
            req,
            context=self._context,  # type: ignore[attr-defined]
        )
