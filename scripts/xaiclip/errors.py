"""What can be wrong with input and with the disk, and the record of what was left out."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from traceback import TracebackException

from xaiclip.extras import missing

_log = logging.getLogger(__name__)

#: How the reason begins of what nobody foresaw.
UNEXPECTED = "unexpected: "


def printable(text: object) -> str:
    r"""Text on one line: what is not printable stands as its escape (``\n``, ``\x1b``).

    Names and headers of other people's files may hold line breaks, or codes that steer a terminal.
    """
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(text))


class ConfigError(ValueError):
    """The configuration or the sample sheet is wrong: nothing may start.

    The message is one sentence that names the key or the row and the cure.
    """


class CaseError(ValueError):
    """One case (or slice, or organ) cannot be used: it is left out, the study goes on.

    A path may hold a patient's name, so it stands apart from the words: ``str(error)`` has both,
    for whoever gave the file; what is published has the reason alone.

    Attributes:
        reason: a sentence about the file (or the organ), which it does not name, with the cure;
            on one line (`printable`).
        file: the file it is about; None where there is none.
    """

    def __init__(self, reason: str, file: str | os.PathLike[str] | None = None) -> None:
        self.reason = printable(reason)
        super().__init__(self.reason if file is None else f"{printable(file)}: {self.reason}")
        self.file = None if file is None else Path(file)


@contextmanager
def named_extras() -> Iterator[None]:
    """Where the block imports what only an extra brings, its absence gets a sentence.

    Raises:
        ConfigError: the package is not installed; it names the extra.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if sentence := missing(error):
            raise ConfigError(sentence) from error
        raise


class StorageError(OSError):
    """A result cannot be written: the disk is full, or may not be written to.

    The message is one sentence that names the file, and one with the cure.
    """


@dataclass(frozen=True)
class Skip:
    """Something that was left out, and why: one row of ``skipped.tsv``.

    ``slice`` is the axial index in the canonical volume; None where the whole case is meant,
    as an ``organ`` of None means all organs.
    """

    case: str
    stage: str
    reason: str
    slice: int | None = None
    organ: str | None = None

    def to_dict(self) -> dict[str, str | int | None]:
        """The row as plain builtins."""
        return asdict(self)


@dataclass(frozen=True)
class Caution:
    """Something that was used though it looks wrong: one row of ``warnings.tsv``."""

    case: str
    stage: str
    reason: str

    def to_dict(self) -> dict[str, str]:
        """The row as plain builtins."""
        return asdict(self)


@contextmanager
def left_out(
    skips: list[Skip],
    case: str,
    stage: str,
    slice: int | None = None,
    organ: str | None = None,
) -> Iterator[None]:
    """What goes wrong in the block costs this case (slice, organ) alone: it is added to ``skips``.

    That holds for what nobody foresaw, too, whose traceback goes to the log, and for a case that
    memory does not hold. A wrong configuration, a disk that cannot be written to and a GPU that
    broke down are nobody's case: they end the job.
    """
    try:
        yield
    except CaseError as error:
        reason = error.reason
        _log.warning("%s: %s", _words(case, slice, organ), reason)
    except (Exception, SystemExit) as error:  # a user's own code may call sys.exit
        if isinstance(error, ConfigError | StorageError) or _of_the_machine(error):
            raise
        if sentence := missing(error):  # nobody's case, either
            raise ConfigError(sentence) from error
        reason = f"{UNEXPECTED}{type(error).__name__}; the log of the stage has the details."
        if isinstance(error, MemoryError):
            reason = f"{UNEXPECTED}MemoryError; it does not fit into memory: give the job more."
        _log.exception("%s: unexpected, left out", _words(case, slice, organ))
    else:
        return
    skips.append(Skip(case, stage, reason, slice, organ))


def whole(skips: Iterable[Skip]) -> list[Skip]:
    """The slices that a stage left out: the stages after it know nothing else of them."""
    return [skip for skip in skips if skip.slice is not None and skip.organ is None]


def refuse_broken(done: int, skips: Iterable[Skip], what: str, probe: Callable[[], object]) -> None:
    """Refuse a model that works on nothing: it is not the cases that are wrong.

    Where a job finished no slice at all and met what nobody foresaw, ``probe`` gives the model a
    plain image. If that goes well, the cases are to blame, and stay left out.

    Args:
        done: slices that the job finished.
        skips: what it left out.
        what: the model's part in the sentence.
        probe: calls the model.

    Raises:
        ConfigError: ``probe`` fails as well; one sentence.
    """
    if done or not any(skip.reason.startswith(UNEXPECTED) for skip in skips):
        return
    try:
        probe()
    except Exception as error:
        words = f"{type(error).__name__}: {TracebackException.from_exception(error)}"
        words = printable(words)[:300].rstrip(".")
        raise ConfigError(
            f"{what} fails on a plain test image as on every slice ({words}): mend it; the log has "
            "the traceback."
        ) from error


def _words(case: str, slice: int | None, organ: str | None) -> str:
    """What was left out, for the log."""
    parts = (case, None if slice is None else f"slice {slice}", organ)
    return ", ".join(part for part in parts if part is not None)


def _of_the_machine(error: BaseException) -> bool:
    """Whether the disk is full or the GPU is lost: whatever comes next would fail as well."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    words = str(TracebackException.from_exception(error))  # whatever its own __str__ does
    lost = type(error).__name__ == "AcceleratorError" or words.startswith("CUDA error")
    return lost and "out of memory" not in words
