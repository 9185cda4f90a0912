"""What can be wrong with input and with the disk, and the record of what was left out."""

from __future__ import annotations

from dataclasses import asdict, dataclass


class ConfigError(ValueError):
    """The configuration or the sample sheet is wrong: nothing may start.

    The message is one sentence that names the key or the row and the cure.
    """


class CaseError(ValueError):
    """One case (or slice, or organ) cannot be used: it is left out, the study goes on.

    The message is one sentence that names the file or the organ and the cure.
    """


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
