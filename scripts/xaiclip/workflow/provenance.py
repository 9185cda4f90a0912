"""Which code made a result: hashes of scripts and of the code that they can reach.

Snakemake sees that a script changed, not that a module behind it did. A rule that carries such a
hash among its params reruns when, and only when, code that it may execute has changed. Code is
followed by its names, definition by definition. What runs when a module is imported counts, and a
class counts whole; where names do not tell what is reached, all of a module counts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path

from xaiclip.config.methods import Source
from xaiclip.report.catalogue import tables
from xaiclip.workflow.units import Binding, Chain, Unit, units_of

SCRIPTS = Path(__file__).parents[2]
#: What a script runs of a method's module; "?": if it has it.
STAGES = {
    "score.py": ("plans?", "refine?", "gradient?"),
    "attribute.py": ("aggregate",),
    "savings.py": ("plans?", "refine?", "aggregate"),
}
#: Endings of files beside a module that its code may read.
_DATA = (".toml", ".yaml", ".yml", ".json", ".csv", ".tsv", ".txt")


def code_hash(
    script: str,
    also: Iterable[str] = (),
    root: Path = SCRIPTS,
    brought: Mapping[str, Path] | None = None,
) -> str:
    """Hash the code that a script can reach; comments, docstrings and layout do not count.

    Args:
        script: file name below ``root``, for instance ``"score.py"``.
        also: what the script reaches by names that are made at run time: modules
            (``"xaiclip.data.chaos"``), or definitions of them (``"xaiclip.explain.rise:plans"``;
            one that ends in ``?`` may be missing).
        root: folder of the scripts and the library.
        brought: other packages whose code counts, with the folders that hold them.

    Returns:
        16 hexadecimal digits.

    Raises:
        FileNotFoundError: the script, or a module or definition of ``also``, does not exist.
    """
    reach = Reach(root, brought)
    reach.script(script)
    for name in also:
        reach.named(name)
    return reach.digest()[:16]


def stage_hash(script: str, methods: Mapping[str, Source]) -> str:
    """`code_hash` of a script that runs explanation methods.

    Args:
        script: one of `STAGES`, or any other, which runs none.
        methods: those that it runs, by name. ``table.py`` makes every table.
    """
    parts = STAGES.get(script, ())
    also = [f"{one.module}:{part}" for one in methods.values() for part in parts]
    if script == "table.py":
        also += [one.place for one in tables().values()]
    tops = {one.module.partition(".")[0]: one.folder for one in methods.values()}
    return code_hash(script, also, brought={k: v for k, v in tops.items() if v != SCRIPTS})


def module_file(name: str, root: Path = SCRIPTS) -> Path | None:
    """The file of a dotted name below ``root``; None if there is none."""
    base = root.joinpath(*name.split("."))
    for candidate in (base.with_suffix(".py"), base / "__init__.py"):
        if candidate.is_file():
            return candidate
    return None


class Module:
    """A file as units, and the names that they bind."""

    def __init__(self, path: Path, root: Path) -> None:
        parts = path.relative_to(root).parts
        self.path, self.units = path, units_of(path, parts[:-1])
        self.name = ".".join(parts[:-1] if path.name == "__init__.py" else (*parts[:-1], path.stem))
        self.defined: dict[str, list[int]] = {}
        self.bound: dict[str, list[Binding]] = {}
        for number, unit in enumerate(self.units):
            for name in unit.binds:
                self.defined.setdefault(name, []).append(number)
            if unit.runs:
                for name, bindings in unit.bindings.items():
                    self.bound.setdefault(name, []).extend(bindings)

    def has(self, name: str) -> bool:
        return name in self.defined or name in self.bound


class Reach:
    """What can run, found by following names."""

    def __init__(self, root: Path, brought: Mapping[str, Path] | None = None) -> None:
        self.root = root
        self.files: dict[str, Path | None] = {}
        # where packages lie; what else is imported is not followed
        self.roots = {path.stem: root for path in root.iterdir()} | dict(brought or {})
        self.modules: dict[str, Module] = {}
        self.reached: set[tuple[str, int]] = set()
        self.touched: set[tuple[str, int]] = set()  # counts, and leads nowhere
        self.foreign: set[tuple[str, str, str]] = set()
        self._imported: set[str] = set()
        self._asked: set[str] = set()
        self._waiting: list[tuple[str, int]] = []

    def script(self, name: str) -> None:
        """Reach what a script runs: all of it, and what it names elsewhere."""
        path = self.root / name
        module = _module(path, self.root)
        self.files[module.name], self.modules[module.name] = path, module
        self._import(module.name)
        for number in range(len(module.units)):
            self._reach(module.name, number)
        self._run()

    def named(self, name: str) -> None:
        """Reach what a name with or without a colon stands for."""
        module, _, definition = name.partition(":")
        found = self._open(module)
        if found is None:
            raise FileNotFoundError(f"no module '{module}' below {self.root}")
        if not definition:
            self.whole(module)
            return
        self._import(module)
        if found.has(definition.removesuffix("?")):
            self._follow(module, definition.removesuffix("?"), ())
        elif not definition.endswith("?"):
            raise FileNotFoundError(f"no '{definition}' in {found.path}")
        self._run()

    def whole(self, name: str) -> None:
        """Reach all that a module could be asked for."""
        if self._open(name) is not None:
            self._import(name)
            self._all(name)
        self._run()

    def digest(self) -> str:
        """Of everything that was reached."""
        digest = hashlib.sha256()
        documented = any(
            self.modules[name].units[number].marks & {"__doc__", "getdoc"}
            for name, number in self.reached
        )
        for name, number in sorted(self.reached | self.touched):
            unit = self.modules[name].units[number]
            if unit.text:
                digest.update(f"\n{name}\n{unit.text}".encode())
            if documented:
                digest.update("\n".join(unit.docs).encode())
        for found in sorted(self.foreign):
            digest.update(f"\n{found}".encode())
        for path in sorted(self._data()):
            digest.update(f"\n{path.name}\n".encode())
            digest.update(_content_hash(path, path.stat().st_mtime_ns))
        for name in sorted(self._imported):
            # a module that becomes a package is other code
            digest.update(f"\n{name} {self.modules[name].path.name}".encode())
        return digest.hexdigest()

    def _data(self) -> set[Path]:
        """Files beside the modules that their code may read."""
        paths = {self.modules[name].path for name in self._imported}
        beside = (path for folder in {path.parent for path in paths} for path in folder.iterdir())
        found = {
            path for path in beside if path.suffix in _DATA if path.with_suffix(".py") in paths
        }
        for name, number in self.reached:
            module = self.modules[name]
            for text in module.units[number].strings:
                if text.endswith(_DATA) and "/" not in text:
                    found.add(module.path.parent / text)
        return {path for path in found if path.is_file()}

    def _open(self, name: str) -> Module | None:
        if name not in self.files:
            root = self.roots.get(name.partition(".")[0])
            path = self.files[name] = module_file(name, root) if root else None
            if root is not None and path is not None:
                self.modules[name] = _module(path, root)
        return self.modules.get(name)

    def _import(self, name: str) -> None:
        """A module is imported, and the packages that hold it: what stands at their top runs."""
        for one in [] if name in self._imported else _heads(name):
            module = self._open(one)
            if module is None or one in self._imported:
                continue
            self._imported.add(one)
            for number, unit in enumerate(module.units):
                if unit.runs or self._is_kept(one, unit) or self._hears(one, unit):
                    self._reach(one, number)
                for chain in unit.first:
                    self._resolve(one, chain, unit)
            # any import from a package asks this first, to no avail
            self.touched |= {(one, number) for number in module.defined.get("__getattr__", ())}

    def _is_kept(self, name: str, unit: Unit) -> bool:
        """Whether a decorator may keep it, so that it runs without being named."""
        return any(
            chain is None
            or not (found := self._definitions(name, chain))
            or not all(self.modules[where].units[number].context for where, number in found)
            for chain in unit.wrappers
        )

    def _hears(self, name: str, unit: Unit) -> bool:
        """Whether a class has a base that may keep a list of its subclasses."""
        return any(self._hooked(name, chain, set()) for chain in unit.bases)

    def _hooked(self, name: str, chain: Chain, seen: set[tuple[str, Chain]]) -> bool:
        if (name, chain) in seen:
            return False
        seen.add((name, chain))
        for module, number in self._definitions(name, chain):
            unit = self.modules[module].units[number]
            if unit.hooks or any(self._hooked(module, base, seen) for base in unit.bases):
                return True
        return False

    def _definitions(self, name: str, chain: Chain) -> list[tuple[str, int]]:
        """The definitions behind a dotted name, without reaching them."""
        module = self._open(name)
        if module is None or not chain:
            return []
        found = [(name, number) for number in module.defined.get(chain[0], ())]
        for one in module.bound.get(chain[0], ()):
            rest = chain[1:] if one.name is None else (one.name, *chain[1:])
            where = one.module
            while len(rest) > 1 and self._open(f"{where}.{rest[0]}"):
                where, rest = f"{where}.{rest[0]}", rest[1:]
            if where != name or rest != chain:
                found += self._definitions(where, rest)
        return found

    def _reach(self, name: str, number: int) -> None:
        if (name, number) not in self.reached:
            self.reached.add((name, number))
            self._waiting.append((name, number))

    def _run(self) -> None:
        while self._waiting:
            name, number = self._waiting.pop()
            unit = self.modules[name].units[number]
            for module in unit.imports:
                self._import(module)
            for chain in unit.uses:
                self._resolve(name, chain, unit)
            for bindings in unit.bindings.values():
                for one in bindings:
                    if one.name == "*" and self._open(one.module):
                        self._import(one.module)
                        self._all(one.module)
            if unit.marks & {"globals", "vars", "eval", "exec"}:
                self._all(name)
            for text in unit.strings:
                if self._open(text):  # imported by its name, or run as a program
                    self._import(text)
                    self._all(text)
        if any("__subclasses__" in self.modules[n].units[k].marks for n, k in self.reached):
            for other in self._imported - self._asked:
                self._all(other)
            if self._waiting:
                self._run()

    def _resolve(self, name: str, chain: Chain, unit: Unit) -> None:
        """Follow a dotted name from where it is written."""
        module = self.modules[name]
        for number in module.defined.get(chain[0], ()):
            self._reach(name, number)
        found = module.bound.get(chain[0], [])
        # an import inside of a function binds for the function
        own = unit.bindings.get(chain[0], []) if not unit.runs else []
        for one in (*found, *own):
            self._bound(name, chain, one)
        if not found and not own and chain[0] not in module.defined:
            for one in module.bound.get("*", ()):
                self._follow(one.module, chain[0], chain[1:])

    def _bound(self, name: str, chain: Chain, one: Binding) -> None:
        target = one.module if one.name is None else f"{one.module}.{one.name}"
        # what a name stands for counts where it is used
        self.foreign.add((name, chain[0], target))
        if one.name is None:
            self._attribute(one.module, chain[1:])
        elif one.name != "*":
            self._follow(one.module, one.name, chain[1:])

    def _attribute(self, name: str, rest: Chain) -> None:
        if self._open(name) is None:
            if rest and self._open(f"{name}.{rest[0]}"):  # a folder without __init__.py
                self._attribute(f"{name}.{rest[0]}", rest[1:])
        elif rest:
            self._follow(name, rest[0], rest[1:])
        else:
            self._import(name)
            self._all(name)

    def _follow(self, name: str, attribute: str, rest: Chain) -> None:
        """Reach an attribute of a module."""
        module = self._open(name)
        # only a package has modules below
        holds = module is None or module.path.name == "__init__.py"
        below = self._open(f"{name}.{attribute}") if holds else None
        if module is None and below is None:
            return
        self._import(name)
        if below is not None:
            self._attribute(f"{name}.{attribute}", rest)
        if module is None:
            return
        if module.has(attribute):
            for number in module.defined.get(attribute, ()):
                self._reach(name, number)
            for one in module.bound.get(attribute, ()):
                if (one.module, one.name) != (name, attribute):
                    self._bound(name, (attribute, *rest), one)
        elif below is None and not (attribute.startswith("__") and attribute.endswith("__")):
            if module.has("__getattr__"):
                self._follow(name, "__getattr__", ())
            else:
                self._all(name)

    def _all(self, name: str) -> None:
        """Whoever holds the module can ask for what it defines, and for what it imports."""
        if name in self._asked:
            return
        self._asked.add(name)
        module = self.modules[name]
        for number in range(len(module.units)):
            self._reach(name, number)
        for bound, bindings in module.bound.items():
            for one in bindings:
                self._bound(name, (bound,), one)


def _heads(name: str) -> list[str]:
    """``a.b.c`` → ``a``, ``a.b``, ``a.b.c``."""
    parts = name.split(".")
    return [".".join(parts[:length]) for length in range(1, len(parts) + 1)]


def _module(path: Path, root: Path) -> Module:
    return _parsed(path, root, path.stat().st_mtime_ns)


@cache
def _parsed(path: Path, root: Path, _mtime: int) -> Module:
    return Module(path, root)


@cache
def _content_hash(path: Path, _mtime: int) -> bytes:
    return hashlib.sha256(path.read_bytes()).digest()
