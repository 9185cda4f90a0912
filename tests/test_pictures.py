"""Figures of slices: their data against the study's files."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from figure_study import BATCH, CLASSES, ORGANS, drawn_slice, make_study
from picture_study import (
    COLOUR,
    SHORT,
    SPLEEN,
    Stored,
    at,
    is_roi,
    is_segmentation,
    is_symmetric,
    kinds,
    only,
    picture,
    texts,
)
from xaiclip.preprocess import Letterbox
from xaiclip.report.figures import DATA
from xaiclip.report.picture import (
    Boxes,
    Fill,
    Heat,
    Note,
    Outline,
    Panel,
    Segments,
    Words,
)

pytestmark = pytest.mark.slow

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


@pytest.mark.parametrize(("organ", "of"), [("spleen", "b"), ("pancreas", "c")])
def test_lime_superpixels_stand_above_their_weights(
    root: Path, slices: dict[str, Any], stored: Stored, organ: str, of: str
) -> None:
    data = picture(root, "figure03_lime_superpixels", replace(SPLEEN, organ=organ, case=of))
    maps = [stored.map("lime/full", of, organ, name) for name in ("felzenszwalb", "slic")]
    plans = stored.scores("lime/full", of).plans
    segments = [next(p for n, p in plans.items() if name in n).segments
                for name in ("felzenszwalb", "slic")]  # fmt: skip
    counts = [int((np.bincount(one[one >= 0]) > 0).sum()) for one in segments]
    r2 = [stored.details("lime/full", of, organ, name)["r2"] for name in ("felzenszwalb", "slic")]
    assert texts(data) == (
        [f"Felzenszwalb: {counts[0]} superpixels", f"SLIC: {counts[1]} superpixels",
         f"weights, R² = {r2[0]:.2f}", f"weights, R² = {r2[1]:.2f}"],
        ["weight (soft Dice gained)"],
        [],
    )  # fmt: skip
    assert data.title == f"LIME, superpixel algorithms: case {of} (CT), slice {at(of)[1]}, {organ}"
    assert data.bars[0].panels == (2, 3)
    for above, below, labels, values in zip(
        data.panels[:2], data.panels[2:], segments, maps, strict=True
    ):
        assert_array_equal(only(above, Segments).labels, labels)
        heat = only(below, Heat)
        assert_array_equal(heat.values, values)
        is_symmetric(heat, *maps)
        assert above.item.key == below.item.key == slices[of].key


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
