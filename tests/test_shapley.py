"""Shapley values: against their definition, captum, and the engine; what the units are."""

from math import comb

import numpy as np
import pytest
import torch
from captum.attr import KernelShap, ShapleyValues
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from scipy.stats import spearmanr

from explain_fakes import context, rois, table
from shapley_games import REGIONS, Game, body, by_definition, masks, sliced
from xaiclip.errors import CaseError
from xaiclip.explain.shapley import (
    COALITIONS,
    UnitPlan,
    aggregate,
    coalitions,
    plans,
    shapley_values,
)
from xaiclip.masks.roi import body_mask
from xaiclip.organs import OUTSIDE, REST

# --- the estimator ---


@pytest.mark.parametrize("units", [1, 2, 3, 4, 5, 6, 7])
def test_all_coalitions_give_the_definition(units):
    game = Game(units)
    values, errors = game.solve(coalitions(units, 10, 4, 0))
    np.testing.assert_allclose(values, by_definition(game), atol=1e-12)
    assert errors is None


def test_equals_captum():
    game = Game(5)
    values, _ = game.solve(coalitions(5, 10, 4, 0))
    for score_number in range(2):
        theirs = ShapleyValues(
            lambda kept, v=score_number: torch.from_numpy(game(kept.numpy())[:, 0, v])
        ).attribute(torch.ones(1, 5), baselines=0)
        np.testing.assert_allclose(values[0, score_number], theirs[0], atol=1e-6)


@pytest.mark.parametrize("units", [11, 12, 13])
def test_a_sample_agrees_with_all(units):
    """Of 2046 coalitions and more a thousand are scored."""
    game = Game(units, seed=units)
    truth, none = game.solve(coalitions(units, 16, 4, 0))
    assert none is None
    for seed in range(5):
        on = coalitions(units, 10, 1000, seed)
        assert len(on) == 1001
        values, errors = game.solve(on)
        assert errors is not None
        for mine, true in zip(values[0], truth[0], strict=True):
            assert spearmanr(mine, true).statistic > 0.95
        total = game(np.ones((1, units), bool)) - game(np.zeros((1, units), bool))
        np.testing.assert_allclose(values.sum(-1), total[0], atol=1e-10)


def test_a_sample_is_nearer_than_captums_of_the_same_size():
    game, units = Game(12, seed=3), 12
    truth, _ = game.solve(coalitions(units, 16, 4, 0))
    ours, theirs = [], []
    for seed in range(4):
        values, _ = game.solve(coalitions(units, 10, 400, seed))
        ours.append(np.abs(values - truth)[0, 0].mean())
        torch.manual_seed(seed)
        found = KernelShap(lambda kept: torch.from_numpy(game(kept.numpy())[:, 0, 0])).attribute(
            torch.ones(1, units), baselines=0, n_samples=400, perturbations_per_eval=400
        )
        theirs.append(np.abs(found[0].numpy() - truth[0, 0]).mean())
    assert np.mean(ours) < np.mean(theirs)


@pytest.mark.parametrize(
    ("units", "samples", "low", "high"),
    # most of the coalitions; few of them; hardly more than there are units: rather too large
    [(11, 1400, 0.85, 1.25), (13, 300, 0.85, 1.25), (16, 100, 1.0, 1.6)],
)
def test_errors_are_what_repeated_samples_show(units, samples, low, high):
    game = Game(units, seed=1)
    found = [game.solve(coalitions(units, 10, samples, seed)) for seed in range(60)]
    values, errors = (np.stack(part) for part in zip(*found, strict=True))
    ratio = np.sqrt((errors**2).mean(0)) / values.std(0, ddof=1)
    assert low < ratio.mean() < high
    if units == 13:
        truth, _ = game.solve(coalitions(units, 16, 4, 0))
        away = (values.mean(0) - truth) / values.std(0, ddof=1) * np.sqrt(60)
        assert np.sqrt((away**2).mean()) < 1.6  # 1 if unbiased


def test_a_unit_that_adds_nothing_and_twins():
    """Dummy and symmetry: two of the axioms that define the value."""

    def game(on):
        kept = on.astype(float)
        twins = kept[:, 1] + kept[:, 4]
        return (kept[:, 0] + twins**2 * kept[:, 2])[:, None, None]

    on = coalitions(6, 10, 4, 1)
    (((first, twin, factor, dummy, other, _),),), _ = shapley_values(
        on, game(on), np.full((1, 1), 5)
    )
    assert first == pytest.approx(1)
    assert dummy == pytest.approx(0, abs=1e-12)
    assert twin == pytest.approx(other, abs=1e-12)
    # (twins)² · factor: 4/3 for the factor and as much for each twin, by hand
    assert (factor, twin) == pytest.approx((5 / 3, 7 / 6))
    on = coalitions(12, 10, 600, 1)
    ((values,),), errors = shapley_values(on, game(on), np.full((1, 1), 5))
    assert errors is not None
    assert np.abs(values[[3, *range(5, 12)]]).max() < 4 * errors.max()
    assert abs(values[1] - values[4]) < 4 * errors.max()


# --- which coalitions ---


@given(st.integers(1, 40), st.integers(1, 12), st.integers(4, 600), st.integers(0, 99))
@examples(max_examples=60, deadline=None)
def test_coalitions(units, exact, samples, seed):
    on = coalitions(units, exact, samples, seed)
    assert on.shape[1] == units
    assert not on[0].any()
    np.testing.assert_array_equal(on[2::2], ~on[1::2])
    assert len(np.unique(on, axis=0)) == len(on)
    assert not on[1:].all(1).any()
    if units <= exact:
        assert len(on) == 2**units - 1
    else:
        wanted = max(samples, 4 * units) // 2 * 2
        assert len(on) == 1 + min(wanted, 2**units - 2)
        made = np.bincount(on[1:].sum(1), minlength=units + 1)
        possible = np.array([comb(units, size) for size in range(units + 1)])
        # one unit alone and all but one are always there, every size is, the smallest are whole
        assert made[1] == possible[1]
        assert (made[1:units] >= np.minimum(2, possible[1:units])).all()
        np.testing.assert_array_equal(on, coalitions(units, exact, samples, seed))


def test_small_sizes_come_whole_and_the_others_by_their_weight():
    made = np.bincount(coalitions(12, 10, 1000, 0)[1:].sum(1), minlength=13)
    assert (made[1], made[2]) == (12, 66)
    assert made.tolist() == made[::-1].tolist()
    assert made[3] > made[4] > made[5]


def test_seeds_draw_anew():
    one, same, other = (coalitions(20, 10, 300, seed) for seed in (1, 1, 2))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


# --- which units ---


def test_organs_the_rest_and_outside_are_the_units():
    plan = plans(sliced())[COALITIONS]
    assert isinstance(plan, UnitPlan)
    assert plan.names.tolist() == [*REGIONS, REST, OUTSIDE]
    assert plan.n_forwards == plan.n_full == 2**5 - 1
    of = {name: plan.segments == number for number, name in enumerate(plan.names)}
    inside = body_mask(body())
    spleen, liver, pancreas = masks()
    assert np.array_equal(of["spleen"], spleen)
    assert np.array_equal(of["pancreas"], pancreas)  # the smaller one
    assert np.array_equal(of["liver"], liver & ~pancreas)
    organs = masks().any(0)
    assert np.array_equal(of[REST], inside & ~organs)
    assert np.array_equal(of[OUTSIDE], ~inside & ~organs)
    assert of[OUTSIDE].any()


def test_a_forward_keeps_its_units_and_fills_the_others():
    plan = plans(sliced())[COALITIONS]
    drawn = plan.keep(0, plan.n_forwards, 512).numpy()[:, 0]
    assert not drawn[0].any()
    for kept, on in zip(drawn, plan.on, strict=True):
        for number, name in enumerate(plan.names):
            assert (kept[plan.segments == number] == on[number]).all(), name


def test_under_guidance_whole_units_that_meet_an_roi_play():
    roi = np.zeros((3, 512, 512), bool)
    roi[:, 100:110, 60:70] = True  # within the spleen
    roi[1, 425:430, 260:270] = True  # within the pancreas
    plan = plans(sliced(roi))[COALITIONS]
    assert plan.names.tolist() == ["spleen", "pancreas"]
    assert (plan.n_forwards, plan.n_full) == (3, 31)
    spleen, _, pancreas = masks()
    assert np.array_equal(plan.segments >= 0, spleen | pancreas)
    kept = plan.keep(0, 1, 512).numpy()[0, 0]
    assert np.array_equal(kept == 1, ~(spleen | pancreas))
    truth = np.array([[[0.1], [0.2], [0.3]], [[0.5], [0.5], [0.5]], [[0.2], [0.2], [0.2]]])
    found = aggregate({COALITIONS: plan}, {COALITIONS: table(truth[..., 0])}, sliced(roi))
    for one, own in zip(found[::1], roi, strict=False):
        assert np.array_equal(np.isfinite(one.map), own & (plan.segments >= 0))


@pytest.mark.parametrize("regions", ["label", "localizer"])
def test_regions_of_another_source(regions):
    """A small organ that the other hides leaves no unit; an organ that is not explained is one."""
    whole, nothing = masks()[1], np.zeros((512, 512), bool)
    given = {"aorta": masks()[0], "liver": whole, "gallbladder": nothing, "twin": whole}
    settings = {"regions": regions}
    plan = plans(sliced(settings=settings, regions=given))[COALITIONS]
    assert plan.names.tolist() == ["aorta", "twin", REST, OUTSIDE]
    with pytest.raises(CaseError, match=f"no {regions} .*methods.shapley.regions"):
        plans(sliced(settings=settings))


def test_an_image_that_is_all_air_is_one_unit():
    made = sliced(image=np.zeros((512, 512), np.uint8), masks=np.ones((3, 512, 512), bool))
    plan = plans(made)[COALITIONS]
    assert plan.names.tolist() == ["pancreas"]
    (first, *_) = aggregate(
        {COALITIONS: plan}, {COALITIONS: table(np.array([[0.25, 0.5, 1.0]]))}, made
    )
    assert first.units == {"pancreas": 0.75}


def test_superpixels_are_limes():
    from xaiclip.explain import lime

    settings = {"units": "superpixels", "slic": {"n_segments": 12, "compactness": 0.2}}
    made = context(settings={**settings, "samples": 64})
    plan = plans(made)[COALITIONS]
    expected = lime.superpixels(
        "slic", made.image, lime.PlanSettings(slic=lime.Slic(n_segments=12, compactness=0.2))
    )
    assert np.array_equal(plan.segments, expected)
    assert plan.on.shape[1] == expected.max() + 1
    guided = plans(context(guided=True, settings={**settings, "samples": 64}))[COALITIONS]
    met = np.unique(expected[rois().any(0)])
    assert guided.on.shape[1] == len(met)
    assert np.array_equal(guided.segments >= 0, np.isin(expected, met))
    drop = RNG.random((plan.n_forwards, 2))
    assert not any(
        one.units for one in aggregate({COALITIONS: plan}, {COALITIONS: table(drop)}, made)
    )


RNG = np.random.default_rng(0)


# --- maps ---


def test_maps_paint_units_and_add_up():
    made = sliced(explained=("soft_dice",))
    plan = plans(made)[COALITIONS]
    gain = np.array([[0.4, 0.0, 0.01], [0.05, 0.3, -0.02], [0.0, 0.1, 0.2], [0.2, 0.1, 0.3],
                     [-0.05, 0.0, 0.02]])  # fmt: skip
    scores = 0.1 + plan.on @ gain
    found = aggregate(
        {COALITIONS: plan}, {COALITIONS: table(scores, (0.1 + gain.sum(0))[:, None])}, made
    )
    assert [(one.organ, one.variant, one.primary) for one in found] == [
        (organ, variant, variant == "value")
        for variant in ("value", "density")
        for organ in REGIONS
    ]
    for o, one in enumerate(found[:3]):
        assert one.units == pytest.approx(dict(zip(plan.names, gain[:, o], strict=True)), abs=1e-6)
        for number in range(5):
            np.testing.assert_allclose(one.map[plan.segments == number], gain[number, o], atol=1e-6)
        assert sum(one.units.values()) == pytest.approx(gain[:, o].sum(), abs=1e-6)
        assert one.error is None
        assert one.details == {}
    for o, one in enumerate(found[3:]):
        assert one.units == {}
        assert one.map.sum(dtype=float) == pytest.approx(gain[:, o].sum(), abs=1e-5)
        assert one.map[100, 100] == pytest.approx(gain[0, o] / (140 * 140), abs=1e-9)


def test_a_sampled_map_has_errors():
    settings = {"units": "superpixels", "slic": {"n_segments": 30}, "samples": 200}
    made = context(guided=True, settings=settings)
    plan = plans(made)[COALITIONS]
    game = Game(plan.on.shape[1])
    whole = game(np.ones((1, game.units), bool))[0, 0]
    one, *_, last = aggregate(
        {COALITIONS: plan}, {COALITIONS: table(game(plan.on)[:, 0], whole[:, None])}, made
    )
    values, errors = game.solve(plan.on)
    assert errors is not None
    at = (200, 150)
    number = plan.segments[at]
    assert one.error is not None
    assert last.error is not None
    assert one.error[at] == pytest.approx(errors[0, 0, number], rel=1e-3)
    assert one.map[at] == pytest.approx(values[0, 0, number], rel=1e-3)
    area = (plan.segments == plan.segments[300, 350]).sum()
    assert last.error[300, 350] * area == pytest.approx(
        errors[0, 1, plan.segments[300, 350]], rel=1e-3
    )
    assert np.array_equal(np.isfinite(one.error), np.isfinite(one.map))
    assert one.details["standard_error"] == pytest.approx(np.median(errors[0, 0]), rel=1e-3)
    assert 0 < one.details["reliability"] <= 1
