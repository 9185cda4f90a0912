"""What a number in a metric file or a table is called, counted in, and which way is better."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Measure:
    """A column of a metric file, and of the tables that show it.

    Attributes:
        name: of the column.
        label: its head in a table.
        better: which values are; "" where neither is.
        unit: "" where it has none.
        shown: in Table III and in the table of all variants, in the former alone, or in neither.
    """

    name: str
    label: str
    better: Literal["higher", "lower", ""] = ""
    unit: str = ""
    shown: Literal["everywhere", "table3", "nowhere"] = "everywhere"

    @property
    def head(self) -> str:
        """The column's head: label, unit, and an arrow to the better values."""
        arrow = {"higher": " ↑", "lower": " ↓", "": ""}[self.better]
        return f"{self.label}{f' ({self.unit})' if self.unit else ''}{arrow}"
