"""Fewer forwards: occlusion refines, a run stops, and what it would have saved."""

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

from explain_fakes import FakeSegmenter, context, picture, run_of, table
from xaiclip.errors import CaseError
from xaiclip.explain import occlusion
from xaiclip.explain.runner import Request, attribute_slice, score_slice
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


def sliced(method, settings):
    boxes = {"liver": np.array([21.0, 32, 77, 112]), "spleen": np.array([70.0, 64, 126, 136])}
    target = Request("a", 4, picture(), boxes)
    model = FakeSegmenter()
    scores, _ = score_slice(model, target, run_of(method, settings, seed=11))
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


def test_halves_are_compared_where_both_have_values():
    nan = np.nan
    flat = np.array([1, 1, 1, 1, 5.0]), np.array([1, 2, 3, 4, nan])
    assert split_half(*flat) == split_half(*flat[::-1]) == 0
    few = np.array([1, 2, nan, 4]), np.array([1, 2, 3, nan])
    assert split_half(*few) == 0  # two points always agree
    assert split_half(np.array([1, 2, nan, 4, 9]), np.array([1, 2, 3, 4, 5.0])) == 1


def test_groups_that_agree_have_no_error_and_no_root_of_less_than_nothing():
    values = np.linspace(0.01, 3, 4001)
    errors = grouped([values + values + values, 3 * values**2], 3, 12)
    assert np.isfinite(errors).all()
    assert errors.max() < 1e-7


def test_a_single_estimate_has_no_reliability():
    one = np.array([3.0, np.nan, 5.0]), np.array([0.1, 0.2, np.nan])
    assert np.isnan(reliability(*one))
