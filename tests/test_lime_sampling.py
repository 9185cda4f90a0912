"""LIME's samples: pairs, standard errors, and when it stops."""

from dataclasses import replace

import numpy as np
import pytest

from explain_fakes import context, table
from xaiclip.explain import lime
from xaiclip.explain.uncertainty import block_size, reliability


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
