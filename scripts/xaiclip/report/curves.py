"""Curves: of the localizer's training, and along the slices of a case; their data and drawing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.compute as pc
from matplotlib.figure import Figure
from numpy.typing import NDArray

from xaiclip.errors import CaseError
from xaiclip.report import colours, style
from xaiclip.report.catalogue import makes_figure
from xaiclip.report.drawing import draw
from xaiclip.report.sources import Settings, Sources
from xaiclip.report.words import plain

#: What the slices are drawn from.
_COLUMNS = [
    *("case", "slice", "organ", "method", "guidance", "roi_source", "primary", "skipped"),
    *("baseline_dice_gt", "fidelity_dice", "localization_dice_pred"),
]
#: By variant: words, colour, and the lines of training and validation.
_TRAINED = {
    "text": ("with the text", "#0072B2", ("-", (0, (4, 1)))),
    "no_text": ("without the text", "#E69F00", ((0, (1, 1)), (0, (4, 1, 1, 1)))),
}


@dataclass(frozen=True, eq=False)
class Curve:
    """One line over epochs or slices; ``kept``: places and values that get a dot, (K, 2)."""

    label: str
    places: NDArray[np.int64]
    values: NDArray[np.float64]
    colour: str
    line: Any
    kept: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Curves:
    """Three panels: title, label of the axis, its limits, curves.

    Attributes:
        panels: as above.
        title: of the figure.
        along: what the curves run over.
        nothing: what a panel without any curve says.
    """

    panels: Sequence[tuple[str, str, tuple[float, float | None], Sequence[Curve]]]
    title: str
    along: str
    nothing: str


@makes_figure(
    "training_curves",
    ["training"],
    "Loss and validation Dice while the localizer trained, with and without the text.",
)
def training_curves(sources: Sources, settings: Settings) -> Curves:
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
    return Curves(
        [
            ("loss", "Dice + cross-entropy loss (no unit)", (0, None), loss),
            ("mean of the organs (dot: kept)", dice, (0, 1), mean),
            (f"each organ, {words}", dice, (0, 1), each),
        ],
        "Training of the localizer",
        "epoch",
        "no validation case",
    )


@makes_figure(
    "slices",
    ["metrics/explanations"],
    "Slice by slice of one case: the segmentation against the reference, and, of one organ, each "
    "method's fidelity and its map against the segmentation.",
    several=True,
)
def along_slices(sources: Sources, settings: Settings) -> Curves:
    """Dice of each organ's segmentation, and of one organ's maps, by slice.

    Raises:
        CaseError: no organ of the case is explained.
    """
    rows = pd.read_parquet(
        sources["metrics"], columns=_COLUMNS, filters=pc.field("skipped").is_null()
    )
    case = settings.case or rows["case"].min()
    rows = rows[rows["primary"] & (rows["case"] == case)].sort_values("slice")
    if rows.empty:
        raise CaseError("No organ of the case is explained: see skipped.tsv.")
    organs = colours.Organs(settings.classes)
    segmented = rows.dropna(subset="baseline_dice_gt").drop_duplicates(["organ", "slice"])
    each = [
        _line(organ, own, "baseline_dice_gt", organs.colour(organ), organs.line(organ))
        for organ in organs.names
        if len(own := segmented[segmented["organ"] == organ])
    ]
    own = rows[rows["organ"] == settings.organ]
    guided = own["guidance"] + own["roi_source"].map(" ({})".format, na_action="ignore").fillna("")
    maps = [
        (f"{method}, {words}", own[(own["method"] == method) & (guided == words)], colour, line)
        for colour, method in zip(colours.shades(), sorted(set(own["method"])), strict=False)
        for line, words in zip(colours.strokes(), sorted(set(guided)), strict=False)
    ]
    panels = [("segmentations", "Dice against the reference (0 to 1)", (0, 1), each)]
    for title, column, label in (
        ("fidelity", "fidelity_dice", "Dice of masks under perturbation (0 to 1)"),
        ("localization", "localization_dice_pred", "Dice of map and segmentation (0 to 1)"),
    ):
        curves = [
            _line(words, of_map, column, *look)
            for words, of_map, *look in maps
            if of_map[column].notna().any()
        ]
        panels.append((f"{title}, {settings.organ}", label, (0, 1), curves))
    return Curves(panels, f"Slices of case {case}", "slice, from the feet", "no value")


@draw.register
def draw_curves(data: Curves) -> Figure:
    """Draw the three panels side by side."""
    figure = style.new_figure(data.title, 3.9)
    for index, (axes, (title, label, limits, curves)) in enumerate(
        zip(figure.subplots(1, 3), data.panels, strict=True)
    ):
        for one in curves:
            axes.plot(
                one.places, one.values, color=one.colour, linestyle=one.line, label=plain(one.label)
            )
            if len(one.kept):
                axes.plot(*one.kept.T, "o", color=one.colour, mec="black", ms=5)
        axes.set(ylabel=label, ylim=limits, xlabel=data.along)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(axis="y")
        style.letter(axes, index, title)
        if axes.lines:
            axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2))  # never over a curve
        else:
            axes.text(0.5, 0.5, data.nothing, transform=axes.transAxes, ha="center")
    return figure


def _line(label: str, rows: pd.DataFrame, column: str, colour: str, line: Any) -> Curve:
    """A line over slices, with a dot on each."""
    known = rows.dropna(subset=column)
    places, values = known["slice"].to_numpy(), known[column].to_numpy(float)
    return Curve(label, places, values, colour, line, np.stack([places, values], axis=1))


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
