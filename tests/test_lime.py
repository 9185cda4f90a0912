import numpy as np
import pytest
import torch
from lime.lime_image import LimeImageExplainer

from explain_fakes import PROMPTS, FakeSegmenter, context, picture, rois, table
from xaiclip.errors import CaseError
from xaiclip.explain.engine import fill_image, score
from xaiclip.explain.lime import PlanSettings, aggregate, plans, superpixels, surrogate
from xaiclip.explain.plan import SuperpixelPlan
from xaiclip.explain.settings import read
from xaiclip.explain.values import soft_dice
from xaiclip.targets import SegmenterScorer

RNG = np.random.default_rng(0)


def tables(made, truth=None):
    return {
        name: table(RNG.random((plan.n_forwards, 2)) if truth is None else truth(plan))
        for name, plan in made.items()
    }


def test_equals_lime_image():
    """The lime package, run on the same model, superpixels, fill and samples."""
    model, samples = FakeSegmenter(), 60
    inputs = model.prepare(picture())
    mask = SegmenterScorer(model, PROMPTS, inputs).mask
    tiles = np.arange(128) // 32
    small = tiles[:, None] * 4 + tiles
    # lime draws its samples from this generator; the first one becomes the unperturbed image
    drawn = np.random.RandomState(7).randint(0, 2, samples * 16).reshape(samples, 16)
    on = drawn[1:].astype(bool)
    segments = small.repeat(4, 0).repeat(4, 1).astype(np.int32)
    plan = SuperpixelPlan(np.ones((samples - 1, 2), bool), samples - 1, segments, on)
    ours = score(plan, SegmenterScorer(model, PROMPTS, inputs))
    coefficients, r2 = surrogate(on, np.concatenate([ours.baseline[None], ours.scores]))

    def classifier(images):
        batch = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
        return soft_dice(model.decode(model.encode(batch), PROMPTS).sigmoid(), mask).numpy()

    explanation = LimeImageExplainer(random_state=7).explain_instance(
        inputs.permute(1, 2, 0).numpy(),
        classifier,
        labels=(0, 1),
        top_labels=None,
        hide_color=fill_image("mean", inputs)[0].item(),
        num_samples=samples,
        segmentation_fn=lambda _: small,
        random_seed=0,
    )
    for o in range(2):
        reference = dict(explanation.local_exp[o])
        np.testing.assert_allclose(
            coefficients[o, 0], [reference[f] for f in range(16)], rtol=1e-4, atol=1e-6
        )
    assert r2[1, 0] == pytest.approx(explanation.score, abs=1e-5)


def test_surrogate_finds_a_linear_model():
    on = RNG.random((800, 12)) < 0.5
    weights = np.linspace(-1, 1, 12)
    scores = np.concatenate([[weights.sum()], on @ weights])[:, None, None]
    coefficients, r2 = surrogate(on, np.concatenate([scores, -2 * scores], axis=2))
    np.testing.assert_allclose(coefficients[0, 0], weights, atol=0.05)
    np.testing.assert_allclose(coefficients[0, 1], -2 * weights, atol=0.1)
    assert (r2 > 0.98).all()


@pytest.mark.parametrize(
    ("name", "fewest", "most"),
    [("felzenszwalb_100", 5, 600), ("slic", 80, 200), ("quickshift", 5, 2000)],
)
def test_superpixels(name, fewest, most):
    image = context().image
    labels = superpixels(name, image, PlanSettings())
    assert labels.shape == (512, 512)
    assert labels.min() == 0
    assert fewest <= len(np.unique(labels)) <= most
    assert np.array_equal(labels, superpixels(name, image, PlanSettings()))


def test_a_scale_that_two_variants_share_is_scored_once():
    made = plans(context(settings={"samples": 20, "superpixels": ["felzenszwalb", "multiscale"]}))
    assert list(made) == ["felzenszwalb_100", "felzenszwalb_50", "felzenszwalb_200"]
    assert all(plan.n_forwards == plan.n_full == 19 for plan in made.values())


@pytest.mark.parametrize(
    ("guided_samples", "min_samples", "samples"),
    [("equal", 10, 200), ("proportional", 10, None), ("proportional", 150, 150)],
)
def test_samples_under_guidance(guided_samples, min_samples, samples):
    settings = {
        "superpixels": ["slic"],
        "samples": 200,
        "guided_samples": guided_samples,
        "min_samples": min_samples,
    }
    full = plans(context(settings=settings))["slic"]
    guided = plans(context(guided=True, settings=settings))["slic"]
    assert full.n_forwards == full.n_full == guided.n_full == 199
    share = guided.on.shape[1] / full.on.shape[1]
    assert 0.1 < share < 0.6
    assert guided.n_forwards + 1 == (samples or round(200 * share))


def test_image_is_segmented_before_it_is_cut():
    """Within the ROI the superpixels are those of the whole image; outside there are none."""
    settings = {"superpixels": ["slic"], "samples": 20}
    full = plans(context(settings=settings))["slic"].segments
    guided = plans(context(guided=True, settings=settings))["slic"].segments
    union = rois().any(0)
    assert ((guided == -1) == ~union).all()
    pairs = np.unique(np.stack([full[union], guided[union]]), axis=1)
    assert len(np.unique(pairs[0])) == len(np.unique(pairs[1])) == pairs.shape[1]


def test_maps_are_defined_in_each_organs_own_roi():
    ctx = context(guided=True, settings={"samples": 30})
    made = plans(ctx)
    attributions = aggregate(made, tables(made), ctx)
    assert [one.variant for one in attributions[::2]] == list(PlanSettings().superpixels)
    assert [one.primary for one in attributions] == [True, True] + 6 * [False]
    for one in attributions:
        roi = rois()[ctx.organs.index(one.organ)]
        assert np.array_equal(np.isfinite(one.map), roi)
        assert one.details["r2"] <= 1
    multiscale = attributions[-1]
    assert multiscale.plans == ("felzenszwalb_50", "felzenszwalb_100", "felzenszwalb_200")
    assert 0 <= np.nanmin(multiscale.map) <= np.nanmax(multiscale.map) <= 1


def test_importance_lies_where_the_score_comes_from():
    ctx = context(settings={"superpixels": ["slic"], "samples": 300})
    made = plans(ctx)
    liver, _ = aggregate(made, tables(made, lambda plan: plan.on[:, [40, 80]]), ctx)
    assert made["slic"].segments[np.unravel_index(liver.map.argmax(), (512, 512))] == 40


def test_the_multiscale_map_and_its_r2_are_means_over_the_scales():
    """Each scale's map by itself, stretched to 0…1, and its fit."""
    settings = {"samples": 60, "superpixels": ["multiscale"], "scales": [50, 200]}
    ctx = context(settings=settings)
    made = plans(ctx)
    scored = tables(made)
    for one in aggregate(made, scored, ctx):
        alone, fits = [], []
        for scale in (50, 200):
            name = f"felzenszwalb_{scale}"
            single = context(
                settings={"samples": 60, "superpixels": ["felzenszwalb"], "scale": scale}
            )
            (part,) = (
                other
                for other in aggregate({name: made[name]}, {name: scored[name]}, single)
                if other.organ == one.organ
            )
            alone.append((part.map - part.map.min()) / np.ptp(part.map))
            fits.append(part.details["r2"])
        np.testing.assert_allclose(one.map, np.mean(alone, 0), atol=1e-5)
        assert fits[0] != fits[1]
        assert one.details["r2"] == pytest.approx(np.mean(fits))


def test_constant_scores_give_constant_maps():
    ctx = context(settings={"samples": 20, "superpixels": ["multiscale"]})
    made = plans(ctx)
    ones = tables(made, lambda plan: np.ones((plan.n_forwards, 2)))
    assert all((one.map == 0).all() for one in aggregate(made, ones, ctx))


def test_seed_decides_the_samples():
    def drawn(seed):
        return plans(context(seed=seed, settings={"superpixels": ["slic"], "samples": 20}))[
            "slic"
        ].on

    assert np.array_equal(drawn(1), drawn(1))
    assert not np.array_equal(drawn(1), drawn(2))


def test_a_single_superpixel_is_enough():
    dot = np.zeros((2, 512, 512), bool)
    dot[:, 250:253, 250:253] = True
    ctx = context(rois=dot, settings={"superpixels": ["slic", "multiscale"], "samples": 20})
    made = plans(ctx)
    assert made["slic"].on.shape[1] <= 4
    for one in aggregate(made, tables(made), ctx):
        assert np.isfinite(one.map).sum() == 9


def test_no_superpixel_in_the_roi():
    ctx = context(rois=np.zeros((2, 512, 512), bool), settings={"superpixels": ["slic"]})
    with pytest.raises(CaseError, match="superpixel"):
        plans(ctx)


@pytest.mark.parametrize(
    ("name", "coarse", "fine"),
    [
        ("slic", {"n_segments": 20, "compactness": 0.1}, {"n_segments": 150, "compactness": 0.1}),
        ("quickshift", {"kernel_size": 3, "max_dist": 10}, {"kernel_size": 3, "max_dist": 2}),
    ],
)
def test_superpixels_follow_their_settings(name, coarse, fine):
    wave = np.sin(np.arange(512) / 20)
    image = (127 + 60 * np.add.outer(wave, wave)).astype(np.uint8)
    few, many = (
        superpixels(name, image, read(PlanSettings, {name: one})).max() for one in (coarse, fine)
    )
    assert 0 < few < many
