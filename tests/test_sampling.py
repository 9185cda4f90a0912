"""Fewer forwards: what is measured stays true, what is guessed is labelled, errors are honest."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

from explain_fakes import FakeSegmenter, context, picture, table
from xaiclip.errors import CaseError
from xaiclip.explain import lime, occlusion, rise
from xaiclip.explain.plan import overlap
from xaiclip.explain.runner import Request, Run, attribute_slice, score_slice
from xaiclip.explain.surface import surface
from xaiclip.explain.uncertainty import block_size, grouped, reliability, split_half, summary
from xaiclip.metrics.savings import replay, savings, shortened, summarise

SMALL = {"window": 64, "stride": 64}


def bumps(plan):
    """Scores that fall smoothly around two places, one for each organ: (N, 2)."""
    middle = (plan.windows[:, :2] + plan.windows[:, 2:]) / 2
    far = [((middle - at) ** 2).sum(1) for at in ((200, 180), (330, 350))]
    return 1 - 0.3 * np.exp(-np.stack(far, axis=1) / 90**2)


def occlude(ctx, score=bumps):
    """Coarse to fine until the budget is spent: the plan and its table."""
    plan = occlusion.plans(ctx)["windows"]
    while True:
        scored = {"windows": table(score(plan))}
        more = occlusion.refine({"windows": plan}, scored, ctx)
        if not more:
            return {"windows": plan}, scored
        plan = plan.extended(more["windows"])


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("budget", [0.1, 0.4, 0.77])
def test_the_budget_is_kept_and_no_window_is_hidden_twice(budget, guided):
    full = occlusion.plans(context(guided))["windows"]
    ctx = context(guided, settings={"budget": budget})
    made, scored = occlude(ctx)
    plan = made["windows"]
    assert plan.n_forwards == int(budget * full.n_forwards)
    assert plan.n_full == full.n_full == 225
    assert len(set(plan.signatures())) == plan.n_forwards
    assert set(plan.signatures()) <= set(full.signatures())
    assert plan.members.any(0).all()
    whole = occlusion.aggregate({"windows": full}, {"windows": table(bumps(full))}, context(guided))
    part = occlusion.aggregate(made, scored, ctx)
    for one, other in zip(whole, part, strict=True):
        assert np.array_equal(np.isfinite(one.map), np.isfinite(other.map))


def test_refinement_seeks_the_edge_of_the_top_fifth():
    """Smooth bumps: two fifths of the forwards give nearly the full map."""
    full = occlusion.plans(context())["windows"]
    whole = occlusion.aggregate({"windows": full}, {"windows": table(bumps(full))}, context())
    part = occlusion.aggregate(
        *occlude(context(settings={"budget": 0.4})), context(settings={"budget": 0.4})
    )
    for one, other in zip(whole, part, strict=True):
        high, guess = (m > np.quantile(m, 0.8) for m in (one.map, other.map))
        assert (high & guess).sum() / (high | guess).sum() > 0.9


def test_measured_windows_keep_their_drops():
    """Where all windows over a pixel were hidden, the map is the full one."""
    ctx = context(settings={"budget": 0.5})
    made, scored = occlude(ctx)
    full = occlusion.plans(context())["windows"]
    whole = occlusion.aggregate({"windows": full}, {"windows": table(bumps(full))}, context())
    part = occlusion.aggregate(made, scored, ctx)
    left = set(full.signatures()) - set(made["windows"].signatures())
    free = np.ones((512, 512), bool)
    for key, (x0, y0, x1, y1) in zip(full.signatures(), full.windows, strict=True):
        if key in left:
            free[y0:y1, x0:x1] = False
    assert free.any()
    for one, other in zip(whole, part, strict=True):
        np.testing.assert_allclose(one.map[free], other.map[free], atol=1e-6)


def test_flat_scores_are_no_obstacle():
    ctx = context(settings={"budget": 0.4})
    made, scored = occlude(ctx, lambda plan: np.ones((plan.n_forwards, 2)))
    assert all((one.map == 0).all() for one in occlusion.aggregate(made, scored, ctx))


def test_surface_meets_what_it_saw_and_is_sure_of_it():
    places = np.stack(np.meshgrid(np.arange(6), np.arange(6)), -1).reshape(-1, 2).astype(float)
    values = np.sin(places[:, 0]) + np.cos(places[:, 1] / 2)
    everywhere = np.concatenate([places, [[2.5, 2.5], [30.0, 30.0]]])
    guess = surface(everywhere, np.arange(36), values)
    np.testing.assert_array_equal(guess.values[:36], values)
    assert guess.values[36] == pytest.approx(np.sin(2.5) + np.cos(1.25), abs=0.2)
    spread = guess.covariance.diagonal()
    assert (spread[:36] == 0).all()
    assert 0 < spread[36] < spread[37] / 4
    assert np.linalg.eigvalsh(guess.covariance).min() > -1e-9


def test_surface_is_scikit_learns():
    """The same kernel in scikit-learn's regression, on values that asinh leaves nearly alone."""
    rng = np.random.default_rng(0)
    places = rng.random((60, 2)) * 8
    values = 1e-3 * np.sin(places[:, 0]) * np.cos(places[:, 1])
    values[0] = 1e9  # seen through asinh like all others
    measured = np.arange(40)
    guess = surface(places, measured, values[measured])
    centre = np.median(values[measured])
    scale = 4 * np.median(np.abs(values[measured] - centre))
    moved = np.arcsinh((values[measured] - centre) / scale)
    fits = []
    for length in (1.0, 1.5, 2.2, 3.3, 5.0):
        for nugget in (0.01, 0.05, 0.2):
            kernel = Matern(length, nu=1.5) + WhiteKernel(nugget)
            inverse = np.linalg.inv(kernel(places[measured]))
            mean = inverse.sum(0) @ moved / inverse.sum()
            variance = (moved - mean) @ inverse @ (moved - mean) / 40
            whole = ConstantKernel(variance) * kernel
            fit = GaussianProcessRegressor(whole, optimizer=None, alpha=0)
            fit.fit(places[measured], moved - mean)
            fits.append((fit.log_marginal_likelihood_value_, mean, fit))
    _, mean, fit = max(fits, key=lambda one: one[0])
    expected, covariance = fit.predict(places[40:], return_cov=True)
    np.testing.assert_allclose(
        guess.values[40:], centre + scale * np.sinh(mean + expected), rtol=1e-6
    )
    np.testing.assert_allclose(guess.covariance[40:, 40:], covariance, rtol=1e-6, atol=1e-12)


# --- the runner ----------------------------------------------------------------------------------


def sliced(method, settings):
    boxes = {"liver": np.array([21.0, 32, 77, 112]), "spleen": np.array([70.0, 64, 126, 136])}
    target = Request("a", 4, picture(), boxes)
    model = FakeSegmenter()
    scores, _ = score_slice(model, target, Run(method, settings, seed=11))
    return scores, model.encoded


def test_one_encode_serves_all_organs_when_refining():
    scores, encoded = sliced("occlusion", {**SMALL, "budget": 0.5})
    plan, scored = scores.plans["windows"], scores.tables["windows"]
    assert encoded == 1 + plan.n_forwards == 1 + scored.n_forwards == 33
    cost = scores.cost(attribute_slice(scores)[0][0])
    assert cost["n_forwards"] == 33
    assert cost["n_forwards_full"] == 65
    assert cost["rho"] == 0.5


def test_replay_equals_the_real_run():
    full, _ = sliced("occlusion", SMALL)
    real, _ = sliced("occlusion", {**SMALL, "budget": 0.5})
    again = replay(full, {"budget": 0.5})
    assert again.plans["windows"].signatures() == real.plans["windows"].signatures()
    for one, other in zip(attribute_slice(real)[0], attribute_slice(again)[0], strict=True):
        np.testing.assert_allclose(one.map, other.map, atol=1e-5)


def test_a_whole_budget_is_the_full_plan():
    full, _ = sliced("occlusion", SMALL)
    again = replay(full, {"budget": 1.0})
    for one, other in zip(attribute_slice(full)[0], attribute_slice(again)[0], strict=True):
        assert np.array_equal(one.map, other.map)


@pytest.mark.parametrize(
    ("method", "settings"),
    [("rise", {"masks": 60}), ("lime", {"superpixels": ["felzenszwalb"], "samples": 60})],
)
def test_stopping_makes_the_first_of_the_same_forwards(method, settings):
    full, _ = sliced(method, settings)
    for stop, share in ((1e-9, (20, 60)), (0.999999, (59, 60))):
        early, encoded = sliced(method, {**settings, "stop": stop})
        (name,) = early.plans
        count = early.plans[name].n_forwards
        assert encoded == 1 + count
        assert share[0] <= count <= share[1]
        assert early.plans[name].signatures() == full.plans[name].signatures()[:count]
        assert replay(full, {"stop": stop}).plans[name].n_forwards == count


def test_what_was_not_scored_cannot_be_replayed():
    full, _ = sliced("rise", {"masks": 20})
    with pytest.raises(CaseError, match="do not hold"):
        replay(full, {"sampling": "antithetic"})


def test_savings_stand_beside_losses():
    full, _ = sliced("occlusion", SMALL)
    masks, _ = sliced("rise", {"masks": 60, "estimators": ["covariance"]})
    rows = [*savings(full, [0.5, 1.0]), *savings(masks, [0.5, 1.0], [0.999])]
    summary = summarise(rows).set_index("plan")
    assert list(summary.index) == [
        "budget 0.5",
        "budget 1",
        "first 50%",
        "first 100%",
        "stop 0.999",
    ]
    for plan in ("budget 1", "first 100%", "stop 0.999"):
        assert summary.loc[plan, ["saved", "top20_iou"]].tolist() == [0, 1]
        assert summary.loc[plan, "rank_correlation"] == pytest.approx(1)
    for plan in ("budget 0.5", "first 50%"):
        assert summary.loc[plan, "saved"] == 0.5
        assert 0 < summary.loc[plan, "top20_iou"] < 1
    assert shortened(masks, 0.5).plans["masks"].n_forwards == 30
    # pairs are not torn apart
    assert [shortened(masks, share).plans["masks"].n_forwards for share in (0.01, 0.12)] == [2, 8]


@pytest.mark.parametrize(
    ("method", "settings", "first"),
    [
        ("rise", {"masks": 40, "estimators": ["paper", "covariance"]}, "paper"),
        ("lime", {"superpixels": ["slic", "felzenszwalb"], "samples": 30}, "slic"),
    ],
)
def test_savings_are_of_the_first_variant_and_its_forwards(method, settings, first):
    scores, _ = sliced(method, settings)
    rows = savings(scores, [0.5])
    assert {row["variant"] for row in rows} == {first}
    assert [row["organ"] for row in rows] == ["liver", "spleen"]
    every = settings.get("masks") or settings["samples"] - 1
    kept = 2 * round(every / 4)
    assert {(row["forwards"], row["forwards_full"]) for row in rows} == {(kept, every)}
    assert {row["saved"] for row in rows} == {1 - kept / every}
    # each organ's shorter map is compared with its own full one
    whole, part = (
        {(one.organ, one.variant): one.map for one in attribute_slice(side)[0] if one.primary}
        for side in (scores, shortened(scores, 0.5))
    )
    for row in rows:
        full, short = (maps[row["organ"], first][2::4, 2::4].ravel() for maps in (whole, part))
        assert row["rank_correlation"] == pytest.approx(spearmanr(full, short).statistic, abs=1e-6)
        highest = [side > np.sort(side)[-round(0.2 * side.size) - 1] for side in (full, short)]
        if method == "rise":  # superpixels have ties
            shared = (highest[0] & highest[1]).sum() / (highest[0] | highest[1]).sum()
            assert row["top20_iou"] == pytest.approx(shared, abs=0.01)


def test_a_summary_by_hand():
    known = {"method": "rise", "guidance": "full", "variant": "paper", "value": "soft_dice"}
    known |= {
        "slice": 1,
        "forwards": 10,
        "forwards_full": 40,
        "saved": 0.75,
        "standard_error": None,
    }
    rows = [
        {**known, "case": case, "organ": organ, "plan": plan, "top20_iou": iou,
         "rank_correlation": iou / 2}
        for case, organ, plan, iou in [
            ("a", "liver", "b", 0.9), ("a", "spleen", "b", 0.2), ("b", "liver", "b", 0.7),
            ("a", "liver", "a", 0.5),
        ]
    ]  # fmt: skip
    summary = summarise(rows)
    assert summary.plan.tolist() == ["b", "a"]
    assert summary.top20_iou.tolist() == pytest.approx([0.6, 0.5])
    assert summary.top20_iou_min.tolist() == [0.2, 0.5]
    assert summary.rank_correlation.tolist() == pytest.approx([0.3, 0.25])
    assert summary.maps.tolist() == [3, 1]
    assert summary.saved.tolist() == [0.75, 0.75]


# --- RISE ----------------------------------------------------------------------------------------


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


# --- LIME ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("group", [1, 2])
def test_lime_errors_are_the_true_ones(group):
    """A linear score with noise that pairs share: the spread of the coefficients over runs."""
    rng = np.random.default_rng(0)
    weights = np.linspace(-1, 1, 12)
    fits, errors = [], []
    for _ in range(60):
        on = rng.random((150, 12)) < 0.5
        if group == 2:
            on[1::2] = ~on[::2]
        noise = rng.standard_normal(150 // group).repeat(group) * 0.3
        scores = np.concatenate([[weights.sum()], on @ weights + noise])[:, None, None]
        coefficients, _ = lime.surrogate(on, scores)
        fits.append(coefficients[0, 0])
        errors.append(lime.coefficient_errors(on, scores, coefficients, group)[0, 0])
    real = np.sqrt(np.var(fits, axis=0, ddof=1).mean())
    assert np.sqrt(np.square(errors).mean()) == pytest.approx(real, rel=0.2)


def test_a_surrogate_that_fits_anything_is_not_trusted():
    rng = np.random.default_rng(1)
    on = rng.random((40, 120)) < 0.5
    scores = rng.random((41, 1, 1))
    coefficients, r2 = lime.surrogate(on, scores)
    errors = lime.coefficient_errors(on, scores, coefficients)
    assert r2[0, 0] > 0.7
    assert reliability(coefficients[0, 0], errors[0, 0]) < 0.5


@pytest.mark.parametrize("group", [1, 2])
def test_lime_errors_by_hand(group):
    """The sandwich as matrices; the unperturbed image is a group of its own."""
    rng = np.random.default_rng(5)
    on = rng.random((9, 3)) < 0.5
    scores = rng.random((10, 1, 1))
    coefficients, _ = lime.surrogate(on, scores)
    x = np.vstack([np.ones(3), on]).astype(float)
    norms = np.sqrt(x.sum(1) * 3)
    distance = 1 - np.divide(x.sum(1), norms, out=np.zeros(10), where=norms > 0)
    w = np.exp(-((distance / 0.25) ** 2) / 2)
    x, y = x - w @ x / w.sum(), scores[:, 0, 0] - w @ scores[:, 0, 0] / w.sum()
    bread = np.linalg.inv(x.T @ np.diag(w) @ x + np.eye(3))
    np.testing.assert_allclose(coefficients[0, 0], bread @ x.T @ (w * y), atol=1e-10)
    leverage = w * np.diag(x @ bread @ x.T) + w / w.sum()
    influence = (w * (y - x @ coefficients[0, 0]) / (1 - leverage))[:, None] * x
    groups = [[0], *([k + 1 for k in range(9) if k // group == g] for g in range(9 // group + 1))]
    summed = np.array([influence[rows].sum(0) for rows in groups])
    expected = np.sqrt(np.diag(bread @ summed.T @ summed @ bread))
    errors = lime.coefficient_errors(on, scores, coefficients, group)
    np.testing.assert_allclose(errors[0, 0], expected, rtol=1e-8)


@pytest.mark.parametrize("noisy", [0, 1, 2])
def test_lime_goes_on_until_the_worst_organ_is_reliable(noisy):
    """Two organs are a function of one superpixel; the third, wherever it stands, is noise."""
    rng = np.random.default_rng(6)
    settings = {"superpixels": ["slic"], "samples": 400, "stop": 0.8}
    ctx = context(organs=("spleen", "liver", "pancreas"), masks=np.ones((3, 512, 512), bool),
                  settings=settings)  # fmt: skip
    every = lime.plans(replace(ctx, settings={**settings, "stop": None}))["slic"]
    plan = every.take(slice(360))
    scores = np.stack([plan.on[:, o].astype(float) for o in range(3)], axis=1)
    assert lime.refine({"slic": plan}, {"slic": table(scores)}, ctx) == {}
    scores[:, noisy] = rng.random(360)
    each = [
        reliability(coefficients[0], errors[0])
        for o in range(3)
        for labels in [np.append(1.0, scores[:, o]).astype(np.float32)[:, None, None]]
        for coefficients in [lime.surrogate(plan.on, labels)[0][0]]
        for errors in [lime.coefficient_errors(plan.on, labels, coefficients[None])[0]]
    ]
    assert int(np.argmin(each)) == noisy
    assert lime.stability(plan, table(scores), ctx) == pytest.approx(each[noisy], abs=1e-6)
    assert list(lime.refine({"slic": plan}, {"slic": table(scores)}, ctx)) == ["slic"]


def test_paired_samples_are_complements():
    settings = {"superpixels": ["slic"], "samples": 20, "sampling": "paired"}
    plan = lime.plans(context(settings=settings))["slic"]
    assert plan.n_forwards == plan.n_full == 19
    assert (plan.on[:18:2] ^ plan.on[1:18:2]).all()
    assert not np.array_equal(plan.on[0], plan.on[2])


def test_each_superpixel_map_stops_for_itself():
    settings = {"superpixels": ["slic", "felzenszwalb"], "samples": 200, "stop": 0.5}
    ctx = context(settings=settings)
    made = lime.plans(ctx)
    assert {plan.n_forwards for plan in made.values()} == {block_size(200)}
    rng = np.random.default_rng(0)

    def scored(name, plan):
        linear = plan.on[:, :2] * [1.0, 0.5] if name == "slic" else rng.random((len(plan.on), 2))
        return table(linear)

    every = replace(ctx, settings={**settings, "stop": None})
    made = {name: plan.take(slice(180)) for name, plan in lime.plans(every).items()}
    more = lime.refine(made, {name: scored(name, plan) for name, plan in made.items()}, ctx)
    assert list(more) == ["felzenszwalb_100"]
    assert more["felzenszwalb_100"].n_forwards == 19


# --- reliability ---------------------------------------------------------------------------------


def test_small_numbers_by_hand():
    """Variances of a sample, of n − 1; groups and not forwards; each map's own median."""
    values, errors = np.array([1.0, 2.0, 4.0]), np.array([0.5, 1.0, 0.1])
    noise = (0.25 + 1 + 0.01) / 3
    assert reliability(values, errors) == pytest.approx(1 - noise / (7 / 3))
    # groups of two of six forwards with influences 1, 2 and 4
    assert grouped([np.array(7.0), np.array(21.0)], 3, 6) == pytest.approx(np.sqrt(7.0) / 6)
    assert np.isnan(grouped([np.array(7.0), np.array(21.0)], 1, 2))
    assert split_half(np.arange(4.0), np.array([1.0, 0, 2, 3])) == pytest.approx(2 * 0.8 / 1.8)
    maps = np.arange(2 * 2 * 3, dtype=float).reshape(2, 2, 3) ** 2
    spread = maps / 50 + np.array([0, 1, 20]) / 5
    found = summary(maps, spread)
    for o in range(2):
        for v in range(2):
            assert found["standard_error"][o, v] == np.median(spread[o, v])
            assert found["reliability"][o, v] == reliability(maps[o, v], spread[o, v])
    assert block_size(500) == 50
    assert block_size(130) == 20
    assert block_size(210) == 22


def test_reliability():
    rng = np.random.default_rng(0)
    true, noise = rng.standard_normal(5000), rng.standard_normal(5000)
    assert reliability(true + noise, np.ones(5000)) == pytest.approx(0.5, abs=0.04)
    assert reliability(true, np.zeros(5000)) == 1
    assert reliability(np.ones(9), np.ones(9)) == 0
    assert np.isnan(reliability(np.full(9, np.nan), np.ones(9)))
    assert split_half(true, true) == pytest.approx(1)
    assert split_half(true, -true) == split_half(true, np.ones(5000)) == 0
    assert split_half(true, true + noise) == pytest.approx(2 * 0.69 / 1.69, abs=0.03)
