"""Results that a study no longer asks for."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from xaiclip.files import TEMPORARY
from xaiclip.report.catalogue import tables

#: What a wildcard may stand for, where not any part of a path.
_FORMS = {
    "method": "[a-z][a-z0-9_]*",
    "guidance": "full|roi_reference|roi_body|roi",
    "variant": "text|no_text",
    "rest": r"(?!(?:body|reference)[._]).+",  # of a guidance, not what follows it
    "batch": r"(?:train|test)-[^/]+",
    "kind": "csv|md",
}
_MANY = frozenset({"case", "batch"})


def stale_files(
    folder: str | os.PathLike[str],
    written: Sequence[str],
    configured: Mapping[str, Sequence[str]],
) -> list[str]:
    """Files that the workflow once wrote and would not write now.

    Args:
        folder: of the run; one that is not there holds nothing.
        written: what the workflow writes below ``folder``, with wildcards in braces.
        configured: the values that each wildcard still has; one without may be anything.

    Returns:
        Their paths, sorted, and what killed jobs were writing. A file that is like no pattern is
        somebody else's and is not listed.
    """
    # what else lies beside the tables is somebody's own
    forms = {**_FORMS, "name": "|".join(map(re.escape, tables()))}
    patterns = [(_pattern(text, forms), _pattern(text, forms, configured)) for text in written]
    found = []
    for path in sorted(Path(folder).rglob("*")):
        if not path.is_file():
            continue
        if path.name.startswith(TEMPORARY):
            found.append(str(path))
            continue
        name = path.relative_to(folder).as_posix()
        wanted = [now for once, now in patterns if once.fullmatch(name)]
        if wanted and not any(_wanted(now.fullmatch(name), configured) for now in wanted):
            found.append(str(path))
    return found


def remove_files(files: Iterable[str | os.PathLike[str]]) -> None:
    """Remove files, and the folders that are empty without them."""
    for file in files:
        path = Path(file)
        path.unlink(missing_ok=True)
        for folder in path.parents:
            if folder.name == "results" or any(folder.iterdir()):
                break
            folder.rmdir()


def _pattern(
    text: str, forms: Mapping[str, str], configured: Mapping[str, Sequence[str]] = {}
) -> re.Pattern[str]:
    """Names like ``text``; of wildcards with ``configured`` values, only names with one of those.

    A name alone does not tell where an organ ends and a method begins: ``liver_two_words_roi``.
    Cases and batches, of which there may be thousands, are left to `_wanted`.
    """
    parts = re.split(r"\{(\w+)\}", text)
    pieces = [re.escape(part) for part in parts]
    for position in range(1, len(parts), 2):
        name = parts[position]
        form = forms.get(name, r"[^/]+")
        if name in configured and name not in _MANY:
            form = "|".join(map(re.escape, configured[name])) or "(?!)"
        pieces[position] = f"(?P<{name}>{form})"
    return re.compile("".join(pieces))


def _wanted(match: re.Match[str] | None, configured: Mapping[str, Sequence[str]]) -> bool:
    return match is not None and all(
        match[name] in configured[name]
        for name in _MANY & match.groupdict().keys() & configured.keys()
    )
