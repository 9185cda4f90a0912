"""Sections of the configuration that dataclasses state, read from their sources.

What a method's module states with `xaiclip.explain.settings` is read by parsing it: loading it
would load torch, scikit-image and the like in every look at the workflow.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from xaiclip import plugins
from xaiclip.config.literals import arguments
from xaiclip.errors import ConfigError
from xaiclip.explain import PACKAGE
from xaiclip.explain.settings import MAP, PLAN

_OWN = Path(__file__).parents[1] / "explain"
#: The arguments of `setting`, in their order.
_ARGUMENTS = ("default", "meaning")
_LIMITS = {
    "minimum": "minimum",
    "maximum": "maximum",
    "above": "exclusiveMinimum",
    "below": "exclusiveMaximum",
}
_TYPES = {"int": "integer", "float": "number", "str": "string", "bool": "boolean"}
Schema = dict[str, Any]


@dataclass(frozen=True)
class Source:
    """What a method's module states, as JSON schemas by key.

    Attributes:
        module: its dotted name.
        path: its file.
        meaning: the first line of its docstring.
        plan: what its forwards hang on.
        maps: what only its maps hang on.
        adaptive: defaults of the settings of which another value makes ``refine`` look at scores.
        refines: whether it has such a function.
        differentiates: whether it asks for gradients, of the explained values alone.
    """

    module: str
    path: Path
    meaning: str
    plan: Schema
    maps: Schema
    adaptive: dict[str, Any]
    refines: bool
    differentiates: bool

    @property
    def folder(self) -> Path:
        """The folder that holds its top-level package."""
        levels = self.module.count(".") + (self.path.name == "__init__.py")
        return self.path.parents[levels]

    def split(self, values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """A complete section as what the plans and what the maps hang on."""
        plan, maps = ({key: values[key] for key in part} for part in (self.plan, self.maps))
        return plan, maps

    def asked(self, settings: Mapping[str, Any], values: Sequence[str]) -> list[str]:
        """Those of the value functions that what the models do hangs on.

        All, where they are differentiated; where ``refine`` looks at scores, the first; else none,
        since every one is scored.
        """
        if self.differentiates:
            return [*values]
        looks = self.refines
        if self.adaptive:
            looks = any(settings[key] != default for key, default in self.adaptive.items())
        return [*values[:looks]]


def methods(*, own: bool = False) -> dict[str, Source]:
    """Every method, by name: those of this package, and unless ``own`` those of other packages.

    Raises:
        ConfigError: a module whose settings cannot be read.
    """
    places = {} if own else dict(_brought())
    places |= {path.stem: (f"{PACKAGE}.{path.stem}", path) for path in sorted(_OWN.glob("*.py"))}
    found = {
        name: source(module, path, path.stat().st_mtime_ns)
        for name, (module, path) in places.items()
    }
    return {name: one for name, one in sorted(found.items()) if one is not None}


def section(one: Source) -> Schema:
    """The JSON schema of a method's section."""
    return {
        "type": "object",
        "additionalProperties": False,
        "default": {},
        "description": one.meaning,
        "properties": {**one.plan, **one.maps},
    }


def properties(place: str) -> Schema:
    """The settings of a dataclass of this library, by key: ``"xaiclip.masks.roi:RoiSettings"``.

    Its fields that are no `setting` are no keys.
    """
    module, _, name = place.partition(":")
    path = _OWN.parents[1].joinpath(*module.split(".")).with_suffix(".py")
    return _own_properties(path, name, path.stat().st_mtime_ns)


@cache
def _own_properties(path: Path, name: str, _mtime: int) -> Schema:
    return _Classes(path, ast.parse(path.read_text(encoding="utf-8"))).properties(name, plain=True)


@cache
def _brought() -> dict[str, tuple[str, Path]]:
    """Methods of other packages: name, module and file, found without loading the package."""
    found = {}
    for entry in plugins.brought(plugins.METHODS).values():
        top, *rest = entry.value.split(".")
        spec = find_spec(top)
        places = list(spec.submodule_search_locations or []) if spec and rest else []
        files = [
            file
            for place in places
            for file in (Path(place, *rest).with_suffix(".py"), Path(place, *rest, "__init__.py"))
        ]
        if spec and spec.origin and not rest:
            files = [Path(spec.origin)]
        path = next((file for file in files if file.is_file()), None)
        if path is None or not re.fullmatch(r"[a-z][a-z0-9_]*", entry.name):
            raise ConfigError(
                f"the installed method '{entry.name}' ({entry.value}) is no module of which there "
                "is a file: uninstall or correct the package that brings it."
            )
        found[entry.name] = entry.value, path
    return found


@cache
def source(module: str, path: Path, _mtime: int = 0) -> Source | None:
    """What a module states; None if it is no method.

    Raises:
        ConfigError: it is one, and its settings are not stated as literals.
    """
    text = path.read_text(encoding="utf-8")
    if f"class {PLAN}" not in text:
        return None
    try:
        tree = ast.parse(text, str(path))
    except SyntaxError as error:
        raise ConfigError(f"the method '{path}' is no Python ({error}).") from None
    classes = _Classes(path, tree)
    plan, maps = (classes.properties(name) for name in (PLAN, MAP))
    if twice := plan.keys() & maps.keys():
        raise ConfigError(f"the method '{path}' has the setting '{min(twice)}' twice.")
    adaptive = {key: one["default"] for key, one in plan.items() if one.pop("adaptive", False)}
    functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    has = ["refine" in functions, "gradient" in functions]
    meaning = (ast.get_docstring(tree) or "").partition("\n")[0]
    return Source(module, path, meaning, plan, maps, adaptive, *has)


class _Classes:
    def __init__(self, path: Path, tree: ast.Module) -> None:
        self.path = path
        self.classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}

    def properties(self, name: str, plain: bool = False) -> Schema:
        """The settings of one of the module's dataclasses, by key; none if there is no such one.

        Where it may have plain fields, they are left aside.
        """
        node = self.classes.get(name)
        if node is None:
            return {}
        if node.bases:
            raise self._wrong(name, "inherits its keys", "state them in the class itself")
        return {
            line.target.id: self._schema(f"{name}.{line.target.id}", line)
            for line in node.body
            if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name)
            if not plain or isinstance(line.value, ast.Call)
        }

    def _schema(self, where: str, line: ast.AnnAssign) -> Schema:
        call = line.value
        function = ast.unparse(call.func) if isinstance(call, ast.Call) else ""
        if not isinstance(call, ast.Call) or function not in ("setting", "section"):
            raise self._wrong(where, "is no 'setting(…)'", "give it a default and a meaning so")
        if function == "section":
            kind, meaning = call.args
            below = self.properties(ast.unparse(kind))
            return {
                "type": "object",
                "additionalProperties": False,
                "default": {},
                "description": ast.literal_eval(meaning),
                "properties": below,
            }
        try:
            given = arguments(call, _ARGUMENTS)
        except ValueError:
            raise self._wrong(where, "has arguments that are computed", "write literals") from None
        limits = {_LIMITS[key]: number for key, number in given.items() if key in _LIMITS}
        if given.get("one_of"):
            limits["enum"] = [*given["one_of"]]
        default = given["default"]
        schema = {
            **self._type(where, ast.unparse(line.annotation), limits),
            "default": [*default] if isinstance(default, tuple) else default,
            "description": given["meaning"],
        }
        return {**schema, "adaptive": True} if given.get("adaptive") else schema

    def _type(self, where: str, annotation: str, limits: Schema) -> Schema:
        plain, _, rest = annotation.partition(" | ")
        items = re.fullmatch(r"(?:Sequence\[(\w+)\]|tuple\[(\w+), \.\.\.\])", plain)
        name = (items[1] or items[2]) if items else plain
        if name not in _TYPES or rest not in ("", "None"):
            raise self._wrong(
                where, f"is of type {annotation}", "take int, float, str, bool or a Sequence of one"
            )
        # words say their type themselves
        kind = {**limits} if "enum" in limits else {"type": _TYPES[name], **limits}
        if items:
            kind = {"type": "array", "items": kind, "minItems": 1, "uniqueItems": True}
        if rest and "type" in kind:
            kind["type"] = [kind["type"], "null"]
        elif rest:
            kind["enum"] = [*kind["enum"], None]
        return kind

    def _wrong(self, where: str, what: str, cure: str) -> ConfigError:
        return ConfigError(f"the method '{self.path}': {where} {what}; {cure}.")
