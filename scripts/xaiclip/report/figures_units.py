"""The figure of units: which organ each organ's mask hangs on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from xaiclip.errors import CaseError
from xaiclip.report import colours, style
from xaiclip.report.catalogue import makes_figure
from xaiclip.report.drawing import draw
from xaiclip.report.panels import VALUES
from xaiclip.report.sources import Settings, Sources
from xaiclip.report.tables.layout import number
from xaiclip.report.tables.shapley_units import TOTAL
from xaiclip.report.words import plain


@dataclass(frozen=True, eq=False)
class Matrix:
    """The mean values of one guidance.

    Attributes:
        guidance: of `colours.GUIDANCES`.
        values: (R, U), NaN where no case has the unit.
        counts: int (R, U), cases that have it.
        totals: (R,), of all units together.
        cases: int (R,), cases of each row.
    """

    guidance: str
    values: NDArray[np.float64]
    counts: NDArray[np.int64]
    totals: NDArray[np.float64]
    cases: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Matrices:
    """Matrices of the same R organs (rows) and U units (columns); ``score``: what was explained."""

    organs: Sequence[str]
    units: Sequence[str]
    score: str
    matrices: Sequence[Matrix]


@makes_figure(
    "shapley_matrix",
    ["table/shapley_units/csv"],
    "Which organ each organ's mask hangs on. A row is the organ whose mask is explained, "
    "a column a unit of the image; a number is what the unit adds to the score on average "
    "over all orders of showing the units (its Shapley value), mean over cases. Positive: "
    "the unit supports the mask. Framed: the organ itself.",
)
def shapley_matrix(sources: Sources, settings: Settings) -> Matrices:
    """Shapley values of the units for each organ's primary score, means over cases."""
    rows = pd.read_csv(sources["tables"])
    if rows.empty:
        raise CaseError("No organ of any case is explained: see skipped.tsv for the reasons.")
    score = rows["value"].iloc[0]
    rows = rows[rows["value"] == score]
    organs = list(rows["organ"].drop_duplicates())
    units = [unit for unit in rows["region"].drop_duplicates() if unit != TOTAL]
    matrices = []
    for guidance, own in rows.groupby("guidance", sort=False):
        table = own.pivot(index="organ", columns="region", values=["mean", "n_cases"]).loc[organs]
        matrices.append(
            Matrix(
                str(guidance),
                table["mean"][units].to_numpy(),
                table["n_cases"][units].to_numpy(int),
                table["mean"][TOTAL].to_numpy(),
                table["n_cases"][TOTAL].to_numpy(int),
            )
        )
    return Matrices(organs, units, score, matrices)


@draw.register
def draw_matrices(data: Matrices) -> Figure:
    """Draw a heat map with numbers for each guidance; colours are shared and centred at 0."""
    heat = np.concatenate([np.zeros(1), *(one.values.ravel() for one in data.matrices)])
    limit = np.nanmax(np.abs(heat)) or 1.0
    norm = Normalize(-limit, limit)
    height = 1.35 + len(data.matrices) * (0.55 + 0.25 * len(data.organs))
    figure = style.new_figure("Which organ does each organ's mask hang on?", height)
    panels = figure.subplots(len(data.matrices), 1, squeeze=False, sharex=True)[:, 0]
    for index, (axes, one) in enumerate(zip(panels, data.matrices, strict=True)):
        drawn = _draw_matrix(axes, one, data, norm)
        style.letter(axes, index, colours.GUIDANCES[one.guidance][2])
        axes.set_ylabel("mask of")
    panels[-1].set_xlabel("unit of the image")
    score = VALUES.get(data.score, plain(data.score))
    label = f"Shapley value: its part of the {score}; positive = supports the mask"
    style.colour_bar(figure, drawn, list(panels), label, below=True)
    return figure


def _draw_matrix(axes: Axes, one: Matrix, data: Matrices, norm: Normalize) -> AxesImage:
    rows, columns = one.values.shape
    axes.set_facecolor("white")
    drawn = axes.imshow(
        np.ma.masked_invalid(one.values), cmap=colours.SIGNED, norm=norm, aspect="auto"
    )
    for (row, column), value in np.ndenumerate(one.values):
        light = np.isnan(value) or _luminance(colours.SIGNED(norm(value))) > 0.18
        count = int(one.counts[row, column])
        fewer = f"\n(n = {count})" if count not in (0, one.cases[row]) else ""
        _write(axes, row, column, value, "black" if light else "white", fewer)
    for row, total in enumerate(one.totals):
        _write(axes, row, columns, total, "black")
    for row, organ in enumerate(data.organs):
        if organ in data.units:
            corner = (data.units.index(organ) - 0.5, row - 0.5)
            axes.add_patch(Rectangle(corner, 1, 1, fill=False, ec="black", lw=1.2, clip_on=False))
    axes.set_xlim(-0.5, columns + 0.5)
    words = [plain(unit).replace(" ", "\n", 1) for unit in (*data.units, TOTAL)]
    axes.set_xticks(range(columns + 1), words)
    axes.set_yticks(
        range(rows),
        [f"{plain(name)} (n = {n})" for name, n in zip(data.organs, one.cases, strict=True)],
    )
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    return drawn


def _luminance(colour: Sequence[float]) -> float:
    """Of an sRGB colour, in [0, 1]; at 0.18 black and white are as easy to read on it."""
    return float(np.power(colour[:3], 2.2) @ [0.2126, 0.7152, 0.0722])


def _write(axes: Axes, row: int, column: int, value: float, colour: str, note: str = "") -> None:
    words = number(value, signed=True) + note
    size = 6 if note else 7
    axes.text(column, row, words, ha="center", va="center", size=size, color=colour)
