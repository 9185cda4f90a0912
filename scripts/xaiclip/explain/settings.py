"""The keys of a method's section in the configuration, each stated once.

A method's module holds two frozen dataclasses of `setting`: ``PlanSettings`` (what its forwards
hang on) and, if its aggregator has choices of its own, ``MapSettings``. Defaults, meanings and
limits are written as literals: `xaiclip.config.methods` reads them from the source, without
loading what the method imports, and so refuses a wrong key before the first job.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import field, fields
from difflib import get_close_matches
from typing import Any, TypeVar

from xaiclip.errors import ConfigError

Kind = TypeVar("Kind")
#: The dataclasses that a method's module may offer, and their words for people.
PLAN, MAP = "PlanSettings", "MapSettings"


def setting(
    default: Any,
    meaning: str,
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    above: float | None = None,
    below: float | None = None,
    one_of: Sequence[str] | None = None,
    adaptive: bool = False,
) -> Any:
    """A field of a settings dataclass; of a sequence, the limits are those of its items.

    Args:
        default: its default.
        meaning: one sentence for config/README.md.
        minimum, maximum, above, below: limits of a number; the last two are excluded themselves.
        one_of: the words that it may be.
        adaptive: any other value than the default makes ``refine`` look at the scores of the first
            explained value, on which the forwards then hang, too.
    """
    limits = {"minimum": minimum, "maximum": maximum, "above": above, "below": below}
    metadata = {"meaning": meaning, **limits, "one_of": one_of, "adaptive": adaptive}
    return field(default=default, metadata=metadata)


def section(kind: type[Any], meaning: str) -> Any:
    """A field that is a section of its own: another dataclass of `setting`."""
    return field(default_factory=kind, metadata={"meaning": meaning, "section": kind})


def read(kind: type[Kind], values: Mapping[str, Any]) -> Kind:
    """The settings that a flat section holds; keys of other dataclasses are left aside."""
    made: dict[str, Any] = {}
    for one in fields(kind):  # type: ignore[arg-type]
        if one.name in values:
            value, below = values[one.name], one.metadata.get("section")
            made[one.name] = read(below, value) if below and isinstance(value, Mapping) else value
    return kind(**made)


def split(module: Any, values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A flat section of a loaded method, as what its plans and what its maps hang on.

    Raises:
        ConfigError: a key that the method does not have.
    """
    parts = [keys_of(getattr(module, name, None)) for name in (PLAN, MAP)]
    known = [*parts[0], *parts[1]]
    for key in values:
        if key not in known:
            near = get_close_matches(key, known, n=1)
            cure = f"did you mean '{near[0]}'?" if near else f"known are {', '.join(known)}."
            name = module.__name__.rpartition(".")[2]
            raise ConfigError(f"the method '{name}' has no setting '{key}'; {cure}")
    plan, own = ({key: item for key, item in values.items() if key in part} for part in parts)
    return plan, own


def keys_of(kind: type[Any] | None) -> list[str]:
    """The names of a settings dataclass; none has none."""
    return [] if kind is None else [one.name for one in fields(kind)]
