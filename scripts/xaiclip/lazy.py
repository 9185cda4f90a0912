"""Parts of large packages without the whole: what a package's own ``__init__`` loads can wait."""

from __future__ import annotations

import sys
from importlib.util import find_spec, module_from_spec
from types import ModuleType
from typing import Any


def defer(*packages: str) -> None:
    """Let a package's submodules be imported alone.

    ``import segment_anything.modeling`` first runs ``segment_anything/__init__.py``, which loads
    all of torchvision: it takes as long as torch itself. A package that is named here runs its
    ``__init__`` when something is asked of it that is not there yet, so nobody else notices.

    Args:
        packages: dotted names, a parent before its children. One that is loaded already, or not
            installed, is left alone.
    """
    for name in packages:
        if name in sys.modules or (spec := find_spec(name)) is None or spec.loader is None:
            continue
        package = module_from_spec(spec)
        vars(package)["__getattr__"] = _Load(package)
        sys.modules[name] = package
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, package)


class _Load:
    """A package's ``__getattr__``: runs the package's own code, once, and asks again."""

    def __init__(self, package: ModuleType) -> None:
        self._package = package

    def __call__(self, name: str) -> Any:
        package = self._package
        # what Python itself looks for in any module must not load it
        if name.startswith("__") and name != "__version__":
            raise AttributeError(f"module {package.__name__!r} has no attribute {name!r}")
        if vars(package).pop("__getattr__", None) is not None:
            assert package.__spec__ is not None
            assert package.__spec__.loader is not None
            package.__spec__.loader.exec_module(package)
        return getattr(package, name)
