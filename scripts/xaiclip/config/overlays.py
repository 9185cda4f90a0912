"""Config files as they are written: what YAML would swallow in silence is refused.

Snakemake reads the files itself, by YAML's rules: of two equal keys the last wins, 0012 is the
number 10 and 2024-01-01 a date.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from xaiclip.errors import ConfigError

_TAG = "tag:yaml.org,2002:"


def check_file(path: str | os.PathLike[str]) -> None:
    """Refuse a config file (YAML or JSON) of which a reader keeps less than stands there.

    Raises:
        ConfigError: a key that stands twice in one section, or a number that is not what it looks
            like; one sentence with the file, the line and the cure. Whether the keys are right is
            `xaiclip.config.complete`'s to say.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError):
        raise ConfigError(f"the config file '{path}' is not a UTF-8 text file.") from None
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError:
        _check_json(text, path)  # a tab is fine there
        return
    for node in _nodes(root):
        if isinstance(node, yaml.MappingNode):
            _check_keys(node, path)
        elif isinstance(node, yaml.ScalarNode):
            _check_scalar(node, path)


def _nodes(root: yaml.Node | None) -> Iterator[yaml.Node]:
    """Every node once; an alias may lead back to where it stands."""
    seen: set[int] = set()
    waiting = [] if root is None else [root]
    while waiting:
        node = waiting.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        yield node
        if isinstance(node, yaml.MappingNode):
            waiting += [part for pair in reversed(node.value) for part in reversed(pair)]
        elif isinstance(node, yaml.SequenceNode):
            waiting += reversed(node.value)


def _check_keys(node: yaml.MappingNode, path: Path) -> None:
    lines: dict[str, int] = {}
    for key, _ in node.value:
        # as text, as the configuration takes it: 1 and "1" are the same label
        name, line = str(key.value), key.start_mark.line + 1
        if name == "__use_yte__":
            raise ConfigError(f"{path}, line {line}: templates (__use_yte__) are not read here.")
        if name in lines:
            raise ConfigError(
                f"{path}, line {line}: the key '{name}' stands there twice, first in line "
                f"{lines[name]}, and the last would win: join them."
            )
        lines[name] = line


def _check_scalar(node: yaml.ScalarNode, path: Path) -> None:
    if node.style is not None:  # quoted: it is the text that it looks like
        return
    text, kind = node.value, node.tag.removeprefix(_TAG)
    number = kind in ("int", "float")
    if (number and (":" in text or re.match(r"[-+]?0[\d_]", text))) or kind == "timestamp":
        read = yaml.safe_load(text)
        raise ConfigError(
            f"{path}, line {node.start_mark.line + 1}: YAML reads {text} as {read}: put it in "
            "quotes if it is a name, or write the number without leading zeros."
        )


def _check_json(text: str, path: Path) -> None:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                raise ConfigError(
                    f"{path}: the key '{key}' stands twice in one section, and the last would "
                    "win: join them."
                )
            found[key] = value
        return found

    try:
        json.loads(text, object_pairs_hook=unique)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"{path} is neither YAML nor JSON ({error}).") from None
