"""Panels that several figures share, and their words."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from xaiclip.explain.attribution import GRID, Attribution
from xaiclip.report import colours, style
from xaiclip.report import sources as files
from xaiclip.report.picture import Boxes, ColourBar, Entry, Fill, Heat, Mask, Outline, Panel
from xaiclip.report.sources import Settings, Sources, Subject

ROI_LINE = (0, (3, 1))
HIDDEN = "#56B4E9"
BOX = "#56B4E9"
_WINDOW = "#F0E442"

ROI_ENTRY = Entry("ROI", "0.6", ROI_LINE)
WINDOW_ENTRY = Entry("one window", _WINDOW, width=2)

#: Value functions in words.
VALUES = {
    "soft_dice": "soft Dice",
    "hard_dice": "Dice",
    "hard_iou": "IoU",
    "in_mask_probability": "mean probability in the mask",
    "boundary_dice": "boundary Dice",
    "false_positive_area": "false-positive area",
}


def roi_outline(region: Mask) -> Outline:
    """The ROI's edge."""
    return Outline(region, "white", ROI_LINE)


def segmentation_panel(
    subject: Subject, sources: Sources, settings: Settings, title: str = "segmentation"
) -> Panel:
    """The segmentation that is explained, filled."""
    mask, colour = _segmentation(subject, sources, settings)
    return Panel(title, subject.item, (Fill(mask, colour), Outline(mask, colour)))


def map_and_segmentation(
    subject: Subject, one: Attribution, sources: Sources, settings: Settings
) -> tuple[Panel, Entry]:
    """A map in its own signed scale with the segmentation's edge, and the legend's line."""
    mask, colour = _segmentation(subject, sources, settings)
    layers = (Heat(one.map, style.symmetric([one.map])), Outline(mask, colour))
    entry = Entry(f"segmentation of the {subject.organ}", colour)
    return Panel("importance", subject.item, layers), entry


def windows_panel(
    title: str, subject: Subject, plan: dict[str, NDArray[Any]], region: Mask
) -> Panel:
    """The windows that count for the organ, one of them marked, and the ROI."""
    windows, grid = plan["windows"][plan["members"]], (GRID, GRID)
    one = windows[len(windows) // 2][None]
    return Panel(
        title,
        subject.item,
        (
            Boxes(windows, grid, BOX, filling=0.09, width=0.5),
            Boxes(one, grid, _WINDOW, filling=0.25, width=1.6),
            roi_outline(region),
        ),
    )


def own_bar(index: int, label: str) -> ColourBar:
    """The colour bar of one panel alone."""
    return ColourBar(label, index, (index,))


def importance(one: Attribution) -> str:
    """What a map's numbers are."""
    value = VALUES.get(one.value, one.value)
    return {
        "window": f"drop of {value}",
        "covariance": f"Cov(S, m) / Var(m), S = {value}",
        "paper": f"Σ S·m / (N·p), S = {value}",
    }.get(one.variant, f"weight ({value} gained)")


def windows_words(plan: dict[str, NDArray[Any]]) -> str:
    """How many windows count for the organ, of how many."""
    met, full = int(plan["members"].sum()), int(plan["n_full"])
    return f"{met} of {full} windows (ρ = {met / full:.2f})"


def count(segments: NDArray[np.integer[Any]]) -> int:
    """How many segments there are."""
    return len(np.unique(segments[segments >= 0]))


def subject_and_maps(
    sources: Sources, settings: Settings, name: str
) -> tuple[Subject, list[Attribution]]:
    """The chosen slice and organ, and its maps of ``method/guidance``."""
    subject = files.choose_subject(sources, settings)
    maps = files.attributions(sources[f"attributions/{name}"], subject.item, subject.organ)
    return subject, maps


def _segmentation(subject: Subject, sources: Sources, settings: Settings) -> tuple[Mask, str]:
    mask = files.segmentation(sources["segmentation"], subject.item, subject.organ, settings.prompt)
    return mask, colours.Organs(settings.classes).colour(subject.organ)
