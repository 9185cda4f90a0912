"""Tables and figures, each stated once, above the function that makes it.

`makes_table` and `makes_figure` state a name, what is read, and a caption, as literals. The rules,
the report's captions and `verify` read them here, by parsing: a look at the workflow loads neither
pandas nor matplotlib. A module of ``report`` or ``report.tables`` that states one is all that it
takes.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

from xaiclip.config.literals import arguments
from xaiclip.errors import ConfigError
from xaiclip.workflow import paths

_HERE = Path(__file__).parent
#: The arguments that need not be named.
_ARGUMENTS = ("name", "reads", "caption")
Function = TypeVar("Function", bound=Callable[..., Any])


@dataclass(frozen=True)
class Made:
    """A table or a figure, as its module states it.

    Attributes:
        place: the function that makes it, ``"module:function"``.
        name: of its files.
        reads: what it is made from, each as `paths.source` reads it.
        caption: for Snakemake's report.
        methods: those that must be on, with settings that they must have.
        beside: the table whose job makes this one, too.
        several: whether it is only made where a case may have several slices.
    """

    place: str
    name: str
    reads: Sequence[str]
    caption: str
    methods: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    beside: str | None = None
    several: bool = False

    @property
    def rule(self) -> str:
        """Of a table: the rule that makes it."""
        name = self.beside or self.name
        return name if name.startswith("table") else f"table_{name}"


def makes_table(
    name: str,
    reads: Sequence[str],
    caption: str,
    *,
    methods: Mapping[str, Mapping[str, Any]] | None = None,
    beside: str | None = None,
    several: bool = False,
) -> Callable[[Function], Function]:
    """State that a function, `tables.data.Study` → `tables.data.Table`, makes a table: see `Made`.

    Every argument is a literal.
    """
    return lambda function: function


def makes_figure(
    name: str,
    reads: Sequence[str],
    caption: str,
    *,
    methods: Mapping[str, Mapping[str, Any]] | None = None,
    several: bool = False,
) -> Callable[[Function], Function]:
    """State that a function, `Sources`, `Settings` → data, makes a figure: see `Made`.

    Every argument is a literal. `drawing.draw` knows how such data is drawn.
    """
    return lambda function: function


def tables() -> dict[str, Made]:
    """Every table, by name.

    Raises:
        ConfigError: a statement is wrong, or two are of one name.
    """
    return _all(makes_table.__name__)


def figures() -> dict[str, Made]:
    """Every figure, by name; as `tables`."""
    return _all(makes_figure.__name__)


def load(place: str) -> Callable[..., Any]:
    """The function behind ``"module:function"``."""
    module, _, name = place.partition(":")
    function: Callable[..., Any] = getattr(import_module(module), name)
    return function


def _all(decorator: str) -> dict[str, Made]:
    found: dict[str, Made] = {}
    for path in sorted(_HERE.rglob("*.py")):
        for one in _stated(path, decorator, path.stat().st_mtime_ns):
            if one.name in found:
                raise ConfigError(
                    f"'{found[one.name].place}' and '{one.place}' are both called '{one.name}': "
                    "rename one of them."
                )
            found[one.name] = one
    return dict(sorted(found.items()))


@cache
def _stated(path: Path, decorator: str, _mtime: int) -> list[Made]:
    text = path.read_text(encoding="utf-8")
    if f"@{decorator}(" not in text:
        return []
    module = ".".join(("xaiclip.report", *path.relative_to(_HERE).with_suffix("").parts))
    found = []
    for node in ast.parse(text, str(path)).body:
        for call in getattr(node, "decorator_list", []):
            if isinstance(call, ast.Call) and ast.unparse(call.func) == decorator:
                place = f"{module}:{node.name}"  # type: ignore[attr-defined]
                found.append(_made(place, call))
    return found


def _made(place: str, call: ast.Call) -> Made:
    try:
        made = Made(place, **arguments(call, _ARGUMENTS))
        for one in made.reads:
            paths.source(one)
    except ValueError:
        problem = "has arguments that are computed; write literals"
    except (TypeError, KeyError) as error:
        problem = f"is stated wrongly ({error}); see xaiclip.report.catalogue"
    else:
        return made
    raise ConfigError(f"'{place}' {problem}.")
