import itertools
import tracemalloc

import numpy as np
import pytest
import torch

from explain_fakes import ORGANS, context, rois, table
from xaiclip.explain.plan import CellPlan, cell_side
from xaiclip.explain.rise import MASKS, aggregate, plans


def explain(ctx, score):
    """The maps by estimator and organ, for a score that is a function of the plan: (N, O)."""
    made = plans(ctx)
    got = aggregate(made, {MASKS: table(score(made[MASKS]))}, ctx)
    return {(one.variant, one.organ): one for one in got}


def kept_inside(plan: CellPlan, mask: np.ndarray) -> np.ndarray:
    """Share of a mask that each forward keeps: (N,)."""
    inside = torch.from_numpy(mask[::4, ::4])
    return plan.keep(0, plan.n_forwards, 128)[:, 0, inside].mean(1).numpy()


def test_equals_the_published_formula():
    """Σ S·m / (N·p), as in the authors' code, and the plain sample covariance."""
    ctx = context(settings={"masks": 90, "probability": 0.4})
    scores = np.random.default_rng(0).random((90, 2))
    maps = explain(ctx, lambda plan: scores)
    masks = plans(ctx)[MASKS].keep(0, 90, 512)[:, 0].double().numpy()
    for o, organ in enumerate(ORGANS):
        published = np.einsum("n,nhw->hw", scores[:, o], masks) / 90 / 0.4
        np.testing.assert_allclose(maps["paper", organ].map, published, atol=1e-5)
        np.testing.assert_allclose(maps["complement", organ].map, 1 - published, atol=1e-5)
        for row, column in [(0, 0), (100, 380), (511, 256)]:
            moments = np.cov(scores[:, o], masks[:, row, column])
            slope = moments[0, 1] / moments[1, 1]
            assert maps["covariance", organ].map[row, column] == pytest.approx(slope, abs=1e-4)


@pytest.mark.parametrize(("masks", "probability"), [(5, 0.5), (6, 0.3)])
def test_slopes_of_few_masks_by_hand(masks, probability):
    """Sums over the masks, at every pixel: any other divisor of the one moment would show."""
    ctx = context(settings={"masks": masks, "probability": probability, "cells": 3})
    scores = np.random.default_rng(3).random((masks, 2)).astype(np.float32)
    maps = explain(ctx, lambda plan: scores)
    keep = plans(ctx)[MASKS].keep(0, masks, 512)[:, 0].double().numpy()
    away = keep - keep.mean(0)
    for o, organ in enumerate(ORGANS):
        own = scores[:, o].astype(float)
        slope = np.einsum("n,nhw->hw", own - own.mean(), away) / (away**2).sum(0)
        sure = (away**2).mean(0) > 0.05
        assert sure.mean() > 0.3
        np.testing.assert_allclose(maps["covariance", organ].map[sure], slope[sure], atol=1e-3)
        published = np.einsum("n,nhw->hw", own, keep) / masks / probability
        np.testing.assert_allclose(maps["paper", organ].map, published, atol=1e-4)
        points = plans(ctx)[MASKS].keep(0, masks, 32)[:, 0].double().numpy()
        terms = own[:, None, None] * points / probability
        spread = terms.std(0, ddof=1) / np.sqrt(masks)
        for name in ("paper", "complement"):
            np.testing.assert_allclose(maps[name, organ].error, spread, rtol=1e-3)


@pytest.mark.parametrize("sampling", ["plain", "antithetic"])
def test_details_are_those_of_the_map_that_they_stand_beside(sampling):
    """Each organ's, value's and estimator's own median error and reliability."""
    names = ["covariance", "paper", "control_variate"]
    settings = {"masks": 40, "probability": 0.4, "estimators": names, "sampling": sampling}
    ctx = context(guided=True, settings=settings)
    rng = np.random.default_rng(4)
    maps = explain(ctx, lambda plan: np.column_stack([kept_inside(plan, rois()[0]),
                                                      rng.random(40)]))  # fmt: skip
    for one in maps.values():
        at = ((np.arange(32) + 0.5) * 16).astype(int)
        points, error = one.map[np.ix_(at, at)].astype(float), one.error.astype(float)
        both = np.isfinite(points) & np.isfinite(error)
        assert one.details["standard_error"] == pytest.approx(np.nanmedian(error), rel=1e-4)
        share = 1 - np.mean(error[both] ** 2) / points[both].var(ddof=1)
        assert one.details["reliability"] == pytest.approx(max(0, share), abs=1e-4)
    for name in names:
        liver, spleen = (maps[name, organ].details["standard_error"] for organ in ORGANS)
        assert liver != pytest.approx(spleen, rel=0.05)


def test_masks_keep_the_asked_share():
    plan = plans(context(settings={"masks": 400, "probability": 0.3}))[MASKS]
    assert plan.n_forwards == plan.n_full == 400
    assert plan.cells.shape == (400, 7, 7)
    assert plan.shifts.min() >= 0
    assert plan.shifts.max() < cell_side(7)
    rows, columns = plan.shifts.T
    assert abs(np.corrcoef(rows, columns)[0, 1]) < 0.2
    assert plan.keep(0, 400, 64).mean() == pytest.approx(0.3, abs=0.02)


@pytest.mark.slow
def test_covariance_is_unbiased():
    """A linear model's true slope at each pixel is known; the mean over many runs meets it.

    With S = Σ w·cell, m(x) = Σ a(x)·cell and independent cells, Cov/Var = Σ w·E[a] / Σ E[a²],
    the expectation over the random shifts.
    """
    weights = np.random.default_rng(1).random((7, 7))
    at = [(60, 60), (256, 256), (400, 130)]
    side = cell_side(7)
    shifts = np.array(list(itertools.product(range(0, side, 2), repeat=2)), np.int32)

    def kernels(x):
        pitch = 8 * side / 7
        where = np.clip((x + 0.5 + np.arange(0, side, 2)) / pitch - 0.5, 0, 6)
        return np.clip(1 - np.abs(where[:, None] - np.arange(7)), 0, None)

    truth = []
    for row, column in at:
        a = np.einsum("si,tj->stij", kernels(row), kernels(column)).reshape(len(shifts), 7, 7)
        truth.append((weights * a.mean(0)).sum() / (a**2).sum((1, 2)).mean())

    runs = []
    for seed in range(24):
        ctx = context(seed=seed, settings={"masks": 300, "estimators": ["covariance"]})
        maps = explain(
            ctx, lambda plan: np.einsum("nij,ij->n", plan.cells, weights)[:, None] + [0, 1]
        )
        runs.append([maps["covariance", "liver"].map[point] for point in at])
        assert maps["covariance", "spleen"].map[at[0]] == pytest.approx(runs[-1][0], abs=1e-4)
    error = np.mean(runs, 0) - truth
    assert (np.abs(error) < 3 * np.std(runs, 0, ddof=1) / np.sqrt(24)).all()


def test_inverted_importance_is_the_estimators_doing():
    """A score that depends on the ROI alone: the paper's estimator ranks the outside higher."""
    ctx = context(guided=True, settings={"masks": 400})
    roi = rois()[0]
    maps = explain(ctx, lambda plan: kept_inside(plan, roi)[:, None].repeat(2, 1))
    paper, slope = maps["paper", "liver"].map, maps["covariance", "liver"].map
    outside = ~rois().any(0)
    assert paper[outside].mean() == pytest.approx(1.0, abs=0.06)  # E[S] / p
    assert paper[roi].max() < paper[outside].min()
    assert (
        maps["complement", "liver"].map[roi] > maps["complement", "liver"].map[outside][0]
    ).all()
    assert (slope[roi] > 0).all()
    assert np.isnan(slope[~roi]).all()
    assert np.ptp(paper[outside]) < 1e-4


def test_a_constant_score_moves_the_slope_nowhere():
    ctx = context(settings={"masks": 60})
    maps = explain(ctx, lambda plan: np.full((60, 2), 0.7))
    assert np.abs(maps["covariance", "liver"].map).max() < 1e-5


def test_undefined_where_the_mask_never_varies():
    ctx = context(settings={"masks": 1, "estimators": ["covariance"]})
    maps = explain(ctx, lambda plan: np.ones((1, 2)))
    assert np.isnan(maps["covariance", "liver"].map).all()


def test_first_estimator_is_primary():
    ctx = context(settings={"masks": 5, "estimators": ["complement", "covariance"]})
    maps = explain(ctx, lambda plan: np.ones((5, 2)))
    assert {variant for variant, _ in maps} == {"complement", "covariance"}
    assert {variant for (variant, _), one in maps.items() if one.primary} == {"complement"}


def test_seed_decides_the_masks():
    first, again, other = (plans(context(seed=seed))[MASKS] for seed in (1, 1, 2))
    assert np.array_equal(first.cells, again.cells)
    assert np.array_equal(first.shifts, again.shifts)
    assert not np.array_equal(first.cells, other.cells)


def test_memory_does_not_grow_with_the_number_of_masks():
    peaks = []
    for count in (100, 1000):
        ctx = context(settings={"masks": count})
        made = plans(ctx)
        scores = {MASKS: table(np.ones((count, 2)))}
        tracemalloc.start()
        aggregate(made, scores, ctx)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] - peaks[0] < 900 * 2000  # a mask has a million bytes
