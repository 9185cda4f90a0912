"""Figures of slices: their data against the study's files, their drawing against their data."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib import rc_context
from matplotlib.collections import PatchCollection
from matplotlib.colors import to_hex
from matplotlib.contour import ContourSet
from numpy.testing import assert_allclose, assert_array_equal
from skimage.segmentation import find_boundaries

from figure_study import BATCH, CLASSES, ORGANS, drawn_slice, make_study
from test_figures import files_of
from xaiclip.explain.store import load_scores
from xaiclip.preprocess import Letterbox
from xaiclip.report import colours, style
from xaiclip.report.figures import DATA, draw
from xaiclip.report.picture import (
    Boxes,
    Fill,
    Heat,
    Note,
    Outline,
    Panel,
    Picture,
    Segments,
    Words,
)
from xaiclip.report.sources import Settings
from xaiclip.roi import load_rois

#: By the palette of the documentation: the organ's place among the organs.
COLOUR = dict(zip(ORGANS, ("#E69F00", "#56B4E9", "#0072B2", "#009E73", "#CC79A7"), strict=True))
SHORT = dict(zip(ORGANS, ("Li", "RK", "LK", "Sp", "Pa"), strict=True))
#: The slice that is looked at is the second, and the organ neither the first nor the last.
SPLEEN = Settings(CLASSES, organ="spleen")
PICTURES = [name for name in DATA if name not in
            ("figure08_comparison", "figure11_lime_distributions", "training_curves")]  # fmt: skip


@pytest.fixture(scope="module")
def slices() -> dict[str, Any]:
    """Four slices in the batch's order: no spleen; everything; another; no reference."""
    return {
        "d": drawn_slice("d", 1, index=7, without="spleen"),
        "b": drawn_slice("b", 2, index=4),
        "c": drawn_slice("c", 3, index=2),
        "a": drawn_slice("a", 4, index=9),
    }


@pytest.fixture(scope="module")
def root(slices: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "results" / "demo"
    items = list(slices.values())
    return make_study(folder, [*items[:3], replace(items[3], label=None)], truth=items)


class Stored:
    """The study's files, read with numpy alone."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def arrays(self, folder: str) -> tuple[dict[str, np.ndarray], Any]:
        with np.load(self.root / folder / f"{BATCH}.npz") as file:
            arrays = {name: file[name] for name in file.files}
        return arrays, json.loads(arrays.pop("__meta__").tobytes())

    def map(self, name: str, case: str, organ: str, variant: str = "") -> np.ndarray:
        """The primary map, or the variant's for the same value function."""
        arrays, rows = self.arrays(f"attributions/{name}")
        (found,) = [
            index
            for index, row in enumerate(rows)
            if (row["case"], row["organ"], row["value"]) == (case, organ, "soft_dice")
            and (row["variant"] == variant if variant else row["primary"])
        ]
        return arrays[str(found)]

    def details(self, name: str, case: str, organ: str, variant: str) -> dict[str, float]:
        rows = self.arrays(f"attributions/{name}")[1]
        return next(row["details"] for row in rows if (row["case"], row["organ"], row["variant"])
                    == (case, organ, variant) and row["value"] == "soft_dice")  # fmt: skip

    def mask(self, item: Any, organ: str) -> np.ndarray:
        return self.arrays("segmentation")[0][f"{item.key}/{organ}/roi"]

    def roi(self, item: Any, organ: str) -> Any:
        return load_rois(self.root / f"roi/{BATCH}.npz")[0][item.key][organ]["localizer"]

    def scores(self, name: str, case: str) -> Any:
        return next(one for one in load_scores(self.root / f"scores/{name}/{BATCH}.npz")[0]
                    if one.case == case)  # fmt: skip

    def windows(self, name: str, case: str, organ: str) -> tuple[np.ndarray, int]:
        """The windows that count for the organ, and how many there are in all."""
        one = self.scores(name, case)
        (plan,) = one.plans.values()
        return plan.windows[plan.members[:, one.context.organs.index(organ)]], plan.n_full

    def probability(self, item: Any) -> np.ndarray:
        maps = self.arrays("localization/text")[0][item.key].astype(np.float32)
        return Letterbox.fit(item.image.shape, maps.shape[-1]).invert(maps)


@pytest.fixture(scope="module")
def stored(root: Path) -> Stored:
    return Stored(root)


def picture(root: Path, name: str, settings: Settings = SPLEEN) -> Picture:
    data = DATA[name](files_of(root, name), settings)
    assert isinstance(data, Picture)
    return data


def only(panel: Panel, kind: type) -> Any:
    """The one layer of this kind."""
    (layer,) = [layer for layer in panel.layers if isinstance(layer, kind)]
    return layer


def kinds(panel: Panel) -> list[str]:
    return [type(layer).__name__ for layer in panel.layers]


def limit(*maps: np.ndarray) -> float:
    """The scale's end: all but the most extreme 0.5% of what is defined."""
    values = np.sort(np.abs(np.concatenate([one[np.isfinite(one)] for one in maps])))
    return float(np.interp(0.995 * (len(values) - 1), np.arange(len(values)), values))


def is_symmetric(heat: Heat, *maps: np.ndarray) -> None:
    assert heat.norm.vmax == pytest.approx(limit(*maps), rel=1e-6)
    assert heat.norm.vmin == -heat.norm.vmax


def is_segmentation(panel: Panel, mask: np.ndarray, organ: str) -> None:
    for kind in (Fill, Outline):
        layer = only(panel, kind)
        assert_array_equal(layer.mask, mask)
        assert layer.colour == COLOUR[organ]


def is_roi(layer: Outline, mask: np.ndarray) -> None:
    assert_array_equal(layer.mask, mask)
    assert layer.colour == "white"
    assert layer.line == (0, (3, 1))


def texts(data: Picture) -> tuple[list[str], list[str], list[str]]:
    """Titles of panels, labels of bars, entries of the legend."""
    return (
        [panel.title for panel in data.panels],
        [bar.label for bar in data.bars],
        [entry.label for entry in data.legend],
    )


# --- each figure's data ---


def test_preprocessing_shows_each_slice_above_its_own_enhanced_one(
    root: Path, slices: dict[str, Any]
) -> None:
    data = picture(root, "figure02_preprocessing")
    # the batch's first case; then others of the batch, spread over their names
    assert texts(data)[:2] == (
        ["d (CT), slice 7", "a (CT), slice 9", "c (CT), slice 2", *["enhanced"] * 3],
        ["grey level (0 to 255)"],
    )
    assert data.columns == 3
    assert data.title == "Preprocessing for the localizer"
    (bar,) = data.bars
    assert (bar.of, bar.panels) == (2, (0, 1, 2, 3, 4, 5))
    enhanced, _ = Stored(root).arrays("preprocessed")
    for place, case in enumerate("dac"):
        before, after = data.panels[place], data.panels[place + 3]
        assert_array_equal(before.item.image, slices[case].image)
        assert before.image is None
        assert after.item is before.item
        box = Letterbox.fit(slices[case].image.shape, 224)
        grey = enhanced[f"{slices[case].key}/image"]
        assert_allclose(after.image, box.invert(grey), atol=1)


@pytest.mark.parametrize("organ", ["spleen", "pancreas"])
def test_lime_superpixels_stand_above_their_weights(
    root: Path, slices: dict[str, Any], stored: Stored, organ: str
) -> None:
    data = picture(root, "figure03_lime_superpixels", replace(SPLEEN, organ=organ, case="b"))
    maps = [stored.map("lime/full", "b", organ, name) for name in ("felzenszwalb", "slic")]
    plans = stored.scores("lime/full", "b").plans
    segments = [next(p for n, p in plans.items() if name in n).segments
                for name in ("felzenszwalb", "slic")]  # fmt: skip
    counts = [int((np.bincount(one[one >= 0]) > 0).sum()) for one in segments]
    r2 = [stored.details("lime/full", "b", organ, name)["r2"] for name in ("felzenszwalb", "slic")]
    assert texts(data) == (
        [f"Felzenszwalb: {counts[0]} superpixels", f"SLIC: {counts[1]} superpixels",
         f"weights, R² = {r2[0]:.2f}", f"weights, R² = {r2[1]:.2f}"],
        ["weight (soft Dice gained)"],
        [],
    )  # fmt: skip
    assert data.title == f"LIME, superpixel algorithms: case b (CT), slice 4, {organ}"
    assert data.bars[0].panels == (2, 3)
    for above, below, labels, values in zip(
        data.panels[:2], data.panels[2:], segments, maps, strict=True
    ):
        assert_array_equal(only(above, Segments).labels, labels)
        heat = only(below, Heat)
        assert_array_equal(heat.values, values)
        is_symmetric(heat, *maps)
        assert above.item.key == below.item.key == slices["b"].key


@pytest.mark.parametrize(
    ("name", "method", "title", "bar"),
    [
        ("figure04_rise", "rise/roi", "RISE in the ROI", "Cov(S, m) / Var(m), S = soft Dice"),
        ("figure05_occlusion", "occlusion/full", "Occlusion of the whole slice",
         "drop of soft Dice"),
    ],
)  # fmt: skip
def test_a_map_stands_beside_its_segmentation(
    root: Path, slices: dict[str, Any], stored: Stored, name: str, method: str, title: str, bar: str
) -> None:
    data = picture(root, name)
    first = ["slice"] if name == "figure05_occlusion" else []
    assert texts(data) == (
        [*first, "segmentation", "importance"], [bar], ["segmentation of the spleen"]
    )  # fmt: skip
    assert data.title == f"{title}: case b (CT), slice 4, spleen"
    assert data.legend[0].colour == COLOUR["spleen"]
    assert (data.bars[0].of, data.bars[0].panels) == (len(first) + 1, (len(first) + 1,))
    *_, segmentation, importance = data.panels
    mask = stored.mask(slices["b"], "spleen")
    is_segmentation(segmentation, mask, "spleen")
    values = stored.map(method, "b", "spleen")
    assert_array_equal(only(importance, Heat).values, values)
    is_symmetric(only(importance, Heat), values)
    assert_array_equal(only(importance, Outline).mask, mask)
    assert only(importance, Outline).colour == COLOUR["spleen"]
    assert all(panel.item.key == slices["b"].key for panel in data.panels)
    assert [kinds(panel) for panel in data.panels[:-2]] == [[]] * len(first)


def test_selective_occlusion_has_all_windows_left_and_the_rois_right(
    root: Path, slices: dict[str, Any], stored: Stored
) -> None:
    data = picture(root, "figure06_selective_occlusion")
    region = stored.roi(slices["b"], "spleen").mask
    maps = [stored.map(f"occlusion/{name}", "b", "spleen") for name in ("full", "roi")]
    titles = []
    for place, (guidance, words) in enumerate(
        (("full", "without guidance"), ("roi", "guided by the ROI"))
    ):
        windows, full = stored.windows(f"occlusion/{guidance}", "b", "spleen")
        met = len(windows)
        titles.append(f"{words}: {met} of {full} windows (ρ = {met / full:.2f})")
        above, below = data.panels[place], data.panels[place + 2]
        every, one, edge = above.layers
        assert_array_equal(every.corners, windows)
        assert every.shape == one.shape == (512, 512)
        assert_array_equal(one.corners, windows[met // 2][None])
        assert one.colour != every.colour
        is_roi(edge, region)
        heat, edge = below.layers
        assert_array_equal(heat.values, maps[place])
        is_symmetric(heat, *maps)
        is_roi(edge, region)
    assert "225 of 225" in titles[0]
    assert texts(data) == (
        [*titles, "importance", "importance"], ["drop of soft Dice"], ["ROI", "one window"]
    )  # fmt: skip
    assert data.bars[0].panels == (2, 3)
    assert data.legend[1].colour == one.colour
    assert data.columns == 2


def test_the_overview_follows_one_organ(root: Path, slices: dict[str, Any], stored: Stored) -> None:
    data = picture(root, "figure07_occlusion_overview")
    roi = stored.roi(slices["b"], "spleen")
    windows, full = stored.windows("occlusion/roi", "b", "spleen")
    assert texts(data) == (
        ["slice", "the localizer's map", "ROI and box", "segmentation",
         f"{len(windows)} of {full} windows (ρ = {len(windows) / full:.2f})", "importance"],
        ["probability (0 to 1)", "drop of soft Dice"],
        ["ROI", "box (the prompt)", "one window"],
    )  # fmt: skip
    assert [(bar.of, bar.panels) for bar in data.bars] == [(1, (1,)), (5, (5,))]
    plain, localized, region, segmentation, windowed, importance = data.panels
    assert plain.layers == ()
    heat = only(localized, Heat)
    assert_allclose(heat.values, stored.probability(slices["b"])[CLASSES.index("spleen")])
    assert (heat.norm.vmin, heat.norm.vmax) == (0, 1)
    is_roi(only(region, Outline), roi.mask)
    assert_array_equal(only(region, Boxes).corners, roi.box[None])
    assert only(region, Boxes).shape == slices["b"].image.shape
    assert only(region, Boxes).colour == data.legend[1].colour
    is_segmentation(segmentation, stored.mask(slices["b"], "spleen"), "spleen")
    assert_array_equal(windowed.layers[0].corners, windows)
    is_roi(windowed.layers[2], roi.mask)
    values = stored.map("occlusion/roi", "b", "spleen")
    assert_array_equal(only(importance, Heat).values, values)
    is_symmetric(only(importance, Heat), values)


def test_localization_shows_reference_map_and_both(
    root: Path, slices: dict[str, Any], stored: Stored
) -> None:
    data = picture(root, "figure09_localization")
    assert data.columns == 3
    (bar,) = data.bars
    assert (bar.label, bar.of) == ("probability of any organ (0 to 1)", 7)
    assert bar.panels == tuple(range(9))
    for row, case in enumerate("dac"):
        item = slices[case]
        left, middle, right = data.panels[3 * row : 3 * row + 3]
        assert [left.title, middle.title, right.title] == [
            f"reference: {case}, slice {item.index}",
            "the localizer's map",
            "map (filled), reference (lines)",
        ]
        probability = stored.probability(item)
        heat = only(middle, Heat)
        assert_allclose(heat.values, 1 - probability[0])
        assert (heat.norm.vmin, heat.norm.vmax, heat.alpha) == (0, 1, 1)
        found = {
            organ: mask
            for place, organ in enumerate(ORGANS, start=1)
            if (mask := (probability > np.delete(probability, place, 0).max(0))[place]).any()
        }
        # the case without a reference shows none, whatever was drawn
        there = {} if case == "a" else {
            organ: item.label == place
            for place, organ in enumerate(ORGANS, start=1)
            if (item.label == place).any()
        }  # fmt: skip
        assert len(found) >= 4
        same_masks(left, Fill, there)
        same_masks(left, Outline, there)
        same_masks(middle, Outline, found)
        same_masks(right, Fill, found)
        same_masks(right, Outline, there)
        for panel, masks in ((left, there), (middle, found)):
            words = {layer.words: layer.mask for layer in panel.layers if isinstance(layer, Words)}
            assert set(words) == {SHORT[organ] for organ in masks}
            for organ, mask in masks.items():
                assert_array_equal(words[SHORT[organ]], mask)
        notes = [layer.words for layer in left.layers if isinstance(layer, Note)]
        assert notes == (["This case has no reference."] if case == "a" else [])
    assert [entry.label for entry in data.legend] == [f"{o} ({SHORT[o]})" for o in ORGANS]
    assert [entry.colour for entry in data.legend] == [COLOUR[o] for o in ORGANS]


def same_masks(panel: Panel, kind: type, masks: dict[str, np.ndarray]) -> None:
    """The panel's layers of a kind are these masks, each in its organ's colour."""
    layers = {layer.colour: layer for layer in panel.layers if isinstance(layer, kind)}
    assert set(layers) == {COLOUR[organ] for organ in masks}
    for organ, mask in masks.items():
        assert_array_equal(layers[COLOUR[organ]].mask, mask)


def test_localization_names_the_organs_that_are_there(tmp_path: Path) -> None:
    item = drawn_slice("a", 1, without="pancreas")
    make_study(tmp_path, [item], settings={})
    data = DATA["figure09_localization"](
        {"slices": tmp_path / f"slices/{BATCH}.npz",
         "localization/text": tmp_path / f"localization/text/{BATCH}.npz"}, SPLEEN)  # fmt: skip
    assert [entry.label for entry in data.legend] == [
        f"{organ} ({SHORT[organ]})" for organ in ORGANS if organ != "pancreas"
    ]


def test_every_organ_has_its_own_occlusion_maps(
    root: Path, slices: dict[str, Any], stored: Stored
) -> None:
    data = picture(root, "figure10_occlusion_maps")
    # case b is the first in which every organ is explained twice
    assert data.title == "Occlusion, every organ: case b (CT), slice 4"
    titles, bars, legend = texts(data)
    assert titles == ORGANS * 2
    assert bars == ["drop"] * 5
    assert legend == [f"{organ} ({SHORT[organ]})" for organ in ORGANS]
    assert data.legend_title == (
        "lines: segmentation; colours: drop of soft Dice, a scale for each organ"
    )
    assert [panel.side for panel in data.panels] == [
        "without guidance", *[""] * 4, "guided by the ROI", *[""] * 4
    ]  # fmt: skip
    assert [panel.marks for panel in data.panels] == [True] + [False] * 9
    for column, organ in enumerate(ORGANS):
        maps = [stored.map(f"occlusion/{name}", "b", organ) for name in ("full", "roi")]
        for row in (0, 1):
            panel = data.panels[5 * row + column]
            assert_array_equal(only(panel, Heat).values, maps[row])
            is_symmetric(only(panel, Heat), *maps)
            edge = only(panel, Outline)
            assert_array_equal(edge.mask, stored.mask(slices["b"], organ))
            assert edge.colour == data.legend[column].colour == COLOUR[organ]
        bar = data.bars[column]
        assert (bar.of, bar.panels, bar.below) == (5 + column, (column, 5 + column), True)


def test_an_organ_that_is_not_explained_leaves_its_panels(root: Path) -> None:
    data = picture(root, "figure10_occlusion_maps", replace(SPLEEN, case="d"))
    for panel in data.panels:
        assert kinds(panel) == (["Note"] if panel.title == "spleen" else ["Heat", "Outline"])
    assert [bar.of for bar in data.bars] == [5, 6, 7, 9]


def test_lime_stages_go_from_the_slice_to_both_maps(
    root: Path, slices: dict[str, Any], stored: Stored
) -> None:
    data = picture(root, "figure12_lime_stages")
    plans = {}
    for guidance in ("full", "roi"):
        every = stored.scores(f"lime/{guidance}", "b").plans
        plans[guidance] = next(plan for name, plan in every.items() if "felzenszwalb" in name)
    segments = {name: plan.segments for name, plan in plans.items()}
    on = np.asarray(plans["roi"].on)
    hidden = (~on).sum(1)
    sample = int(np.argmin(np.abs(on.sum(1) - np.median(on.sum(1)))))
    counts = {name: len(set(one[one >= 0].tolist())) for name, one in segments.items()}
    assert texts(data) == (
        ["slice and segmentation", f"{counts['full']} superpixels",
         f"{counts['roi']} superpixels in the ROIs",
         f"one sample: {hidden[sample]} of {on.shape[1]} hidden",
         "without guidance", "guided by the ROI"],
        ["weight (soft Dice gained)"],
        ["ROI", "hidden (mean grey)"],
    )  # fmt: skip
    first, second, third, fourth, fifth, sixth = data.panels
    item = slices["b"]
    is_segmentation(first, stored.mask(item, "spleen"), "spleen")
    assert_array_equal(only(second, Segments).labels, segments["full"])
    assert_array_equal(only(third, Segments).labels, segments["roi"])
    is_roi(only(third, Outline), stored.roi(item, "spleen").mask)
    off = np.zeros((512, 512), bool)
    for index in np.flatnonzero(~on[sample]):
        off |= segments["roi"] == index
    assert off.any()
    assert_array_equal(only(fourth, Outline).mask, off)
    assert only(fourth, Outline).colour == data.legend[1].colour
    assert fourth.image is not None
    rows = ((np.arange(96) + 0.5) * 512 / 96).astype(int)
    columns = ((np.arange(128) + 0.5) * 512 / 128).astype(int)
    gone = off[np.ix_(rows, columns)]
    expected = np.where(gone, round(float(item.image.mean())), item.image)
    assert (fourth.image != expected).mean() < 0.002
    maps = [stored.map(f"lime/{name}", "b", "spleen") for name in ("full", "roi")]
    for panel, values in zip((fifth, sixth), maps, strict=True):
        assert_array_equal(only(panel, Heat).values, values)
        is_symmetric(only(panel, Heat), *maps)
    assert (data.bars[0].of, data.bars[0].panels) == (5, (4, 5))


def test_rise_stages_have_both_estimators_of_both_guidances(
    root: Path, slices: dict[str, Any], stored: Stored
) -> None:
    data = picture(root, "figure13_rise_stages")
    masks = stored.scores("rise/roi", "b").plans["masks"]
    assert texts(data) == (
        ["segmentation", "published, without guidance", "covariance, without guidance",
         f"one of {masks.n_forwards} masks", "published, guided by the ROI",
         "covariance, guided by the ROI"],
        ["share kept (0 to 1)",
         *["Σ S·m / (N·p), S = soft Dice", "Cov(S, m) / Var(m), S = soft Dice"] * 2],
        ["ROI"],
    )  # fmt: skip
    assert [(bar.of, bar.panels) for bar in data.bars] == [
        (place, (place,)) for place in (3, 1, 2, 4, 5)
    ]
    is_segmentation(data.panels[0], stored.mask(slices["b"], "spleen"), "spleen")
    shown = only(data.panels[3], Heat)
    assert_allclose(shown.values, masks.keep(0, 1, 512, "cpu")[0, 0].numpy(), atol=1e-5)
    assert (shown.norm.vmin, shown.norm.vmax) == (0, 1)
    for row, guidance in enumerate(("full", "roi")):
        for column, estimator in enumerate(("paper", "covariance"), start=1):
            heat = only(data.panels[3 * row + column], Heat)
            values = stored.map(f"rise/{guidance}", "b", "spleen", estimator)
            assert_array_equal(heat.values, values)
            if estimator == "covariance":
                is_symmetric(heat, values)
            else:
                ends = np.percentile(values[np.isfinite(values)], [0.5, 99.5])
                assert_allclose([heat.norm.vmin, heat.norm.vmax], ends)
    region = stored.roi(slices["b"], "spleen").mask
    for panel in data.panels[3:]:
        is_roi(only(panel, Outline), region)
    assert not any(isinstance(layer, Outline) for panel in data.panels[1:3]
                   for layer in panel.layers)  # fmt: skip


@pytest.mark.parametrize("prompt", ["roi", "reference"])
def test_the_segmentation_is_that_of_the_prompt(
    root: Path, slices: dict[str, Any], tmp_path: Path, prompt: str
) -> None:
    key = f"{slices['b'].key}/spleen"
    masks = {"roi": np.eye(96, 128, dtype=bool), "reference": np.eye(96, 128, 9, dtype=bool)}
    arrays = {f"{key}/{name}": mask for name, mask in masks.items()}
    meta = np.frombuffer(b'{"skips": []}', np.uint8)
    np.savez(tmp_path / "masks.npz", __meta__=meta, **arrays)
    files = {**files_of(root, "figure05_occlusion"), "segmentation": tmp_path / "masks.npz"}
    data = DATA["figure05_occlusion"](files, replace(SPLEEN, prompt=prompt))
    assert_array_equal(only(data.panels[1], Fill).mask, masks[prompt])


# --- the drawing shows the data ---


@pytest.mark.parametrize("name", PICTURES)
def test_the_drawing_shows_the_data(root: Path, name: str) -> None:
    data = picture(root, name)
    with rc_context(style.STYLE):
        figure = draw(data)
    assert figure.get_suptitle() == data.title
    count = len(data.panels)
    axes, bars = figure.axes[:count], figure.axes[count:]
    for place, (panel, drawn) in enumerate(zip(data.panels, axes, strict=True)):
        letter = f"$\\bf{{({'abcdefghij'[place]})}}$ "
        assert drawn.get_title(loc="left") == letter + panel.title
        shows(drawn, panel)
        row, column = divmod(place, data.columns)
        spec = drawn.get_subplotspec()
        assert (spec.rowspan.start, spec.colspan.start) == (row, column)
    for bar, drawn in zip(data.bars, bars, strict=True):
        assert (drawn.get_xlabel() if bar.below else drawn.get_ylabel()) == bar.label
        heats = [layer for layer in data.panels[bar.of].layers if isinstance(layer, Heat)]
        ends = drawn.get_xlim() if bar.below else drawn.get_ylim()
        norm = heats[-1].norm if heats else None
        assert_allclose(ends, (norm.vmin, norm.vmax) if norm else (0, 255))
    (legend,) = figure.legends or [None]
    if legend is None:
        assert not data.legend
        return
    assert [text.get_text() for text in legend.get_texts()] == [one.label for one in data.legend]
    assert [line.get_color() for line in legend.get_lines()] == [one.colour for one in data.legend]
    assert legend.get_title().get_text() == data.legend_title


def shows(axes: Any, panel: Panel) -> None:
    """The artists of a panel hold what its layers say, in their order and in millimetres."""
    item = panel.item
    height, width = 96 * 3.0, 128 * 2.5
    images = list(axes.images)
    for image in images:
        assert list(image.get_extent()) == [0, width, height, 0]
    grey = item.image if panel.image is None else panel.image
    first = images.pop(0)
    assert_array_equal(first.get_array(), grey)
    assert first.get_clim() == (0, 255)
    edges = [one for one in axes.collections if isinstance(one, ContourSet)]
    patches = [one for one in axes.collections if isinstance(one, PatchCollection)]
    words = [text.get_text() for text in axes.texts]
    for layer in panel.layers:
        match layer:
            case Heat():
                image = images.pop(0)
                shown = np.ma.masked_invalid(layer.values)
                assert_array_equal(np.ma.getmaskarray(image.get_array()), shown.mask)
                assert_array_equal(image.get_array().compressed(), shown.compressed())
                assert image.norm is layer.norm
                signed = layer.norm.vmin == -layer.norm.vmax
                assert image.get_cmap() is (colours.SIGNED if signed else colours.UNSIGNED)
                if not np.isfinite(layer.values).all():
                    encloses(edges.pop(0), np.isfinite(layer.values))
            case Outline():
                if layer.mask.any():
                    edge = edges.pop(0)
                    encloses(edge, layer.mask)
                    assert to_hex(edge.get_edgecolor()[0]) == to_hex(layer.colour)
            case Fill():
                image = images.pop(0)
                assert_array_equal(~np.ma.getmaskarray(image.get_array()), layer.mask)
                assert to_hex(image.get_cmap()(0)) == to_hex(layer.colour)
            case Segments():
                image = images.pop(0)
                lines = ~np.ma.getmaskarray(image.get_array())
                assert_array_equal(lines, find_boundaries(layer.labels))
            case Boxes():
                patch = patches.pop(0)
                scale = np.array([width / layer.shape[1], height / layer.shape[0]] * 2)
                found = [path.get_extents().extents for path in patch.get_paths()]
                assert_allclose(found, np.asarray(layer.corners) * scale)
                assert to_hex(patch.get_edgecolor()[0]) == to_hex(layer.colour)
            case Words():
                text = next(one for one in axes.texts if one.get_text() == layer.words)
                x, y = text.get_position()
                row, column = int(y / height * 96), int(x / width * 128)
                assert layer.mask[row, column]
            case Note():
                assert layer.words in [" ".join(word.split()) for word in words]
    assert not images
    assert not edges
    assert not patches
    sides = [word for word in words if word in ("R", "L", "5 cm")]
    assert sides == (["R", "L", "5 cm"] if panel.marks else [])
    assert (panel.side in words) or not panel.side


def encloses(edge: ContourSet, mask: np.ndarray) -> None:
    """The middles of the mask's pixels lie inside the line, those of the others outside."""
    rows, columns = mask.shape
    x, y = np.meshgrid(
        (np.arange(columns) + 0.5) * 320 / columns, (np.arange(rows) + 0.5) * 288 / rows
    )
    points = np.stack([x.ravel(), y.ravel()], 1)
    inside = np.zeros(len(points), bool)
    for path in edge.get_paths():
        for ring in path.to_polygons(closed_only=True):
            inside ^= type(path)(ring).contains_points(points)
    assert (inside.reshape(mask.shape) == mask).mean() > 0.9995


def test_the_patients_right_is_on_the_left(root: Path) -> None:
    figure = draw(picture(root, "figure05_occlusion"))
    places = {text.get_text(): text.get_position()[0] for text in figure.axes[0].texts}
    assert places["R"] < 0.1 * 320
    assert places["L"] > 0.9 * 320
    (bar,) = figure.axes[0].lines
    assert np.ptp(bar.get_xdata()) == 50  # "5 cm", in millimetres
    assert np.ptp(bar.get_ydata()) == 0
