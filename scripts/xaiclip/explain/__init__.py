"""Explanations by perturbation: perturb → score → aggregate.

A method is one module of this package that offers

- ``Settings``: a frozen dataclass, the method's section of the configuration;
- ``plans(context) -> dict[str, Plan]``: which pixels each forward replaces;
- ``aggregate(plans, tables, context) -> list[Attribution]``: score tables into maps.

It may also offer ``refine(plans, tables, context) -> dict[str, Plan]``: further forwards in the
light of those made so far, until it has none; each call sees everything made.

The engine does the rest. Importing this package loads neither torch nor any method.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Protocol, cast

from xaiclip.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from xaiclip.explain.attribution import Attribution
    from xaiclip.explain.engine import ScoreTable
    from xaiclip.explain.plan import Context, Plan


class Method(Protocol):
    """What a method's module offers."""

    Settings: type[Any]

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


def method(name: str) -> Method:
    """Load the method ``xaiclip.explain.<name>``.

    Raises:
        ConfigError: there is no such module, or it is no method.
    """
    qualified = f"{__name__}.{name}"
    try:
        module = importlib.import_module(qualified)
    except ModuleNotFoundError as error:
        if error.name != qualified:
            raise
        raise ConfigError(
            f"There is no explanation method '{name}': correct 'explain.methods', "
            f"or add scripts/xaiclip/explain/{name}.py."
        ) from None
    missing = [part for part in ("Settings", "plans", "aggregate") if not hasattr(module, part)]
    if missing:
        raise ConfigError(
            f"The module '{qualified}' is no explanation method: it lacks {', '.join(missing)}."
        )
    return cast(Method, module)
