"""Nothing of a patient in what is published: paths and identifiers out of words, private files.

What people publish of a study (metrics, tables, figures, logs, provenance.json) names a case and a
role: ``case7/image``. Where that file lies, and what it is called, stands in `PRIVATE` alone.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from traceback import TracebackException
from typing import Any

from xaiclip.errors import printable

#: Folder below a run's, for its owner alone: where the files of the cases lie.
PRIVATE = "private"
#: In it: the configuration as it is, and the files of weights.
STUDY = "study.json"
#: What stands for a path in the published configuration.
HIDDEN = "(private)"

#: A DICOM unique identifier: at least five numbers between dots.
_UID = re.compile(r"(?<![\w.])[0-2](?:\.\d+){4,}(?![\w.])")
#: Names inside a folder that are looked for; more would make every line slow.
_MOST_NAMES = 20_000
#: What stands behind a path that was replaced is a path as well.
_REST = re.compile(r"(<[\w.-]+/\w+>)(?:/[^\s'\":,;()\\]*)+")


class Redactor:
    """Puts ``<case/role>`` in the place of a case's paths, of their parts, and of UIDs.

    Args:
        files: each case's files or folders, by role (``image``, ``label``).
        keep: paths whose parts are no secret, such as those of results.
        below: whether the names of files inside a case's folder are looked for, too.
    """

    def __init__(
        self,
        files: Mapping[str, Mapping[str, str | os.PathLike[str] | None]],
        keep: Iterable[str | os.PathLike[str]] = (),
        below: bool = True,
    ) -> None:
        self._files = files
        self._keep = [Path.cwd(), Path(__file__), *map(Path, keep)]
        self._below = below
        self._known: list[tuple[re.Pattern[str], str, str]] | None = None

    def __call__(self, text: str) -> str:
        """The text without them."""
        if self._known is None:
            self._known = self._words()
        for pattern, word, name in self._known:
            if word in text:
                text = pattern.sub(name, text)
        return _UID.sub("<UID>", _REST.sub(r"\1", text))

    def _words(self) -> list[tuple[re.Pattern[str], str, str]]:
        """What to look for and what to put there, the longest first."""
        known: dict[str, str] = {}
        kept = {*self._files, *(part for path in self._keep for part in path.parts)}
        for case, roles in self._files.items():
            for role, file in roles.items():
                for word in _words_of(Path(file), self._below) if file else ():
                    if word not in kept and _telling(word):
                        known.setdefault(word, f"<{case}/{role}>")
        return [
            # a short one may be part of another word
            (
                re.compile(re.escape(word) if len(word) > 8 else rf"\b{re.escape(word)}\b"),
                word,
                name,
            )
            for word, name in sorted(known.items(), key=lambda item: -len(item[0]))
        ]


def _words_of(path: Path, below: bool) -> Iterator[str]:
    """The path as it may be spelled, its parts, and the names inside it."""
    for spelling in {str(path), os.path.abspath(path), os.path.realpath(path)}:
        yield spelling
        yield from Path(spelling).parts
    yield path.name.split(".")[0]
    inside = ((folder, name) for folder, *both in os.walk(path) for names in both for name in names)
    for folder, name in islice(inside, _MOST_NAMES if below else 0):
        yield from (os.path.join(folder, name), name, name.split(".")[0])


def _telling(word: str) -> bool:
    """Whether a part of a path can be told from words and numbers of a message."""
    if word.isdigit():
        return len(word) >= 6
    return len(word) >= 4 and not (word.isalpha() and word.islower())


class LogFormatter(logging.Formatter):
    """One line for a record, whatever is in it; tracebacks keep theirs. Paths are redacted.

    Args:
        redact: for warnings and errors.
        quickly: for everything else, which need not look into every folder of scans.
    """

    def __init__(
        self, redact: Callable[[str], str], quickly: Callable[[str], str] | None = None
    ) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S")
        self._redact = redact
        self._quickly = quickly or redact

    def formatMessage(self, record: logging.LogRecord) -> str:
        """The record without its traceback."""
        redact = self._redact if record.levelno >= logging.WARNING else self._quickly
        record.message = redact(printable(record.message))
        return super().formatMessage(record)

    def formatException(self, ei: Any) -> str:
        """The traceback: lines of code as they are, the words of the error on one line."""
        traceback = TracebackException(*ei)
        linked: list[TracebackException | None] = [traceback]
        for one in linked:  # grows while it is gone through
            if one is not None:
                one.__notes__ = [printable(note) for note in one.__notes__ or ()]
                linked += [one.__cause__, one.__context__]
        lines = []
        for piece in traceback.format():
            # frames are code, and the words between linked errors are Python's
            if not piece.startswith(('  File "', "\nThe above exc", "\nDuring handling")):
                piece = printable(piece.rstrip("\n")) + "\n"
            lines.append(self._redact(piece))
        return "".join(lines).rstrip("\n")


def public(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration without the user's paths: `HIDDEN` stands for each.

    Names that a catalogue or a hub resolves stay (``compact``, ``ViT-L-14``, ``hf-hub:…``).
    """
    return {key: _public(value, key) for key, value in config.items()}


#: Keys that name a file, or a thing that is no file.
_PATHS = ("sheet", "downloads", "weights", "backbone", "pretrained", "checkpoint", "factory")


def _public(value: Any, key: str) -> Any:
    if isinstance(value, Mapping):
        return {name: _public(item, str(name)) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_public(item, key) for item in value]
    if not isinstance(value, str) or value.startswith("hf-hub:"):
        return value
    path = "/" in value or "\\" in value or (key in _PATHS and os.path.exists(value))
    return HIDDEN if path or key == "sheet" else value


def case_files(rows: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, str | None]]:
    """Files by case and role, of a batch's rows in a rule's parameters."""
    return {str(row["name"]): {role: row.get(role) for role in ("image", "label")} for row in rows}


def private_files(run: str | os.PathLike[str], batch: str = "*") -> dict[str, dict[str, str]]:
    """Files by case and role, of a run or of one batch, as its private folder has them."""
    cases: dict[str, dict[str, str]] = {}
    for path in sorted(Path(run, PRIVATE).glob(f"{batch}.json")):
        if path.name != STUDY:
            cases |= json.loads(path.read_text(encoding="utf-8"))
    return cases
