"""Figures of LIME and RISE, step by step. Each function gives a figure's data."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from matplotlib.colors import Normalize
from numpy.typing import NDArray

from xaiclip.data.record import Slice
from xaiclip.errors import CaseError
from xaiclip.explain.attribution import GRID, Attribution
from xaiclip.report import colours, panels, style
from xaiclip.report import sources as files
from xaiclip.report.catalogue import makes_figure
from xaiclip.report.picture import ColourBar, Entry, Heat, Layer, Note, Outline, Panel, Picture
from xaiclip.report.picture import Segments as Edges
from xaiclip.report.sources import Settings, Sources

_ESTIMATORS = {"paper": "published", "covariance": "covariance"}
_ALGORITHMS = {"felzenszwalb": "Felzenszwalb", "slic": "SLIC", "quickshift": "QuickShift"}


@makes_figure(
    "figure03_lime_superpixels",
    ["slices", "scores/lime/full", "attributions/lime/full"],
    "LIME with three superpixel algorithms: the superpixels (top) and the weight of each "
    "(bottom). The paper's figure 3.",
)
def lime_superpixels(sources: Sources, settings: Settings) -> Picture:
    """Each superpixel algorithm (top) and the weights that LIME gives to its superpixels."""
    subject, maps = panels.subject_and_maps(sources, settings, "lime/full")
    value = files.primary(maps).value
    shown = [one for one in maps if one.value == value and len(one.plans) == 1]
    if not shown:
        raise CaseError("The study runs LIME with no single superpixel algorithm.")
    norm = style.symmetric(one.map for one in shown)
    above, below = [], []
    for one in shown:
        segments = files.plan(sources["scores/lime/full"], subject, one.plans[0])["segments"]
        title = f"{_ALGORITHMS.get(one.variant, one.variant)}: {panels.count(segments)} superpixels"
        above.append(Panel(title, subject.item, (Edges(segments),)))
        title = f"weights, R² = {one.details['r2']:.2f}"
        below.append(Panel(title, subject.item, (Heat(one.map, norm),)))
    n = len(shown)
    return Picture(
        f"LIME, superpixel algorithms: {subject.words}",
        [*above, *below],
        n,
        [ColourBar(panels.importance(shown[0]), 2 * n - 1, tuple(range(n, 2 * n)))],
    )


@makes_figure(
    "figure04_rise",
    ["slices", "segmentation", "attributions/rise/roi"],
    "RISE inside the ROI: the segmentation that is explained (left) and the covariance of "
    "its score with the mask (right). The paper's figure 4.",
)
def rise(sources: Sources, settings: Settings) -> Picture:
    """The segmentation (left) and RISE's map inside the ROI (right)."""
    subject, maps = panels.subject_and_maps(sources, settings, "rise/roi")
    one = files.primary(maps)
    shown, entry = panels.map_and_segmentation(subject, one, sources, settings)
    return Picture(
        f"RISE in the ROI: {subject.words}",
        [panels.segmentation_panel(subject, sources, settings), shown],
        2,
        [panels.own_bar(1, panels.importance(one))],
        [entry],
    )


@makes_figure(
    "figure12_lime_stages",
    [
        "slices",
        "roi",
        "segmentation",
        "scores/lime/full",
        "scores/lime/roi",
        "attributions/lime/full",
        "attributions/lime/roi",
    ],
    "LIME step by step. The paper's figure 12.",
)
def lime_stages(sources: Sources, settings: Settings) -> Picture:
    """LIME step by step, from the slice to the maps without and with guidance."""
    subject, full = panels.subject_and_maps(sources, settings, "lime/full")
    guided = files.attributions(sources["attributions/lime/roi"], subject.item, subject.organ)
    item, before, after = subject.item, files.primary(full), files.primary(guided)
    whole, inside = (
        files.plan(sources[f"scores/lime/{guidance}"], subject, one.plans[0])
        for guidance, one in (("full", before), ("roi", after))
    )
    region = files.roi(sources["roi"], subject).mask
    segments, on = inside["segments"], inside["on"]
    # the sample with the most typical number of hidden superpixels
    sample = int(np.abs(on.sum(1) - np.median(on.sum(1))).argmin())
    kept = np.append(on[sample], True)[segments]
    norm = style.symmetric([before.map, after.map])
    return Picture(
        f"LIME, step by step: {subject.words}",
        [
            panels.segmentation_panel(subject, sources, settings, "slice and segmentation"),
            Panel(
                f"{panels.count(whole['segments'])} superpixels", item, (Edges(whole["segments"]),)
            ),
            Panel(
                f"{panels.count(segments)} superpixels in the ROIs",
                item,
                (Edges(segments), panels.roi_outline(region)),
            ),
            Panel(
                f"one sample: {int((~on[sample]).sum())} of {on.shape[1]} hidden",
                item,
                (Outline(~kept, panels.HIDDEN, width=0.9),),
                image=_hidden(item, kept.astype(float)),
            ),
            Panel(colours.GUIDANCES["full"][2], item, (Heat(before.map, norm),)),
            Panel(colours.GUIDANCES["roi"][2], item, (Heat(after.map, norm),)),
        ],
        3,
        [ColourBar(panels.importance(before), 5, (4, 5))],
        [panels.ROI_ENTRY, Entry("hidden (mean grey)", panels.HIDDEN)],
        extra=0.2,
    )


@makes_figure(
    "figure13_rise_stages",
    [
        "slices",
        "roi",
        "segmentation",
        "scores/rise/roi",
        "attributions/rise/full",
        "attributions/rise/roi",
    ],
    "RISE step by step, with the estimator that the paper used and why it looks inverted. "
    "The paper's figure 13.",
)
def rise_stages(sources: Sources, settings: Settings) -> Picture:
    """RISE step by step; its published estimator beside the covariance, with both guidances."""
    subject = files.choose_subject(sources, settings)
    item = subject.item
    plan = files.plan(sources["scores/rise/roi"], subject)
    edge = panels.roi_outline(files.roi(sources["roi"], subject).mask)
    one_mask = Heat(draw_mask(plan, 0), Normalize(0, 1))
    shown = {
        "full": [panels.segmentation_panel(subject, sources, settings)],
        "roi": [Panel(f"one of {len(plan['cells'])} masks", item, (one_mask, edge))],
    }
    bars = [panels.own_bar(3, "share kept (0 to 1)")]
    for row, (guidance, of_row) in enumerate(shown.items()):
        maps = files.attributions(sources[f"attributions/rise/{guidance}"], item, subject.organ)
        for name, words in _ESTIMATORS.items():
            one = files.variant(maps, name)
            title = f"{words}, {colours.GUIDANCES[guidance][2]}"
            layers = _estimated(one, name)
            if one is not None:
                bars.append(panels.own_bar(3 * row + len(of_row), panels.importance(one)))
            over = (edge,) if guidance == "roi" else ()
            of_row.append(Panel(title, item, (*layers, *over)))
    return Picture(
        f"RISE, step by step: {subject.words}",
        [*shown["full"], *shown["roi"]],
        3,
        bars,
        [panels.ROI_ENTRY],
        "The published estimator is high where the mask never changes, whatever the model does.",
        extra=0.2,
    )


def _estimated(one: Attribution | None, estimator: str) -> tuple[Layer, ...]:
    """The map in a scale of its own: signed for the covariance, which can be negative."""
    if one is None:
        return (Note(f"The estimator '{estimator}' is switched off."),)
    scale = style.symmetric if estimator == "covariance" else style.spread
    return (Heat(one.map, scale([one.map])),)


def draw_mask(plan: dict[str, NDArray[Any]], k: int) -> NDArray[np.float32]:
    """RISE's mask k on the canonical grid, float32 (512, 512), as `CellPlan.keep` draws it."""
    cells = plan["cells"][k].astype(np.float32)
    side = -(-GRID // len(cells))
    whole = cv2.resize(cells, ((len(cells) + 1) * side,) * 2, interpolation=cv2.INTER_LINEAR)
    row, column = plan["shifts"][k]
    cut = whole[row : row + GRID, column : column + GRID]
    return np.where(plan["region"], cut, np.float32(1))


def _hidden(item: Slice, kept: NDArray[np.floating[Any]]) -> NDArray[np.uint8]:
    """The slice, its mean grey where ``kept`` (512, 512) is 0."""
    share = cv2.resize(kept, item.image.shape[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
    mean = item.image.mean()
    return np.asarray((mean + share * (item.image - mean)).round(), dtype=np.uint8)
