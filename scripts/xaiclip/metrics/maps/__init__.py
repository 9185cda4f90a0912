"""What an explanation's map is worth: one module a metric, and one line here.

A metric's module offers

- ``MEASURES``: its columns in ``explanations.parquet`` (`xaiclip.metrics.measure.Measure`);
- ``NOTES``: sentences that stand below the tables that show them, or none;
- ``measure(explained) -> dict``: their values for one map, NaN where there is none.

The columns' schema, the rows and Table III follow from these. A metric is computed where maps are
made, from what is stored: a new one needs no forward.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from xaiclip.metrics.maps import fidelity, localization
from xaiclip.metrics.maps.explained import Explained
from xaiclip.metrics.measure import Measure


class Metric(Protocol):
    """What a metric's module offers."""

    @property
    def MEASURES(self) -> Sequence[Measure]:
        """Its columns."""
        ...

    @property
    def NOTES(self) -> Sequence[str]:
        """What stands below a table that shows them."""
        ...

    def measure(self, explained: Explained) -> dict[str, float]:
        """A value for each of ``MEASURES``."""
        ...


#: In the order of the tables.
METRICS: list[Metric] = [fidelity, localization]
MEASURES = tuple(measure for metric in METRICS for measure in metric.MEASURES)


def notes() -> tuple[str, ...]:
    """What stands below a table that shows the metrics."""
    return tuple(note for metric in METRICS for note in metric.NOTES)


def columns(explained: Explained) -> dict[str, float]:
    """Every metric's columns of ``explanations.parquet`` for one map."""
    return {name: value for one in METRICS for name, value in one.measure(explained).items()}
