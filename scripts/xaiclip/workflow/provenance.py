"""Which code made a result: content hashes of scripts and of what they import."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

SCRIPTS = Path(__file__).parents[2]


def code_hash(script: str, also: Iterable[str] = (), root: Path = SCRIPTS) -> str:
    """Hash a script together with every module of this project that it imports.

    Snakemake sees that a script changed, not that a module behind it did. A rule that carries
    this hash among its params reruns when, and only when, code that it executes has changed.

    Args:
        script: file name below ``root``, for instance ``"score.py"``.
        also: dotted names of modules that the script imports by name at run time.
        root: folder of the scripts and the library.

    Returns:
        16 hexadecimal digits.

    Raises:
        FileNotFoundError: the script or a module of ``also`` does not exist.
    """
    files = set(imported_files(root / script, root))
    for name in also:
        path = _module_file(name, root)
        if path is None:
            raise FileNotFoundError(f"no module '{name}' below {root}")
        files |= set(imported_files(path, root))
    # a module's own data stands beside it, under its name
    files |= {data for path in files if (data := path.with_suffix(".toml")).is_file()}
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(str(path.relative_to(root)).encode())
        digest.update(_content_hash(path, path.stat().st_mtime_ns))
    return digest.hexdigest()[:16]


def imported_files(path: Path, root: Path = SCRIPTS) -> list[Path]:
    """The file itself and all files below ``root`` that it imports, directly or not, sorted."""
    seen: set[Path] = set()
    waiting = [path]
    while waiting:
        current = waiting.pop()
        if current in seen:
            continue
        seen.add(current)
        names = _imported_names(current, root, current.stat().st_mtime_ns)
        # looked up anew each time: a module may have become a package since
        files = (_module_file(name, root) for name in names)
        waiting.extend(file for file in files if file is not None)
    return sorted(seen)


def executed(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes below, without the blocks that only type checkers read."""
    yield node
    skipped: list[ast.stmt] = []
    if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
        skipped = node.body
    for child in ast.iter_child_nodes(node):
        if child not in skipped:
            yield from executed(child)


@cache
def _content_hash(path: Path, _mtime: int) -> bytes:
    return hashlib.sha256(path.read_bytes()).digest()


@cache
def _imported_names(path: Path, root: Path, _mtime: int) -> frozenset[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    return frozenset(name for node in executed(tree) for name in _names(node, path, root))


def _names(node: ast.AST, path: Path, root: Path) -> Iterator[str]:
    """Dotted names that an import statement may load, with the packages that hold them."""
    if isinstance(node, ast.Import):
        modules = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
        base = node.module or ""
        if node.level:
            package = path.relative_to(root).parts[: -node.level]
            base = ".".join((*package, *([base] if base else [])))
        modules = [base, *(f"{base}.{alias.name}" for alias in node.names)]
    else:
        return
    for module in modules:
        parts = module.split(".")
        for length in range(1, len(parts) + 1):
            yield ".".join(parts[:length])


def _module_file(name: str, root: Path) -> Path | None:
    base = root.joinpath(*name.split("."))
    for candidate in (base.with_suffix(".py"), base / "__init__.py"):
        if candidate.is_file():
            return candidate
    return None
