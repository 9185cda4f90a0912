import math
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

from xaiclip.metrics import maps
from xaiclip.metrics.explanation import (
    area_matched,
    rank_correlation,
    top_fraction,
    top_pixels,
)
from xaiclip.metrics.maps import fidelity
from xaiclip.metrics.maps.explained import Explained
from xaiclip.metrics.maps.localization import localization
from xaiclip.metrics.schema import EXPLANATIONS

NAN = math.nan


def explained(heat, prediction, reference=None, scores=None) -> Explained:
    """A map of the last of three organs, whose masks differ."""
    shape = np.shape(prediction)
    masks = np.stack([np.zeros(shape, bool), np.ones(shape, bool), prediction])
    slice_scores = SimpleNamespace(
        context=SimpleNamespace(organs=("spleen", "pancreas", "liver"), masks=masks),
        tables={"p": SimpleNamespace(values=tuple(scores or ()))},
        member_scores=lambda one, value: np.float32(scores[value]),
    )
    attribution = SimpleNamespace(organ="liver", map=np.asarray(heat, float), plans=("p",))
    return Explained(attribution, slice_scores, reference)


def columns_of(heat, prediction, reference=None) -> dict[str, float]:
    scores = {"hard_dice": [0.5], "hard_iou": [0.25]}
    return maps.columns(explained(heat, prediction, reference, scores))


def disc(size: int = 40, radius: float = 8) -> np.ndarray:
    rows, columns = np.mgrid[:size, :size]
    return (rows - size / 2) ** 2 + (columns - size / 2) ** 2 < radius**2


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.integers(0, 120), st.integers(1, 8))
def test_top_pixels_are_the_top(seed: int, count: int, levels: int) -> None:
    rng = np.random.default_rng(seed)
    heat = rng.integers(0, levels, (10, 10)).astype(float)
    heat[rng.random((10, 10)) < 0.2] = NAN
    chosen = top_pixels(heat, count)
    assert chosen.sum() == min(count, np.isfinite(heat).sum())
    assert not chosen[np.isnan(heat)].any()
    left = ~chosen & np.isfinite(heat)
    if chosen.any() and left.any():
        assert heat[chosen].min() >= heat[left].max()
    assert (chosen == top_pixels(heat, count)).all()


def test_ties_do_not_favour_a_part_of_the_image() -> None:
    chosen = top_pixels(np.zeros((100, 100)), 5000)
    assert 2300 < chosen[:50].sum() < 2700
    assert 2300 < chosen[:, :50].sum() < 2700


def test_top_fraction_is_of_the_defined_pixels() -> None:
    heat = np.full((10, 10), NAN)
    heat[:5] = np.arange(50).reshape(5, 10)
    chosen = top_fraction(heat, 0.2)
    assert chosen.sum() == 10
    assert chosen[4].all()


def test_a_perfect_an_inverted_and_a_flat_map() -> None:
    target = disc()
    perfect = localization(target.astype(float), target)
    assert perfect["dice"] == perfect["iou"] == perfect["pointing"] == 1
    assert perfect["dice_chance"] == pytest.approx(target.mean())
    inverted = localization(1.0 - target, target)
    assert inverted["dice"] == inverted["iou"] == inverted["pointing"] == 0
    flat = localization(np.ones(target.shape), target)
    assert flat["dice"] == pytest.approx(flat["dice_chance"], abs=0.08)
    assert flat["pointing"] == pytest.approx(target.mean())


def test_chance_is_the_mean_over_random_rankings() -> None:
    target, domain = disc(), disc(radius=10)
    rng = np.random.default_rng(0)
    heats = [np.where(domain, rng.random(target.shape), NAN) for _ in range(200)]
    scores = [localization(heat, target) for heat in heats]
    assert len({score["dice_chance"] for score in scores}) == 1
    mean = np.mean([score["dice"] for score in scores])
    assert mean == pytest.approx(scores[0]["dice_chance"], abs=0.005)
    assert scores[0]["dice_chance"] > 0.6  # the ROI alone


def test_a_domain_smaller_than_the_target_is_taken_whole() -> None:
    target, domain = disc(), disc(radius=4)
    heat = np.where(domain, 1.0, NAN)
    scores = localization(heat, target)
    assert (area_matched(heat, target) == domain).all()
    assert scores["dice"] == pytest.approx(2 * domain.sum() / (domain.sum() + target.sum()))
    assert scores["dice_chance"] == pytest.approx(scores["dice"])


def test_the_area_is_that_of_the_whole_target_not_of_its_part_in_the_maps_domain() -> None:
    """A target of 6, of which 2 are in the domain of 8: 6 pixels are taken, 2 of them right."""
    heat, target = np.full((5, 4), NAN), np.zeros((5, 4), bool)
    heat[:2] = np.arange(8).reshape(2, 4)  # the highest pixels are the last ones
    target[1, 2:], target[3] = True, True
    assert area_matched(heat, target).sum() == 6
    scores = localization(heat, target)
    assert scores["dice"] == pytest.approx(2 * 2 / 12)
    assert scores["iou"] == pytest.approx(2 / 10)
    assert scores["dice_chance"] == pytest.approx(2 * (6 * 2 / 8) / 12)
    assert scores["pointing"] == 1


@pytest.mark.parametrize(
    ("heat", "target"),
    [(np.full((4, 4), NAN), np.ones((4, 4), bool)), (np.ones((4, 4)), np.zeros((4, 4), bool))],
    ids=["undefined map", "empty target"],
)
def test_nothing_to_compare(heat: np.ndarray, target: np.ndarray) -> None:
    assert all(map(math.isnan, localization(heat, target).values()))


def test_each_column_is_of_its_own_target_and_measure() -> None:
    """A map of two levels, a prediction and a reference that overlap it differently."""
    heat = np.zeros((6, 10))
    heat[:, :4], heat[:, 4:6] = 2, 1  # 24 pixels, then 12
    prediction, reference = np.zeros((6, 10), bool), np.zeros((6, 10), bool)
    prediction[:, 2:6], reference[:, 1:4] = True, True  # 24 and 18 pixels, 12 and 18 in the top
    columns = columns_of(heat, prediction, reference)
    assert columns["localization_dice_pred"] == pytest.approx(24 / 48)
    assert columns["localization_iou_pred"] == pytest.approx(12 / 36)
    assert columns["localization_dice_pred_chance"] == pytest.approx(24 / 60)
    assert columns["pointing_pred"] == pytest.approx(12 / 24)
    assert columns["localization_dice_gt_chance"] == pytest.approx(18 / 60)
    assert columns["pointing_gt"] == pytest.approx(18 / 24)
    found = area_matched(heat, reference)  # 18 of 24 ties
    hits = int((found & reference).sum())
    assert columns["localization_dice_gt"] == pytest.approx(hits / 18)
    assert columns["localization_iou_gt"] == pytest.approx(hits / (36 - hits))


def test_columns_are_those_of_the_schema() -> None:
    target = disc()
    columns = columns_of(target, target)
    assert set(columns) == {one.name for one in maps.MEASURES} <= set(EXPLANATIONS.names)
    assert columns["localization_dice_pred"] == 1
    assert math.isnan(columns["localization_dice_gt"])
    assert math.isnan(columns["pointing_gt"])


def test_rank_correlation() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.random((6, 6)), rng.random((6, 6))
    assert rank_correlation(a, b) == pytest.approx(spearmanr(a.ravel(), b.ravel()).statistic)
    assert rank_correlation(a, a**3) == pytest.approx(1)
    a[0] = NAN
    expected = spearmanr(a[1:].ravel(), b[1:].ravel()).statistic
    assert rank_correlation(a, b) == rank_correlation(b, a) == pytest.approx(expected)
    assert math.isnan(rank_correlation(a, np.ones((6, 6))))
    assert math.isnan(rank_correlation(np.full((6, 6), NAN), b))


@pytest.mark.parametrize(
    ("hard_dice", "hard_iou", "expected"),
    [
        ([1.0, 0.5], [1.0, 0.25], (0.75, 0.625)),
        ([1.0, NAN, 0.5], [NAN, NAN, 0.25], (0.75, 0.25)),
        ([], [NAN], (NAN, NAN)),
    ],
    ids=["mean", "of the finite", "nothing"],
)
def test_fidelity_is_the_mean_over_the_organ_s_forwards(hard_dice, hard_iou, expected) -> None:
    one = explained(disc(), disc(), scores={"hard_dice": hard_dice, "hard_iou": hard_iou})
    found = fidelity.measure(one)
    assert found == pytest.approx(
        dict(zip(("fidelity_dice", "fidelity_iou"), expected, strict=True)), nan_ok=True
    )


def test_metrics_and_their_measures_have_names_of_their_own() -> None:
    names = [one.name for one in maps.MEASURES]
    assert len(set(names)) == len(names)
    fixed = set(EXPLANATIONS.names) - set(names)
    assert {"case", "n_forwards", "lime_r2", "skipped"} <= fixed
    assert len(EXPLANATIONS.names) == len(fixed) + len(names)
    for metric in maps.METRICS:
        own = {one.name for one in metric.MEASURES}
        scores = {"hard_dice": [0.5], "hard_iou": [0.25]}
        assert set(metric.measure(explained(disc(), disc(), disc(), scores))) == own
