"""A tidy frame laid out for reading: which records stand in which cell, and how numbers look."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from xaiclip.metrics.measure import Measure
from xaiclip.metrics.statistics import MIN_DIFFERENCES
from xaiclip.report.markdown import EMPTY, pipe

Key = Mapping[str, str]


@dataclass(frozen=True)
class Column:
    """A column of numbers: a measure of the row, or of the row with other keys.

    Attributes:
        head: as it is shown.
        measure: the measure's name in the frame.
        where: what the cell's record has in its key beside the keys of the row.
        paper: show what the paper prints instead of ours.
        cost: whole numbers and three digits instead of three decimals.
    """

    head: str
    measure: str
    where: Key = field(default_factory=dict)
    paper: bool = False
    cost: bool = False


def column(measure: Measure, *, cost: bool = False) -> Column:
    """The plain column of a measure."""
    return Column(measure.head, measure.name, cost=cost)


def lay_out(
    frame: pd.DataFrame,
    rows: Sequence[Key],
    names: Mapping[str, Callable[[Key], str]],
    columns: Sequence[Column],
    differences: Key | None = None,
) -> str:
    """A pipe table of a tidy frame's records.

    Args:
        frame: of `data.tidy`.
        rows: the key of each row; with a column's ``where`` it names one record.
        names: heads of the first columns, and what they show of a row's key, as Markdown.
        columns: the columns of numbers. Before them stands the row's number of cases, the largest
            of its cells; a cell that has another says so.
        differences: what a record's key holds where it is a paired difference, shown with a sign.
    """
    names_of_key = dict.fromkeys(name for row in rows for name in row)
    names_of_key |= dict.fromkeys(name for one in columns for name in one.where)
    keys = [*names_of_key, "measure"]
    lines_of_frame = (
        dict(zip(frame.columns, line, strict=True)) for line in frame.itertuples(index=False)
    )
    records = {tuple(line[name] for name in keys): line for line in lines_of_frame}
    lines = []
    for row in rows:
        cells = [
            records[tuple({**row, **one.where, "measure": one.measure}[name] for name in keys)]
            for one in columns
        ]
        n = max(
            int(cell["n_cases"]) for cell, one in zip(cells, columns, strict=True) if not one.paper
        )
        shown = [
            _printed(cell) if one.paper else _value(cell, n, _holds(cell, differences), one.cost)
            for cell, one in zip(cells, columns, strict=True)
        ]
        lines.append([*(words(row) for words in names.values()), str(n), *shown])
    return pipe([*names, "n cases", *(one.head for one in columns)], lines, len(names))


def number(value: float, *, signed: bool = False, cost: bool = False) -> str:
    """A number as a cell shows it: three decimals, or as a cost; a dash where there is none."""
    if not math.isfinite(value):
        return EMPTY
    size = abs(value)
    if not cost:
        text = f"{size:.3f}"
    elif size >= 99.95 or size == round(size):  # what three digits show without a point
        text = f"{size:,.0f}"
    else:
        text = f"{size:#.3g}"
    nonzero = any(digit in "123456789" for digit in text)
    sign = "−" if value < 0 and nonzero else "+" if signed and nonzero else ""
    return sign + text


def intro(confidence: float) -> str:
    """What a cell holds."""
    return f"Mean over cases [{100 * confidence:g}% bootstrap interval]."


def notes_on_n() -> list[str]:
    """What is not shown for how few cases."""
    return [
        "No interval is given for fewer than two cases, no p for fewer than "
        f"{MIN_DIFFERENCES} cases that differ. An interval over few cases is hardly more than "
        "their range: read it with its n, which a cell names where it is not the row's.",
    ]


def _printed(cell: Mapping[str, Any]) -> str:
    marks = f" †{cell['paper_doubts']}" if cell["paper_doubts"] else ""
    return (cell["paper_printed"] or EMPTY) + marks


def _holds(cell: Mapping[str, Any], key: Key | None) -> bool:
    return key is not None and all(cell[name] == value for name, value in key.items())


def _value(cell: Mapping[str, Any], n: int, signed: bool, cost: bool) -> str:
    """Mean and interval; of a difference its share and p, too; and the n that is not the row's."""
    mean, low, high = (
        number(cell[name], signed=signed, cost=cost) for name in ("mean", "low", "high")
    )
    text = mean if low == EMPTY or low == mean == high else f"{mean} [{low}, {high}]"
    if cost and math.isfinite(cell["relative"]):
        text += f" ({number(100 * cell['relative'], signed=True, cost=True)}%)"
    p = cell["p"]
    if math.isfinite(p):
        text += "; p < 0.001" if p < 0.001 else f"; p = {p:.3f}"
    return text if cell["n_cases"] in (0, n) else f"{text} (n = {cell['n_cases']})"
