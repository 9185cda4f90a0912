"""What names and paths may look like: they become file names, commands and pages.

Patterns are matched whole (`re.fullmatch`): ``$`` would let a final newline through.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from typing import Any

from xaiclip.errors import ConfigError
from xaiclip.organs import file_stem

#: Of cases and batches.
NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")
#: Names are parts of file names, of which no file system takes more than 255 characters.
MAX_NAME = 100
#: Of classes: words of letters (of any script) and digits, with one mark between them.
CLASS = re.compile(r"[^\W_]+(?:[ _.-][^\W_]+)*")
MAX_CLASS = 60

#: Control characters, halves of characters (undecodable bytes), line and paragraph separators.
_UNPRINTABLE = ("Cc", "Cs", "Zl", "Zp")
#: What a shell, or a page, would take for more than a character.
_UNSAFE = "$`'\"\\<>"


def check_class(name: str, where: str) -> None:
    """Refuse a class name that cannot be part of a file name, a table and a page.

    Raises:
        ConfigError: ``where`` (the key) begins the sentence.
    """
    if len(name) > MAX_CLASS:
        raise ConfigError(f"{where} has the name {name[:20]!r}…: {MAX_CLASS} characters are most.")
    if not CLASS.fullmatch(name):
        raise ConfigError(
            f"{where} has the name {name!r}: make it of letters and digits, with one space, '_', "
            "'-' or '.' between words."
        )


def check_distinct(names: Iterable[str], where: str) -> None:
    """Refuse classes whose files would have the same name, at least where case does not count.

    Raises:
        ConfigError: names both.
    """
    seen: dict[str, str] = {}
    for name in names:
        stem = unicodedata.normalize("NFKC", file_stem(name)).casefold()
        twin = seen.setdefault(stem, name)
        if twin != name:
            raise ConfigError(
                f"{where} has {twin!r} and {name!r}, whose files would have the same name: "
                "rename one."
            )


def check_path(path: str, where: str, *, braces: bool = True) -> None:
    """Refuse a path that a shell or a page could take for something else.

    Args:
        path: as the user gave it, or the folder that a study runs in.
        where: begins the sentence.
        braces: whether ``{`` and ``}`` are fine, which Snakemake takes for wildcards.

    Raises:
        ConfigError: one sentence with the path and the character.
    """
    for character in path:
        wild = not braces and character in "{}"
        if wild or character in _UNSAFE or unicodedata.category(character) in _UNPRINTABLE:
            raise ConfigError(
                f"{where}: the path {path!r} holds {character!r}, which a shell or Snakemake "
                "takes for something else: rename the file or folder."
            )


def check_text(value: Any, key: str = "") -> None:
    """Refuse text, anywhere in a value of the configuration, that is more than plain words.

    The configuration is written into logs, tables and the report's page.

    Raises:
        ConfigError: a string or key holds ``<``, ``>`` or a control character; names the key.
    """
    if isinstance(value, dict):
        for name, item in value.items():
            check_text(str(name), key)
            check_text(item, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list):
        for item in value:
            check_text(item, key)
    elif isinstance(value, str):
        for character in value:
            if character in "<>" or unicodedata.category(character) in _UNPRINTABLE:
                raise ConfigError(
                    f"config key {key!r} holds {character!r}, which has no place in names and "
                    "settings: take it out."
                )
