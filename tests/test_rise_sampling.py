"""RISE's masks: designs, estimators, standard errors, and when it stops."""

import numpy as np
import pytest

from explain_fakes import context, table
from xaiclip.explain import rise
from xaiclip.explain.plan import overlap
from xaiclip.explain.uncertainty import split_half


def saturating(plan):
    """A score with saturation and an interaction, of the cells: (N, 2)."""
    inside = plan.cells[:, 2:4, 2:5].mean((1, 2))
    beside = plan.cells[:, 4, 1:6].mean(1)
    score = (0.7 + 0.3 * beside) / (1 + np.exp(-8 * (inside - 0.4)))
    return np.stack([score, 1 - score**2], axis=1)


def off_diagonal(plan):
    """A score of cells above the diagonal, few of which are kept: (N, 1)."""
    right, low = plan.cells[:, 1:3, 4:7].mean((1, 2)), plan.cells[:, 5, 1:6].mean(1)
    return (right + 0.6 * right**2 - 0.4 * low * right)[:, None]


def slopes(seed, masks, sampling, estimator, probability=0.5, score=saturating):
    """Slopes at 32 × 32 points, and their standard errors, for the first organ."""
    drawn = {"masks": masks, "sampling": sampling, "probability": probability}
    ctx = context(seed=seed, settings=drawn)
    plan = rise.plans(ctx)["masks"]
    settings = ctx.read(rise.PlanSettings)
    made, errors = rise.slopes_at_points(estimator, plan, score(plan)[:, :1], settings)
    return made[0], errors[0]


DESIGNS = [
    ("plain", "covariance"),
    ("antithetic", "covariance"),
    ("plain", "control_variate"),
    ("antithetic", "control_variate"),
]


@pytest.fixture(scope="module")
def truth():
    """Each design's maps and errors over independent runs."""
    return {
        (*design, count): [np.array(part) for part in zip(*runs, strict=True)]
        for design, count in [*((one, 300) for one in DESIGNS), (("plain", "covariance"), 600)]
        for runs in [[slopes(seed, count, *design) for seed in range(16)]]
    }


@pytest.mark.slow
@pytest.mark.parametrize("design", DESIGNS)
def test_every_design_is_unbiased(design, truth):
    """Against 16 × 600 plain masks; the mean squared z over the map is about 1."""
    maps, _ = truth[*design, 300]
    exact, _ = truth["plain", "covariance", 600]
    error = maps.var(0, ddof=1) / 16 + exact.var(0, ddof=1) / 16
    z = (maps.mean(0) - exact.mean(0)) ** 2 / error
    assert z.mean() < 2.2
    assert abs((maps.mean(0) - exact.mean(0)).mean()) < 0.01


@pytest.mark.parametrize("design", DESIGNS)
def test_standard_errors_are_the_true_ones(design, truth):
    maps, errors = truth[*design, 300]
    real = np.sqrt(maps.var(0, ddof=1).mean())
    assert np.sqrt((errors**2).mean()) == pytest.approx(real, rel=0.15)


@pytest.mark.slow
@pytest.mark.parametrize("probability", [0.25, 0.7])
@pytest.mark.parametrize("sampling", ["plain", "antithetic"])
def test_the_control_variate_is_unbiased_and_honest_at_other_probabilities(sampling, probability):
    """Against plain slopes of more masks; p² is not p (1 − p), and rows are not columns."""
    runs = [slopes(seed, 300, sampling, "control_variate", probability, off_diagonal)
            for seed in range(12)]  # fmt: skip
    exact = np.array([slopes(100 + seed, 600, "plain", "covariance", probability, off_diagonal)[0]
                      for seed in range(12)])  # fmt: skip
    maps, errors = (np.array(part) for part in zip(*runs, strict=True))
    away = maps.mean(0) - exact.mean(0)
    z = away**2 / (maps.var(0, ddof=1) / 12 + exact.var(0, ddof=1) / 12)
    assert z.mean() < 2.2
    assert np.sqrt((away**2).mean()) < 0.15 * np.ptp(exact.mean(0))
    real = np.sqrt(maps.var(0, ddof=1).mean())
    assert np.sqrt((errors**2).mean()) == pytest.approx(real, rel=0.25)


@pytest.mark.parametrize("sampling", ["plain", "antithetic"])
def test_the_regression_never_saw_what_it_predicts(sampling, monkeypatch):
    """Five folds; the masks of a pair are in one of them, as each tells of the other."""
    settings = {"masks": 40, "sampling": sampling, "estimators": ["control_variate"]}
    ctx = context(settings=settings)
    plan = rise.plans(ctx)["masks"]
    scores = np.arange(40.0)
    fitted = []

    class Spy(rise.RidgeCV):
        def fit(self, features, values):
            fitted.append(set(values[:, 0]))
            return super().fit(features, values)

    monkeypatch.setattr(rise, "RidgeCV", Spy)
    rise.slopes_at_points("control_variate", plan, scores[:, None], ctx.read(rise.PlanSettings))
    left = [set(scores) - seen for seen in fitted]
    assert sorted(number for fold in left for number in fold) == [*scores]
    assert [len(fold) for fold in left] == [8] * 5
    if sampling == "antithetic":
        assert all({2 * (n // 2), 2 * (n // 2) + 1} <= fold for fold in left for n in fold)


@pytest.mark.parametrize("sampling", ["plain", "antithetic"])
def test_a_stop_asks_the_least_stable_organ_and_keeps_pairs_together(sampling):
    """Halves written out: every second mask, or every second pair, of the least reliable organ."""
    settings = rise.PlanSettings(masks=80, sampling=sampling, probability=0.4)
    ctx = context(guided=True, settings=vars(settings))
    plan = rise.plans(ctx)["masks"]
    rng = np.random.default_rng(2)
    steady = plan.cells[:, 2:4, 1:4].mean((1, 2)) + 0.05 * rng.random(80)
    rough = steady + 0.4 * rng.random(80)
    pair = 2 if sampling == "antithetic" else 1
    halves = [[k for k in range(80) if k // pair % 2 == side] for side in (0, 1)]
    at = ((np.arange(32) + 0.5) * 16).astype(int)
    found = []
    for scores in (np.stack([steady, rough], 1), np.stack([rough, steady], 1)):
        maps = [
            rise.slopes_at_points(
                "covariance", plan.take(np.array(rows)), scores[rows].astype(np.float32), settings
            )[0]
            for rows in halves
        ]
        each = [
            split_half(*(half[o][own[np.ix_(at, at)]] for half in maps))
            for o, own in enumerate(ctx.domains)
        ]
        assert 0 < min(each) < max(each)
        found.append(rise.stability(plan, table(scores), ctx))
        assert found[-1] == pytest.approx(min(each), abs=1e-5)


@pytest.mark.parametrize("sampling", ["plain", "antithetic"])
def test_half_the_masks_and_no_larger_an_error(sampling, truth):
    """The control variate at N has at most plain sampling's error at 2 N."""
    half, _ = truth[sampling, "control_variate", 300]
    plain, _ = truth["plain", "covariance", 600]
    assert half.var(0, ddof=1).mean() <= plain.var(0, ddof=1).mean()


@pytest.mark.parametrize("estimator", ["covariance", "control_variate"])
def test_slopes_at_points_are_those_of_the_map(estimator):
    ctx = context(settings={"masks": 200, "estimators": [estimator]})
    plan = rise.plans(ctx)["masks"]
    one = rise.aggregate({"masks": plan}, {"masks": table(saturating(plan))}, ctx)[0]
    slope, error = slopes(ctx.seed, 200, "plain", estimator)
    np.testing.assert_allclose(one.error, error, rtol=1e-4)
    around = one.map.reshape(rise.POINTS, 16, rise.POINTS, 16)[:, 7:9, :, 7:9].mean((1, 3))
    np.testing.assert_allclose(around, slope, atol=5e-3)


def test_antithetic_masks_are_complements():
    plan = rise.plans(context(settings={"masks": 41, "sampling": "antithetic"}))["masks"]
    assert plan.n_forwards == 42
    assert (plan.cells[::2] ^ plan.cells[1::2]).all()
    assert np.array_equal(plan.shifts[::2], plan.shifts[1::2])
    odd = {"masks": 4000, "sampling": "antithetic", "probability": 0.3}
    cells = rise.plans(context(settings=odd))["masks"].cells
    assert cells[1::2].mean() == pytest.approx(0.3, abs=0.01)


def test_the_masks_covariance_is_known():
    plan = rise.plans(context(settings={"masks": 6000}))["masks"]
    drawn = plan.keep(0, 6000, 8)[:, 0].double().numpy().reshape(6000, -1)
    along = overlap(7, 8, 8)
    np.testing.assert_allclose(np.cov(drawn.T), 0.25 * np.kron(along, along), atol=0.012)


@pytest.mark.parametrize("masks", [2, 7, 40])
def test_few_masks_and_a_small_roi_do_not_break_the_control_variate(masks):
    dot = np.zeros((2, 512, 512), bool)
    dot[:, 250:253, 250:253] = True
    ctx = context(rois=dot, settings={"masks": masks, "estimators": ["control_variate"]})
    plan = rise.plans(ctx)["masks"]
    one = rise.aggregate({"masks": plan}, {"masks": table(np.ones((masks, 2)))}, ctx)[0]
    assert np.array_equal(np.isfinite(one.map), dot[0])
    assert np.abs(one.map[dot[0]]).max() < 1e-6


def test_few_masks_are_weighed_by_hand():
    """Too few for a regression: each score less the mean of the other folds, which do not cancel
    as 7 masks fill 5 folds unequally."""
    settings = rise.PlanSettings(masks=7, probability=0.3)
    plan = rise.plans(context(settings=vars(settings)))["masks"]
    scores = 5 + np.random.default_rng(8).random(7)
    others = [[k for k in range(7) if k % 5 != own % 5] for own in range(7)]
    residual = np.array([scores[k] - scores[rest].mean() for k, rest in enumerate(others)])
    assert abs(residual.sum()) > 0.01
    away = plan.keep(0, 7, 32)[:, 0].double().numpy() - 0.3
    own = overlap(7, 32, 32).diagonal()
    terms = residual[:, None, None] * away / (0.3 * 0.7 * np.outer(own, own))
    slope, error = rise.slopes_at_points("control_variate", plan, scores[:, None], settings)
    np.testing.assert_allclose(slope[0], terms.mean(0), atol=1e-5)
    np.testing.assert_allclose(error[0], terms.std(0, ddof=1) / np.sqrt(7), rtol=1e-4)


def test_one_mask_tells_nothing():
    ctx = context(settings={"masks": 1, "estimators": ["control_variate", "covariance"]})
    plan = rise.plans(ctx)["masks"]
    for one in rise.aggregate({"masks": plan}, {"masks": table(np.ones((1, 2)))}, ctx):
        assert np.isnan(one.map).all()
        assert np.isnan(one.error).all()
