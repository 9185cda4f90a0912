"""A module as units: its top-level statements, with what each binds, uses and runs.

A unit's text is the code's structure: comments, docstrings and layout leave no trace in it.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

#: A dotted name as it is written: ``("np", "linalg", "norm")``.
Chain = tuple[str, ...]
#: Decorators that give back the function or class, and leave it nowhere else.
_PLAIN_DECORATORS = frozenset(
    {
        *("dataclass", "cache", "lru_cache", "cached_property", "property", "setter", "override"),
        *("staticmethod", "classmethod", "wraps", "abstractmethod", "contextmanager", "overload"),
        *("final", "total_ordering", "runtime_checkable", "inference_mode", "no_grad"),
        *("makes_table", "makes_figure"),
    }
)
#: Calls of other packages that do nothing but make their value.
_PLAIN_CALLS = frozenset(
    {
        *("compile", "getLogger", "Path", "frozenset", "set", "dict", "list", "tuple", "range"),
        *("namedtuple", "TypeVar", "ParamSpec", "NewType", "MappingProxyType"),
    }
)
#: Names by which code reaches what it does not name.
MARKS = frozenset(
    {
        *("__doc__", "getdoc", "__subclasses__", "globals", "vars", "eval", "exec"),
    }
)
#: Fields of the syntax tree that say nothing of what runs.
_LAYOUT = frozenset(("ctx", "type_comment", "type_ignores", "kind"))


@dataclass(frozen=True)
class Binding:
    """What an import binds: a module, or a name in one (``name`` is "*" for all)."""

    module: str
    name: str | None = None


@dataclass
class Unit:
    """A top-level statement.

    Attributes:
        binds: the names that it defines.
        runs: whether it counts as soon as its module is imported.
        text: its structure, without docstrings.
        docs: its docstrings.
        uses: dotted names that it reads.
        first: those that it reads when the module is imported, even if ``runs`` is false.
        bindings: names that imports inside of it bind.
        imports: modules that imports inside of it may load.
        strings: string constants that could name a module or a file.
        marks: of `MARKS`.
        bases: of a class.
        hooks: whether a class hears of its subclasses.
        wrappers: decorators that may keep what they decorate.
        context: whether it is a context manager, which as a decorator keeps nothing.
        lines: the first and the last one in the file.
    """

    binds: set[str] = field(default_factory=set)
    runs: bool = False
    text: str = ""
    docs: list[str] = field(default_factory=list)
    uses: set[Chain] = field(default_factory=set)
    first: set[Chain] = field(default_factory=set)
    bindings: dict[str, list[Binding]] = field(default_factory=dict)
    imports: set[str] = field(default_factory=set)
    strings: set[str] = field(default_factory=set)
    marks: set[str] = field(default_factory=set)
    bases: list[Chain] = field(default_factory=list)
    hooks: bool = False
    wrappers: list[Chain | None] = field(default_factory=list)
    context: bool = False
    lines: tuple[int, int] = (0, 0)


def is_type_checking(node: ast.AST) -> bool:
    """Whether a test is ``TYPE_CHECKING``, so that only type checkers read what follows."""
    return (isinstance(node, ast.Name) and node.id == "TYPE_CHECKING") or (
        isinstance(node, ast.Attribute) and node.attr == "TYPE_CHECKING"
    )


def units_of(path: Path, package: Chain) -> list[Unit]:
    """The units of a file; ``package`` is what its relative imports start from."""
    tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    lazy = any(
        isinstance(node, ast.ImportFrom) and node.module == "__future__" for node in tree.body
    )
    return [_unit(node, package, lazy) for node in tree.body]


def _unit(node: ast.stmt, package: Chain, lazy: bool) -> Unit:
    decorators = getattr(node, "decorator_list", [])
    start = min(one.lineno for one in (node, *decorators))
    unit = Unit(lines=(start, node.end_lineno or start))
    reader = _Reader(unit, package, lazy)
    reader.read(node)
    unit.text = "".join(reader.text)
    if _is_text(node):
        unit.text, unit.docs, unit.runs = "", [unit.text], True
    elif isinstance(node, ast.Import | ast.ImportFrom):
        unit.text, unit.runs = "", True  # what it binds counts where it is used
    elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        unit.binds = {node.name}
        unit.wrappers = list(_wrappers(node))
        unit.context = any(
            (_decorator(one) or ("",))[-1] == "contextmanager" for one in node.decorator_list
        )
        unit.first = _read_first(node, package, lazy)
        if isinstance(node, ast.ClassDef):
            unit.runs = bool(node.keywords)  # of a metaclass, or for the base's hook
            unit.bases = [chain for base in node.bases if (chain := _chain(base))]
            unit.hooks = bool(node.keywords) or any(
                isinstance(one, ast.FunctionDef) and one.name == "__init_subclass__"
                for one in node.body
            )
    elif (names := _assigned(node)) is not None:
        unit.binds = names
        unit.runs = not all(map(_is_plain_call, _calls(node)))
    else:
        unit.binds = reader.stored
        unit.runs = True
    return unit


def _assigned(node: ast.stmt) -> set[str] | None:
    """The names of an assignment to nothing but names; None for any other statement."""
    if isinstance(node, ast.Assign):
        targets = node.targets
    elif isinstance(node, ast.AnnAssign):
        targets = [node.target]
    else:
        return None
    found = set()
    for target in targets:
        parts = target.elts if isinstance(target, ast.Tuple | ast.List) else [target]
        if not all(isinstance(part, ast.Name) for part in parts):
            return None
        found |= {part.id for part in parts if isinstance(part, ast.Name)}
    return found


def _calls(node: ast.AST) -> Iterator[ast.AST]:
    """What runs code when a statement is evaluated, bodies of lambdas apart."""
    if isinstance(node, ast.Call | ast.Await | ast.Yield | ast.YieldFrom):
        yield node
    if not isinstance(node, ast.Lambda):
        for child in ast.iter_child_nodes(node):
            yield from _calls(child)


def _is_plain_call(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and (_chain(node.func) or ("",))[-1] in _PLAIN_CALLS


def _decorator(node: ast.expr) -> Chain | None:
    return _chain(node.func if isinstance(node, ast.Call) else node)


def _wrappers(
    node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef,
) -> Iterator[Chain | None]:
    """The decorators of a definition, and of those in a class, that are not plain."""
    for one in node.decorator_list:
        chain = _decorator(one)
        if chain is None or chain[-1] not in _PLAIN_DECORATORS:
            yield chain
    for line in node.body if isinstance(node, ast.ClassDef) else ():
        if isinstance(line, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield from _wrappers(line)


def _read_first(node: ast.AST, package: Chain, lazy: bool) -> set[Chain]:
    """What a definition calls while its module is imported, decorators apart."""
    unit = Unit()
    reader = _Reader(unit, package, lazy)

    def evaluated(one: ast.AST) -> None:
        parts: list[ast.AST]
        if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef):
            parts = [*one.args.defaults, *(item for item in one.args.kw_defaults if item)]
        elif isinstance(one, ast.ClassDef):
            parts = [*one.bases, *one.keywords]
            for line in one.body:
                if isinstance(line, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                    evaluated(line)
                else:
                    parts.append(line)
        else:
            return
        for part in parts:
            for call in _calls(part):
                reader.read(call)

    evaluated(node)
    return unit.uses


def _chain(node: ast.AST) -> Chain | None:
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return (node.id, *reversed(parts)) if isinstance(node, ast.Name) else None


def _is_text(node: ast.AST) -> bool:
    """A string that stands alone: a docstring, or a note of the same kind."""
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


class _Reader:
    """Writes the structure of a node, and notes what it uses."""

    def __init__(self, unit: Unit, package: Chain, lazy: bool) -> None:
        self.unit, self.package, self.lazy = unit, package, lazy
        self.text: list[str] = []
        self.stored: set[str] = set()
        self._arguments: list[set[str]] = []

    def read(self, node: ast.AST, quiet: bool = False) -> None:
        """``quiet``: an annotation, which nothing evaluates."""
        unit, text = self.unit, self.text
        kind = type(node)
        text.append(kind.__name__)
        if kind is ast.Name:
            text.append(f" {node.id} ")  # type: ignore[attr-defined]
            if not quiet:
                self._name(node)
            return
        if kind is ast.Attribute and not quiet and (chain := _chain(node)):
            if not self._is_argument(chain[0]):
                unit.uses.add(chain)
            unit.marks |= MARKS.intersection(chain)
            text.append(f" {'.'.join(chain)} ")
            return
        if kind is ast.Attribute and node.attr in MARKS:  # type: ignore[attr-defined]
            unit.marks.add(node.attr)  # type: ignore[attr-defined]
        if kind is ast.Import or kind is ast.ImportFrom:
            self._import(node)
        elif kind is ast.Constant and isinstance(node.value, str):  # type: ignore[attr-defined]
            words = node.value  # type: ignore[attr-defined]
            if len(words) < 100 and "." in words:
                unit.strings.add(words)
        elif kind in (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef):
            self.stored.add(node.name)  # type: ignore[attr-defined]
        elif kind is ast.If and is_type_checking(node.test):  # type: ignore[attr-defined]
            for other in node.orelse:  # type: ignore[attr-defined]
                self.read(other, quiet)
            return
        text.append("(")
        arguments = getattr(node, "args", None)
        own = _names(arguments) if isinstance(arguments, ast.arguments) else None
        for name in node._fields:
            if name in _LAYOUT:
                continue
            value = getattr(node, name, None)
            if own is not None and name == "body":
                self._arguments.append(own)
            hidden = quiet or (self.lazy and name in ("annotation", "returns"))
            if isinstance(value, ast.AST):
                text.append(f" {name}=")
                self.read(value, hidden)
            elif isinstance(value, list):
                unit.docs += [item.value.value for item in value if _is_text(item)]
                items = [item for item in value if not _is_text(item)]
                if items:
                    text.append(f" {name}=[")
                    for item in items:
                        if isinstance(item, ast.AST):
                            self.read(item, hidden)
                        else:
                            text.append(repr(item))
                        text.append(",")
                    text.append("]")
            elif value is not None:
                text.append(f" {name}={value!r}")
            if own is not None and name == "body":
                self._arguments.pop()
        text.append(")")

    def _name(self, node: ast.AST) -> None:
        name = node.id  # type: ignore[attr-defined]
        if not self._is_argument(name):
            self.unit.uses.add((name,))
        if name in MARKS:
            self.unit.marks.add(name)
        if not isinstance(node.ctx, ast.Load):  # type: ignore[attr-defined]
            self.stored.add(name)

    def _is_argument(self, name: str) -> bool:
        return any(name in own for own in self._arguments)

    def _import(self, node: ast.AST) -> None:
        bound = self.unit.bindings
        if isinstance(node, ast.Import):
            for alias in node.names:
                self.unit.imports.add(alias.name)
                top = alias.name.split(".")[0]
                one = Binding(alias.name if alias.asname else top)
                bound.setdefault(alias.asname or top, []).append(one)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = self.package[: len(self.package) - node.level + 1]
                base = ".".join((*parts, *([base] if base else [])))
            self.unit.imports.add(base)
            for alias in node.names:
                self.unit.imports.add(f"{base}.{alias.name}")
                one = Binding(base, alias.name)
                bound.setdefault(alias.asname or alias.name, []).append(one)


def _names(arguments: ast.arguments) -> set[str]:
    every = (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)
    rest = (arguments.vararg, arguments.kwarg)
    return {one.arg for one in (*every, *rest) if one is not None}
