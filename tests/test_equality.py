"""Ours, on real models, against public references and against ourselves one image at a time."""

import numpy as np
import pytest
import torch
from captum.attr import Occlusion

from explain_fakes import picture
from test_segmenters import some_prompts
from xaiclip.explain import occlusion, rise
from xaiclip.explain.attribution import to_canonical_image
from xaiclip.explain.engine import fill_image, score, segment
from xaiclip.explain.plan import Context
from xaiclip.explain.values import VALUES, soft_dice
from xaiclip.segmenters.loading import load_compact, load_segmenter
from xaiclip.segmenters.sam import SamSegmenter


def compact() -> SamSegmenter:
    """The shipped weights."""
    segmenter = load_segmenter({"model": "compact"}, "cpu", "fp32")
    assert isinstance(segmenter, SamSegmenter)
    return segmenter


def stock() -> SamSegmenter:
    """The same weights through segment_anything's own encoder."""
    return SamSegmenter(load_compact(), "compact", box_masks=True, attention="stock")


@pytest.fixture(scope="module", params=[compact, stock], ids=["compact", "stock encoder"])
def study(request):
    segmenter, prompts, image = request.param(), some_prompts(3, seed=4), picture()
    inputs = segmenter.prepare(image)
    baseline = segment(segmenter, inputs, prompts)
    assert baseline.mask.flatten(1).any(1).all()

    def context(**settings) -> Context:
        return Context(
            image=to_canonical_image(image),
            organs=prompts.organs,
            masks=baseline.canonical_masks(),
            rois=None,
            seed=1,
            settings=settings,
        )

    return segmenter, prompts, inputs, baseline, context


def test_batches_are_images_one_by_one(study) -> None:
    segmenter, prompts, inputs, _, context = study
    plan = rise.plans(context(masks=7))["masks"]
    one, many = (
        score(plan, segmenter, inputs, prompts, tuple(VALUES), batch_size=size).scores
        for size in (1, 4)
    )
    soft = [i for i, name in enumerate(VALUES) if not name.startswith(("hard", "false"))]
    np.testing.assert_allclose(many[..., soft], one[..., soft], atol=1e-5)
    # a probability at the threshold may fall to either side
    np.testing.assert_allclose(many, one, atol=5e-3)


def test_occlusion_equals_captum(study) -> None:
    segmenter, prompts, inputs, baseline, context = study
    settings = context(window=256, stride=128)
    plans = occlusion.plans(settings)
    tables = {n: score(p, segmenter, inputs, prompts, batch_size=4) for n, p in plans.items()}
    maps = occlusion.aggregate(plans, tables, settings)
    size = segmenter.input_size
    at = ((np.arange(size) + 0.5) * (512 / size)).astype(int)
    for organ, ours in enumerate(maps):

        def forward(x, organ=organ):
            probability = segmenter.decode(segmenter.encode(x), prompts).sigmoid()
            return soft_dice(probability, baseline.mask)[:, organ]

        expected = Occlusion(forward).attribute(
            inputs[None],
            sliding_window_shapes=(3, size // 2, size // 2),
            strides=(3, size // 4, size // 4),
            baselines=fill_image("mean", inputs).expand_as(inputs)[None],
            perturbations_per_eval=4,
        )
        assert np.ptp(ours.map) > 1e-3
        np.testing.assert_allclose(ours.map[np.ix_(at, at)], expected[0, 0], atol=1e-5)


def test_rise_paper_equals_the_published_formula(study) -> None:
    """Every mask and every masked image in memory, one organ at a time."""
    segmenter, prompts, inputs, baseline, context = study
    settings = context(masks=12, estimators=("paper",))
    plans = rise.plans(settings)
    tables = {n: score(p, segmenter, inputs, prompts, batch_size=4) for n, p in plans.items()}
    masks = plans["masks"].keep(0, 12, segmenter.input_size)
    images = fill_image("mean", inputs) * (1 - masks) + inputs * masks
    drawn = plans["masks"].keep(0, 12, 512)[:, 0]
    for organ, ours in enumerate(rise.aggregate(plans, tables, settings)):
        logits = torch.cat([segmenter.decode(segmenter.encode(x[None]), prompts) for x in images])
        scores = soft_dice(logits.sigmoid(), baseline.mask)[:, organ]
        expected = torch.einsum("n,nhw->hw", scores, drawn) / 12 / 0.5
        np.testing.assert_allclose(ours.map, expected, atol=1e-5)
