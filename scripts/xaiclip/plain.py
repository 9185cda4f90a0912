"""JSON that comes from outside: small, plain, and with nothing in it that would run code."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from xaiclip.errors import ConfigError

#: Bytes of a configuration; published ones have some kB.
MAX_JSON = 1 << 20
#: Largest whole number: a vocabulary of a quarter of a million words is known.
MAX_NUMBER = 1 << 20
#: Largest number of layers, of heads, of a list's entries: each costs time to make.
MAX_COUNT = 512
#: Keys by which transformers is told to run Python files that lie beside a model, or on a hub.
CODE = ("trust_remote_code", "auto_map")

_WORD = re.compile(r"[\w.+/<>\[\]| -]{0,200}")


def keys(text: str) -> frozenset[str]:
    """Names of keys, written one after the other."""
    return frozenset(text.split())


def read_json(path: Path, most: int = MAX_JSON) -> dict[str, Any]:
    """A JSON file's object.

    Raises:
        ConfigError: no such file, too large, no JSON, or no object at its top; it asks for code
            to be run (see `CODE`).
    """
    if not path.is_file():
        raise ConfigError(f"{path} does not exist, or is not a regular file.")
    try:
        with open(path, "rb") as stream:
            raw = stream.read(most + 1)
        if len(raw) > most:
            raise ConfigError(f"{path} has more than {most} bytes: it is no configuration.")
        content = json.loads(raw.decode())
        if not isinstance(content, dict):
            raise ConfigError(f"{path} holds no object at its top: it is no configuration.")
        refuse_code(content, path)
    except (ValueError, RecursionError, OSError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{path} is no JSON: restore it, or fetch it again.") from error
    return content


def refuse_code(content: object, path: Path) -> None:
    """Refuse an object with a key of `CODE` anywhere inside, whatever its value is.

    Raises:
        ConfigError: names the key.
    """
    for key, _ in _walk(content):
        if key in CODE:
            raise ConfigError(
                f"{path} holds '{key}', by which Python code that comes with a model would run: "
                "such a model is not loaded; use one without code of its own."
            )


def check_keys(where: str, content: object, known: Collection[str]) -> dict[str, Any]:
    """A section with no other keys than ``known`` and only plain values.

    Plain are null, booleans, short words, finite numbers that a model can have, and lists and
    sections of those.

    Raises:
        ConfigError: names the key.
    """
    if not isinstance(content, Mapping):
        raise ConfigError(f"{where} is no section with keys.")
    for key in content:
        if key not in known:
            raise ConfigError(f"{where} holds {key!r:.80}, which is not read here: take it out.")
    for key, value in _walk(content):
        if not _is_plain(key, value):
            raise ConfigError(f"{where}: the value of {key!r:.80} is none that a model can have.")
    return dict(content)


def _is_plain(key: str, value: object) -> bool:
    if value is None or isinstance(value, bool):
        return True
    if isinstance(value, str):
        return _WORD.fullmatch(value) is not None and ".." not in value
    if isinstance(value, int):
        many = "layers" in key or "heads" in key or "depth" in key
        return -MAX_COUNT <= value <= (MAX_COUNT if many else MAX_NUMBER)
    if isinstance(value, float):
        return math.isfinite(value) and abs(value) <= MAX_NUMBER
    return isinstance(value, list | dict) and len(value) <= MAX_COUNT


def _walk(content: object, key: str = "") -> Iterator[tuple[str, object]]:
    """Every value below, with the key that it, or the list that it is in, stands under."""
    if isinstance(content, Mapping):
        for name, value in content.items():
            yield str(name), value
            yield from _walk(value, str(name))
    elif isinstance(content, list):
        for value in content:
            yield key, value
            yield from _walk(value, key)
