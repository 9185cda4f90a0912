"""Figures of one slice: images, segmentations, perturbations and maps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from xaiclip.data.slices import Slice
from xaiclip.errors import CaseError
from xaiclip.explain.attribution import GRID, Attribution
from xaiclip.organs import BACKGROUND
from xaiclip.preprocess import load_preprocessed
from xaiclip.report import sources as files
from xaiclip.report import style
from xaiclip.report.sources import Settings, Sources, Subject

SHARE = Normalize(0, 1)

#: Value functions in words.
VALUES = {
    "soft_dice": "soft Dice",
    "hard_dice": "Dice",
    "hard_iou": "IoU",
    "in_mask_probability": "mean probability in the mask",
    "boundary_dice": "boundary Dice",
    "false_positive_area": "false-positive area",
}


def preprocessing(sources: Sources, settings: Settings) -> Figure:
    """Up to three cases: slices before (top) and after (bottom) equations 1 to 8."""
    items = _one_per_case(sources, settings, 3)
    enhanced = {one.key: one for one in load_preprocessed(sources["preprocessed"])}
    figure, axes = style.picture_grid(
        "Preprocessing for the localizer", 2, len(items), _tallest(items)
    )
    for column, item in enumerate(items):
        before, after = axes[:, column]
        drawn = style.show_slice(before, item)
        style.show_slice(after, item, enhanced[item.key].on_slice_grid())
        style.letter(before, column, f"{item.case} ({item.modality}), slice {item.index}")
        style.letter(after, column + len(items), "enhanced")
    style.colour_bar(figure, drawn, list(axes.flat), "grey level (0 to 255)")
    return figure


def lime_superpixels(sources: Sources, settings: Settings) -> Figure:
    """Each superpixel algorithm (top) and the weights that LIME gives to its superpixels."""
    subject, maps = _subject_and_maps(sources, settings, "lime/full")
    value = files.primary(maps).value
    shown = [one for one in maps if one.value == value and len(one.plans) == 1]
    if not shown:
        raise CaseError("The study runs LIME with no single superpixel algorithm.")
    figure, axes = style.picture_grid(
        f"LIME, superpixel algorithms: {subject.words}", 2, len(shown), subject.item
    )
    norm = style.symmetric(one.map for one in shown)
    for column, one in enumerate(shown):
        top, bottom = axes[:, column]
        segments = files.plan(sources["scores/lime/full"], subject, one.plans[0])["segments"]
        style.show_slice(top, subject.item)
        style.boundaries(top, subject.item, segments)
        style.letter(top, column, f"{_algorithm(one)}: {_count(segments)} superpixels")
        style.show_slice(bottom, subject.item)
        drawn = style.show_map(bottom, subject.item, one.map, norm=norm)
        style.letter(bottom, column + len(shown), f"weights, R² = {one.details['r2']:.2f}")
    style.colour_bar(figure, drawn, list(axes[1]), _importance(shown[0]))
    return figure


def rise(sources: Sources, settings: Settings) -> Figure:
    """The segmentation (left) and RISE's map inside the ROI (right)."""
    subject, maps = _subject_and_maps(sources, settings, "rise/roi")
    figure, axes = style.picture_grid(f"RISE in the ROI: {subject.words}", 1, 2, subject.item)
    left, right = axes[0]
    _show_segmentation(left, 0, subject, sources, settings)
    one = files.primary(maps)
    _show_map(figure, right, 1, subject, one, "importance")
    _outline_segmentation(figure, right, subject, sources, settings)
    return figure


def occlusion(sources: Sources, settings: Settings) -> Figure:
    """Slice, segmentation, and the drop of the score where the window lay."""
    subject, maps = _subject_and_maps(sources, settings, "occlusion/full")
    figure, axes = style.picture_grid(
        f"Occlusion of the whole slice: {subject.words}", 1, 3, subject.item
    )
    first, second, third = axes[0]
    style.show_slice(first, subject.item)
    style.letter(first, 0, "slice")
    _show_segmentation(second, 1, subject, sources, settings)
    _show_map(figure, third, 2, subject, files.primary(maps), "importance")
    _outline_segmentation(figure, third, subject, sources, settings)
    return figure


def selective_occlusion(sources: Sources, settings: Settings) -> Figure:
    """Windows (top) and maps (bottom), over the whole slice and where they meet the ROI."""
    subject = files.choose_subject(sources, settings)
    both = {
        guidance: files.primary(
            files.attributions(
                sources[f"attributions/occlusion/{guidance}"], subject.item, subject.organ
            )
        )
        for guidance in ("full", "roi")
    }
    region = files.roi(sources["roi"], subject).mask
    norm = style.symmetric(one.map for one in both.values())
    figure, axes = style.picture_grid(f"Selective occlusion: {subject.words}", 2, 2, subject.item)
    for column, (guidance, one) in enumerate(both.items()):
        top, bottom = axes[:, column]
        plan = files.plan(sources[f"scores/occlusion/{guidance}"], subject)
        _show_windows(top, subject, plan, region)
        style.letter(top, column, f"{style.GUIDANCES[guidance][2]}: {_windows(plan)}")
        style.show_slice(bottom, subject.item)
        drawn = style.show_map(bottom, subject.item, one.map, norm=norm)
        style.outline(bottom, subject.item, region, _ROI, style=_ROI_LINE)
        style.letter(bottom, column + 2, "importance")
    style.colour_bar(figure, drawn, list(axes[1]), _importance(one))
    _legend(figure, [_ROI_HANDLE, _WINDOW_HANDLE])
    return figure


def occlusion_overview(sources: Sources, settings: Settings) -> Figure:
    """The way of guided occlusion: localizer, ROI, segmentation, windows, map."""
    subject, maps = _subject_and_maps(sources, settings, "occlusion/roi")
    item = subject.item
    region = files.roi(sources["roi"], subject)
    probability = files.probabilities(sources["localization/text"], item)
    plan = files.plan(sources["scores/occlusion/roi"], subject)
    figure, axes = style.picture_grid(
        f"From the localizer to the map: {subject.words}", 2, 3, item, extra=0.15
    )
    first, second, third, fourth, fifth, sixth = axes.flat
    style.show_slice(first, item)
    style.letter(first, 0, "slice")
    style.show_slice(second, item)
    drawn = style.show_map(
        second, item, probability[list(settings.classes).index(subject.organ)], norm=SHARE
    )
    style.colour_bar(figure, drawn, second, "probability (0 to 1)")
    style.letter(second, 1, "the localizer's map")
    style.show_slice(third, item)
    style.outline(third, item, region.mask, _ROI, style=_ROI_LINE)
    if region.box is not None:
        style.boxes(third, item, region.box[None], item.image.shape, colour="#56B4E9")
    style.letter(third, 2, "ROI and box")
    _show_segmentation(fourth, 3, subject, sources, settings)
    _show_windows(fifth, subject, plan, region.mask)
    style.letter(fifth, 4, _windows(plan))
    _show_map(figure, sixth, 5, subject, files.primary(maps), "importance")
    prompt = Line2D([], [], color="#56B4E9", label="box (the prompt)")
    _legend(figure, [_ROI_HANDLE, prompt, _WINDOW_HANDLE])
    return figure


def localization(sources: Sources, settings: Settings) -> Figure:
    """Up to three cases: reference, the localizer's map, and both over the slice."""
    items = _one_per_case(sources, settings, 3)
    organs = style.Organs(settings.classes)
    figure, axes = style.picture_grid(
        "Localization of the organs", len(items), 3, _tallest(items), extra=0.25
    )
    found: set[str] = set()
    for row, item in enumerate(items):
        probability = files.probabilities(sources["localization/text"], item)
        winner = probability.argmax(0)
        left, middle, right = axes[row]
        style.show_slice(left, item)
        drawn = (
            style.show_slice(middle, item),
            style.show_map(
                middle,
                item,
                1 - probability[settings.classes.index(BACKGROUND)],
                norm=SHARE,
                alpha=1,
            ),
        )
        style.show_slice(right, item)
        for organ in organs.names:
            index = list(settings.classes).index(organ)
            colour, line = organs.colour(organ), organs.line(organ)
            if (winner == index).any():
                found.add(organ)
                style.outline(middle, item, winner == index, colour, style=line)
                style.fill(right, item, winner == index, colour)
                style.write(middle, item, winner == index, organs.short(organ))
            if item.label is not None and (item.label == index).any():
                found.add(organ)
                style.fill(left, item, item.label == index, colour)
                style.outline(left, item, item.label == index, colour, style=line)
                style.outline(right, item, item.label == index, colour, style=line)
                style.write(left, item, item.label == index, organs.short(organ))
        if item.label is None:
            style.note(left, "This case has no reference.")
        style.letter(left, 3 * row, f"reference: {item.case}, slice {item.index}")
        style.letter(middle, 3 * row + 1, "the localizer's map")
        style.letter(right, 3 * row + 2, "map (filled), reference (lines)")
    style.colour_bar(figure, drawn[1], list(axes.flat), "probability of any organ (0 to 1)")
    _legend(figure, organs.handles(organ for organ in organs.names if organ in found))
    return figure


def occlusion_maps(sources: Sources, settings: Settings) -> Figure:
    """Every organ's occlusion map, without (top) and with (bottom) guidance."""
    guidances = [key.rsplit("/", 1)[1] for key in sources if key.startswith("attributions/")]
    best: tuple[int, Slice, dict[str, dict[str, Attribution]]] | None = None
    for item in files.shown_slices(sources, settings):
        maps = {
            organ: {
                guidance: one
                for guidance in guidances
                for one in files.attributions(
                    sources[f"attributions/occlusion/{guidance}"], item, organ
                )
                if one.primary
            }
            for organ in settings.organs
        }
        count = sum(map(len, maps.values()))
        if count and (best is None or count > best[0]):
            best = count, item, maps
            if count == len(guidances) * len(settings.organs):
                break
    if best is None:
        raise CaseError("No organ of this batch is explained by occlusion.")
    _, item, maps = best
    organs = style.Organs(settings.classes)
    figure, axes = style.picture_grid(
        f"Occlusion, every organ: {files.slice_words(item)}",
        len(guidances),
        len(organs.names),
        item,
        extra=0.55,
    )
    for column, organ in enumerate(organs.names):
        norm = style.symmetric(one.map for one in maps[organ].values())
        mask = files.segmentation(sources["segmentation"], item, organ, settings.prompt)
        drawn = None
        for row, guidance in enumerate(guidances):
            panel = axes[row, column]
            style.show_slice(panel, item, marks=row == column == 0)
            if guidance in maps[organ]:
                drawn = style.show_map(panel, item, maps[organ][guidance].map, norm=norm)
                style.outline(
                    panel, item, mask, organs.colour(organ), style=organs.line(organ), width=0.9
                )
            else:
                style.note(panel, "not explained")
            style.letter(panel, row * len(organs.names) + column, organ)
        if drawn is not None:
            style.colour_bar(figure, drawn, list(axes[:, column]), "drop", below=True)
    for row, guidance in enumerate(guidances):
        _side_title(axes[row, 0], style.GUIDANCES[guidance][2])
    value = next(one.value for of in maps.values() for one in of.values())
    _legend(figure, organs.handles(organs.names), title=(
        f"lines: segmentation; colours: drop of {VALUES.get(value, value)}, a scale for each organ"
    ))  # fmt: skip
    return figure


def lime_stages(sources: Sources, settings: Settings) -> Figure:
    """LIME step by step, from the slice to the maps without and with guidance."""
    subject, full = _subject_and_maps(sources, settings, "lime/full")
    guided = files.attributions(sources["attributions/lime/roi"], subject.item, subject.organ)
    item, before, after = subject.item, files.primary(full), files.primary(guided)
    plans = [
        files.plan(sources[f"scores/lime/{guidance}"], subject, one.plans[0])
        for guidance, one in (("full", before), ("roi", after))
    ]
    region = files.roi(sources["roi"], subject).mask
    figure, axes = style.picture_grid(f"LIME, step by step: {subject.words}", 2, 3, item, extra=0.2)
    first, second, third, fourth, fifth, sixth = axes.flat
    _show_segmentation(first, 0, subject, sources, settings, title="slice and segmentation")
    for index, (panel, plan, words) in enumerate(
        ((second, plans[0], "superpixels"), (third, plans[1], "superpixels in the ROIs")), start=1
    ):
        style.show_slice(panel, item)
        style.boundaries(panel, item, plan["segments"])
        style.letter(panel, index, f"{_count(plan['segments'])} {words}")
    style.outline(third, item, region, _ROI, style=_ROI_LINE)
    segments, on = plans[1]["segments"], plans[1]["on"]
    # the sample with the most typical number of hidden superpixels
    sample = int(np.abs(on.sum(1) - np.median(on.sum(1))).argmin())
    kept = np.append(on[sample], True)[segments]
    style.show_slice(fourth, item, _hidden(item, kept.astype(float)))
    style.outline(fourth, item, kept == 0, _HIDDEN, width=0.9)
    style.letter(fourth, 3, f"one sample: {int((~on[sample]).sum())} of {on.shape[1]} hidden")
    norm = style.symmetric([before.map, after.map])
    for index, (panel, one, guidance) in enumerate(
        ((fifth, before, "full"), (sixth, after, "roi")), start=4
    ):
        style.show_slice(panel, item)
        drawn = style.show_map(panel, item, one.map, norm=norm)
        style.letter(panel, index, style.GUIDANCES[guidance][2])
    style.colour_bar(figure, drawn, [fifth, sixth], _importance(before))
    hidden = Line2D([], [], color=_HIDDEN, label="hidden (mean grey)")
    _legend(figure, [_ROI_HANDLE, hidden])
    return figure


def rise_stages(sources: Sources, settings: Settings) -> Figure:
    """RISE step by step; its published estimator beside the covariance, with both guidances."""
    subject = files.choose_subject(sources, settings)
    item = subject.item
    figure, axes = style.picture_grid(f"RISE, step by step: {subject.words}", 2, 3, item, extra=0.2)
    _show_segmentation(axes[0, 0], 0, subject, sources, settings)
    plan = files.plan(sources["scores/rise/roi"], subject)
    style.show_slice(axes[1, 0], item)
    drawn = style.show_map(axes[1, 0], item, draw_mask(plan, 0), norm=SHARE)
    style.colour_bar(figure, drawn, axes[1, 0], "share kept (0 to 1)")
    style.letter(axes[1, 0], 1, f"one of {len(plan['cells'])} masks")
    region = files.roi(sources["roi"], subject).mask
    for row, guidance in enumerate(("full", "roi")):
        maps = files.attributions(sources[f"attributions/rise/{guidance}"], item, subject.organ)
        words = style.GUIDANCES[guidance][2]
        for column, name in enumerate(("paper", "covariance"), start=1):
            panel, one = axes[row, column], files.variant(maps, name)
            style.show_slice(panel, item)
            style.letter(panel, column + 1, f"{_ESTIMATORS[name]}, {words}")
            if one is None:
                style.note(panel, f"The estimator '{name}' is switched off.")
                continue
            norm = (style.symmetric if name == "covariance" else style.spread)([one.map])
            drawn = style.show_map(panel, item, one.map, norm=norm)
            style.colour_bar(figure, drawn, panel, _importance(one))
    for panel in axes[1]:
        style.outline(panel, item, region, _ROI, style=_ROI_LINE)
    _legend(figure, [_ROI_HANDLE], title=(
        "The published estimator is high where the mask never changes, whatever the model does."
    ))  # fmt: skip
    return figure


def draw_mask(plan: dict[str, NDArray[Any]], k: int) -> NDArray[np.float32]:
    """RISE's mask k on the canonical grid, float32 (512, 512), as `CellPlan.keep` draws it."""
    cells = plan["cells"][k].astype(np.float32)
    side = -(-GRID // len(cells))
    whole = cv2.resize(cells, ((len(cells) + 1) * side,) * 2, interpolation=cv2.INTER_LINEAR)
    row, column = plan["shifts"][k]
    cut = whole[row : row + GRID, column : column + GRID]
    return np.where(plan["region"], cut, np.float32(1))


# --- panels --------------------------------------------------------------------------------------

_ROI = "white"
_ROI_LINE = (0, (3, 1))
_HIDDEN = "#56B4E9"
_WINDOW = "#F0E442"
_WINDOW_HANDLE = Line2D([], [], color=_WINDOW, linewidth=2, label="one window")
_ROI_HANDLE = Line2D([], [], color="0.6", linestyle=_ROI_LINE, label="ROI")
_ESTIMATORS = {"paper": "published", "covariance": "covariance"}


def _show_segmentation(
    axes: Axes,
    index: int,
    subject: Subject,
    sources: Sources,
    settings: Settings,
    title: str = "segmentation",
) -> None:
    organs = style.Organs(settings.classes)
    mask = files.segmentation(sources["segmentation"], subject.item, subject.organ, settings.prompt)
    style.show_slice(axes, subject.item)
    style.fill(axes, subject.item, mask, organs.colour(subject.organ))
    style.outline(axes, subject.item, mask, organs.colour(subject.organ))
    style.letter(axes, index, title)


def _outline_segmentation(
    figure: Figure, axes: Axes, subject: Subject, sources: Sources, settings: Settings
) -> None:
    colour = style.Organs(settings.classes).colour(subject.organ)
    mask = files.segmentation(sources["segmentation"], subject.item, subject.organ, settings.prompt)
    style.outline(axes, subject.item, mask, colour)
    _legend(figure, [Line2D([], [], color=colour, label=f"segmentation of the {subject.organ}")])


def _show_map(
    figure: Figure, axes: Axes, index: int, subject: Subject, one: Attribution, title: str
) -> None:
    style.show_slice(axes, subject.item)
    drawn = style.show_map(axes, subject.item, one.map, norm=style.symmetric([one.map]))
    style.colour_bar(figure, drawn, axes, _importance(one))
    style.letter(axes, index, title)


def _show_windows(
    axes: Axes, subject: Subject, plan: dict[str, NDArray[Any]], region: NDArray[np.bool_]
) -> None:
    """The windows that count for the organ, one of them marked, and the ROI."""
    windows, grid = plan["windows"][plan["members"]], (GRID, GRID)
    one = windows[len(windows) // 2][None]
    style.show_slice(axes, subject.item)
    style.boxes(axes, subject.item, windows, grid, colour="#56B4E9", filling=0.09, width=0.5)
    style.boxes(axes, subject.item, one, grid, colour=_WINDOW, filling=0.25, width=1.6)
    style.outline(axes, subject.item, region, _ROI, style=_ROI_LINE)


def _hidden(item: Slice, kept: NDArray[np.floating[Any]]) -> NDArray[np.uint8]:
    """The slice, its mean grey where ``kept`` (512, 512) is 0."""
    share = cv2.resize(kept, item.image.shape[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
    mean = item.image.mean()
    return np.asarray((mean + share * (item.image - mean)).round(), dtype=np.uint8)


# --- words and choices ---------------------------------------------------------------------------


def _subject_and_maps(
    sources: Sources, settings: Settings, name: str
) -> tuple[Subject, list[Attribution]]:
    subject = files.choose_subject(sources, settings)
    maps = files.attributions(sources[f"attributions/{name}"], subject.item, subject.organ)
    return subject, maps


def _one_per_case(sources: Sources, settings: Settings, count: int) -> list[Slice]:
    """The chosen case first, then others of the batch, spread evenly."""
    chosen = files.shown_slices(sources, settings)[0]
    every = {item.case: item for item in reversed(files.all_slices(sources))}
    others = [every[case] for case in sorted(every) if case != chosen.case]
    at = np.linspace(len(others) - 1, 0, min(count - 1, len(others))).round().astype(int)
    return [chosen, *(others[i] for i in sorted(at))]


def _tallest(items: Sequence[Slice]) -> Slice:
    return max(items, key=lambda item: item.image.shape[0] * item.spacing[0]
               / (item.image.shape[1] * item.spacing[1]))  # fmt: skip


def _importance(one: Attribution) -> str:
    value = VALUES.get(one.value, one.value)
    return {
        "window": f"drop of {value}",
        "covariance": f"Cov(S, m) / Var(m), S = {value}",
        "paper": f"Σ S·m / (N·p), S = {value}",
    }.get(one.variant, f"weight ({value} gained)")


def _windows(plan: dict[str, NDArray[Any]]) -> str:
    met, full = int(plan["members"].sum()), int(plan["n_full"])
    return f"{met} of {full} windows (ρ = {met / full:.2f})"


def _algorithm(one: Attribution) -> str:
    names = {"felzenszwalb": "Felzenszwalb", "slic": "SLIC", "quickshift": "QuickShift"}
    return names.get(one.variant, one.variant)


def _count(segments: NDArray[np.integer[Any]]) -> int:
    return len(np.unique(segments[segments >= 0]))


def _side_title(axes: Axes, words: str) -> None:
    axes.text(-0.06, 0.5, words, transform=axes.transAxes, rotation=90, ha="right", va="center")


def _legend(figure: Figure, handles: Sequence[Line2D], title: str | None = None) -> None:
    figure.legend(
        handles=list(handles), loc="outside lower center", ncols=6, title=title, title_fontsize=7.5
    )
