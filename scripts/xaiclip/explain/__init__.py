"""Explanations: perturb → score → aggregate; or differentiate → aggregate.

A method is one module, of this package or of another one that names it in the entry-point group
``xaiclip.methods``. It offers

- ``PlanSettings`` and, if it has any, ``MapSettings``: frozen dataclasses of `settings.setting`,
  together the method's section of the configuration. The first is what the forwards hang on, the
  second what only ``aggregate`` reads;
- ``plans(context) -> dict[str, Plan]``: which pixels each forward replaces;
- ``aggregate(plans, tables, context) -> list[Attribution]``: score tables into maps.

It may also offer ``refine(plans, tables, context) -> dict[str, Plan]``: further forwards in the
light of those made so far, until it has none; each call sees everything made.

A method that differentiates the model offers, in the place of ``plans``, a function
``gradient(question) -> Tensor``, one raw map, and ``aggregate(gradients, context)``; see
`gradients`.

The engine does the rest. Importing this package loads neither torch nor any method. To explain one
slice in one call, call it: ``xaiclip.explain(model, image, …)`` is `xaiclip.api.explain`.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol, cast

from xaiclip import plugins
from xaiclip.errors import ConfigError, named_extras

if TYPE_CHECKING:
    from collections.abc import Mapping

    from xaiclip.explain.attribution import Attribution
    from xaiclip.explain.engine import ScoreTable
    from xaiclip.explain.plan import Context, Plan


class Method(Protocol):
    """What a method's module offers."""

    PlanSettings: type[Any]

    @staticmethod
    def plans(context: Context) -> dict[str, Plan]:
        """The perturbation plans, by name; CaseError if the slice leaves nothing to perturb."""
        ...

    @staticmethod
    def aggregate(
        plans: Mapping[str, Plan], tables: Mapping[str, ScoreTable], context: Context
    ) -> list[Attribution]:
        """The maps of every organ, variant and explained value."""
        ...


def refine(
    explainer: Method,
    plans: Mapping[str, Plan],
    tables: Mapping[str, ScoreTable],
    context: Context,
) -> dict[str, Plan]:
    """The forwards that a method wants next, by the plan that they extend; {} = it has enough."""
    propose = getattr(explainer, "refine", None)
    return propose(plans, tables, context) if propose else {}


#: The precision in which models are differentiated, whatever the study's is.
GRADIENT_PRECISION = "fp32"

PACKAGE = __name__


def method(name: str) -> Method:
    """Load the method ``xaiclip.explain.<name>``, or the one that another package brings.

    A method of this package is preferred.

    Raises:
        ConfigError: there is no such method, or its module is none, cannot be imported, or imports
            what an extra brings that is not installed.
    """
    qualified = f"{__name__}.{name}"
    module: object | None
    try:
        with named_extras():
            module = importlib.import_module(qualified)
    except ModuleNotFoundError as error:
        if error.name != qualified:
            raise
        module = plugins.load(plugins.METHODS, name)
    if module is None:
        raise ConfigError(
            f"There is no explanation method '{name}': correct 'explain.methods', add "
            f"scripts/xaiclip/explain/{name}.py, or install the package that brings it."
        )
    asks = "gradient" if hasattr(module, "gradient") else "plans"
    missing = [part for part in ("PlanSettings", asks, "aggregate") if not hasattr(module, part)]
    if missing:
        raise ConfigError(f"'{name}' is no explanation method: it lacks {', '.join(missing)}.")
    return cast(Method, module)


def differentiates(name: str) -> bool:
    """Whether a method differentiates the model, and has no plans.

    Raises:
        ConfigError: as `method`.
    """
    return hasattr(method(name), "gradient")


class _Callable(ModuleType):
    """This package, which can be called; so the call and its parts have one name."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._function()(*args, **kwargs)

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self._function())

    @staticmethod
    def _function() -> Any:
        # a name made here is not followed (workflow/provenance.py): what the stages' code hangs on
        # does not hang on what calls the stages
        return importlib.import_module(f"{__package__.partition('.')[0]}.api").explain


sys.modules[__name__].__class__ = _Callable
