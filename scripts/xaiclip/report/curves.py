"""The training curves: their data, and their drawing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray

from xaiclip.errors import CaseError
from xaiclip.report import colours, style
from xaiclip.report.catalogue import makes_figure
from xaiclip.report.drawing import draw
from xaiclip.report.sources import Settings, Sources
from xaiclip.report.words import plain

#: By variant: words, colour, and the lines of training and validation.
_TRAINED = {
    "text": ("with the text", "#0072B2", ("-", (0, (4, 1)))),
    "no_text": ("without the text", "#E69F00", ((0, (1, 1)), (0, (4, 1, 1, 1)))),
}


@dataclass(frozen=True, eq=False)
class Curve:
    """One line over epochs; ``kept``: epoch and value of the weights that were kept, (K, 2)."""

    label: str
    epochs: NDArray[np.int64]
    values: NDArray[np.float64]
    colour: str
    line: Any
    kept: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Training:
    """Three panels: title, label of the axis, its limits, curves."""

    panels: Sequence[tuple[str, str, tuple[float, float | None], Sequence[Curve]]]


@makes_figure(
    "training_curves",
    ["training"],
    "Loss and validation Dice while the localizer trained, with and without the text.",
)
def training_curves(sources: Sources, settings: Settings) -> Training:
    """Loss and validation Dice by epoch, with and without the text."""
    histories = {
        key.rsplit("/", 1)[1]: pd.read_csv(path)
        for key, path in sources.items()
        if key.startswith("localizer/")
    }
    if not any(len(rows) for rows in histories.values()):
        raise CaseError("The localizer was not trained for a single epoch.")
    loss, mean = [], []
    for variant, rows in histories.items():
        words, colour, lines = _TRAINED[variant]
        for column, side, line in zip(
            ("train_loss", "val_loss"), ("training", "validation"), lines, strict=True
        ):
            if column in rows:
                loss.append(_curve(f"{words}, {side}", rows, column, colour, line))
        if "val_dice" in rows:
            kept = rows.loc[rows["selected"] == 1, ["epoch", "val_dice"]].to_numpy(float)
            mean.append(_curve(words, rows, "val_dice", colour, lines[0], kept))
    organs = colours.Organs(settings.classes)
    rows = histories.get("text", next(iter(histories.values())))
    each = [
        _curve(organ, rows, f"val_dice_{organ}", organs.colour(organ), organs.line(organ))
        for organ in organs.names
        if f"val_dice_{organ}" in rows and rows[f"val_dice_{organ}"].notna().any()
    ]
    words = _TRAINED["text" if "text" in histories else next(iter(histories))][0]
    dice = "Dice on the validation cases (0 to 1)"
    return Training(
        [
            ("loss", "Dice + cross-entropy loss (no unit)", (0, None), loss),
            ("mean of the organs (dot: kept)", dice, (0, 1), mean),
            (f"each organ, {words}", dice, (0, 1), each),
        ]
    )


@draw.register
def draw_training(data: Training) -> Figure:
    """Draw the three panels side by side."""
    figure = style.new_figure("Training of the localizer", 3.9)
    for index, (axes, (title, label, limits, curves)) in enumerate(
        zip(figure.subplots(1, 3), data.panels, strict=True)
    ):
        for one in curves:
            axes.plot(
                one.epochs, one.values, color=one.colour, linestyle=one.line, label=plain(one.label)
            )
            if len(one.kept):
                axes.plot(*one.kept.T, "o", color=one.colour, mec="black", ms=5)
        axes.set(ylabel=label, ylim=limits, xlabel="epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(axis="y")
        style.letter(axes, index, title)
        if axes.lines:
            axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2))  # never over a curve
        else:
            axes.text(0.5, 0.5, "no validation case", transform=axes.transAxes, ha="center")
    return figure


def _curve(
    label: str,
    rows: pd.DataFrame,
    column: str,
    colour: str,
    line: Any,
    kept: NDArray[np.float64] | None = None,
) -> Curve:
    return Curve(
        label,
        rows["epoch"].to_numpy(),
        rows[column].to_numpy(float),
        colour,
        line,
        np.empty((0, 2)) if kept is None else kept,
    )
