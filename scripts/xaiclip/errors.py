"""What can be wrong with input and with the disk, and the record of what was left out."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

_log = logging.getLogger(__name__)


class ConfigError(ValueError):
    """The configuration or the sample sheet is wrong: nothing may start.

    The message is one sentence that names the key or the row and the cure.
    """


class CaseError(ValueError):
    """One case (or slice, or organ) cannot be used: it is left out, the study goes on.

    A path may hold a patient's name, so it stands apart from the words: ``str(error)`` has both,
    for whoever gave the file; what is published has the reason alone.

    Attributes:
        reason: a sentence about the file (or the organ), which it does not name, with the cure.
        file: the file it is about; None where there is none.
    """

    def __init__(self, reason: str, file: str | os.PathLike[str] | None = None) -> None:
        super().__init__(reason if file is None else f"{file}: {reason}")
        self.reason = reason
        self.file = None if file is None else Path(file)


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

    That holds for what nobody foresaw, too, whose traceback goes to the log, and for a machine
    without memory left. A wrong configuration and a disk that cannot be written to end the job.
    """
    try:
        yield
    except (ConfigError, StorageError):
        raise
    except CaseError as error:
        _log.warning("%s: %s", case, error.reason)
        reason = error.reason
    except Exception as error:
        _log.exception("%s: unexpected", case)
        reason = f"unexpected: {type(error).__name__}; the log of the stage has the details."
    else:
        return
    skips.append(Skip(case, stage, reason, slice, organ))
