"""Ours, on real models, against public references and against ourselves one image at a time."""

import numpy as np
import pytest
import torch
from captum.attr import FeatureAblation, Occlusion
from lime.lime_image import LimeImageExplainer
from segment_anything.modeling import Sam
from torch import Tensor, nn

from explain_fakes import picture
from segmenter_models import some_prompts, tiny
from xaiclip.explain import lime, occlusion, rise
from xaiclip.explain.attribution import to_canonical_image
from xaiclip.explain.engine import fill_image, score
from xaiclip.explain.plan import Context, SuperpixelPlan
from xaiclip.explain.values import VALUES, soft_dice
from xaiclip.models.segmenters.loading import load_compact, load_segmenter
from xaiclip.models.segmenters.sam import SamSegmenter
from xaiclip.targets import SegmenterScorer


def compact() -> SamSegmenter:
    """The shipped weights."""
    segmenter = load_segmenter({"model": "compact"}, "cpu", "fp32")
    assert isinstance(segmenter, SamSegmenter)
    return segmenter


def stock() -> SamSegmenter:
    """The same weights through segment_anything's own encoder."""
    return SamSegmenter(load_compact(), "compact", box_masks=True, attention="stock")


def segment_anything() -> SamSegmenter:
    """segment_anything's own structure, mean and standard deviation; small, of random weights."""
    torch.manual_seed(0)
    sam = tiny().eval()
    for parameter in sam.parameters():
        if parameter.dim() > 1:  # with torch's defaults hardly anything in the image matters
            nn.init.normal_(parameter, std=0.2)
    return SamSegmenter(sam, "tiny", stock=True)


def by_segment_anything(sam: Sam, images: Tensor, boxes: Tensor) -> Tensor:
    """Logits (B, O, h, w) through its own modules, one image and one box at a time."""

    def one(image: Tensor, box: Tensor) -> Tensor:
        sparse, dense = sam.prompt_encoder(points=None, boxes=box[None], masks=None)
        logits, _ = sam.mask_decoder(
            image_embeddings=sam.image_encoder(sam.preprocess(image * 255)[None]),
            image_pe=sam.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=False,
        )
        return logits[0, 0]

    with torch.no_grad():
        return torch.stack([torch.stack([one(image, box) for box in boxes]) for image in images])


@pytest.fixture(
    scope="module",
    params=[compact, stock, segment_anything],
    ids=["compact", "stock encoder", "segment_anything"],
)
def study(request):
    """Model, prompts, input, baseline, context; and soft Dice (B, O) as a reference gets it."""
    segmenter, prompts = request.param(), some_prompts(3, seed=4)
    # SAM's own input keeps the aspect; square, it takes the same windows everywhere
    image = picture(shape=(160, 160)) if segmenter.stock else picture()
    inputs = segmenter.prepare(image)
    scorer = SegmenterScorer(segmenter, prompts, inputs)
    assert scorer.mask.flatten(1).any(1).all()

    def context(**settings) -> Context:
        return Context(
            image=to_canonical_image(image),
            organs=prompts.organs,
            masks=scorer.masks,
            rois=None,
            seed=1,
            settings=settings,
        )

    def dice(images: Tensor) -> Tensor:
        if request.param is segment_anything:
            boxes = prompts.boxes * segmenter.input_size
            logits = by_segment_anything(segmenter.sam, images, boxes)
        else:
            logits = segmenter.decode(segmenter.encode(images), prompts)
        return soft_dice(logits.sigmoid(), scorer.mask)

    return scorer, dice, context


def tiles(size: int) -> np.ndarray:
    """4 × 4 superpixels: (size, size)."""
    at = np.arange(size) * 4 // size
    return (at[:, None] * 4 + at).astype(np.int32)


@pytest.mark.slow
def test_batches_are_images_one_by_one(study) -> None:
    scorer, _, context = study
    every = SegmenterScorer(scorer.segmenter, scorer.prompts, scorer.inputs, tuple(VALUES))
    plan = rise.plans(context(masks=7))["masks"]
    one, many = (score(plan, every, batch_size=size).scores for size in (1, 4))
    soft = [i for i, name in enumerate(VALUES) if not name.startswith(("hard", "false"))]
    np.testing.assert_allclose(many[..., soft], one[..., soft], atol=1e-5)
    # a probability at the threshold may fall to either side
    np.testing.assert_allclose(many, one, atol=5e-3)


@pytest.mark.slow
def test_occlusion_equals_captum(study) -> None:
    scorer, dice, context = study
    inputs = scorer.inputs
    settings = context(window=256, stride=128)
    plans = occlusion.plans(settings)
    tables = {n: score(p, scorer, batch_size=4) for n, p in plans.items()}
    maps = occlusion.aggregate(plans, tables, settings)
    size = scorer.segmenter.input_size
    at = ((np.arange(size) + 0.5) * (512 / size)).astype(int)
    for organ, ours in enumerate(maps):
        expected = Occlusion(lambda x, organ=organ: dice(x)[:, organ]).attribute(
            inputs[None],
            sliding_window_shapes=(3, size // 2, size // 2),
            strides=(3, size // 4, size // 4),
            baselines=fill_image("mean", inputs).expand_as(inputs)[None],
            perturbations_per_eval=4,
        )
        assert np.ptp(ours.map) > 1e-3
        np.testing.assert_allclose(ours.map[np.ix_(at, at)], expected[0, 0], atol=1e-5)


@pytest.mark.slow
def test_superpixels_one_at_a_time_equal_captums_feature_ablation(study) -> None:
    scorer, dice, _ = study
    inputs = scorer.inputs
    plan = SuperpixelPlan(np.ones((16, 3), bool), 16, tiles(512), ~np.eye(16, dtype=bool))
    table = score(plan, scorer, batch_size=4)
    drop = table.baseline[:, 0] - table.scores[..., 0]
    features = torch.from_numpy(tiles(scorer.segmenter.input_size).astype(np.int64))
    for organ in range(3):
        expected = FeatureAblation(lambda x, organ=organ: dice(x)[:, organ]).attribute(
            inputs[None],
            baselines=fill_image("mean", inputs).expand_as(inputs)[None],
            feature_mask=features[None, None],
            perturbations_per_eval=4,
        )
        assert np.ptp(drop[:, organ]) > 1e-3
        np.testing.assert_allclose(drop[features, organ], expected[0, 0], atol=1e-5)


@pytest.mark.slow
def test_lime_equals_the_lime_package(study) -> None:
    """Its own images and surrogate, on the same superpixels, fill and samples."""
    scorer, dice, _ = study
    inputs = scorer.inputs
    # lime draws its samples from this generator; the first one becomes the unperturbed image
    drawn = np.random.RandomState(7).randint(0, 2, 40 * 16).reshape(40, 16)
    on = drawn[1:].astype(bool)
    plan = SuperpixelPlan(np.ones((39, 3), bool), 39, tiles(512), on)
    table = score(plan, scorer, batch_size=4)
    coefficients, _ = lime.surrogate(on, np.concatenate([table.baseline[None], table.scores]))
    explanation = LimeImageExplainer(random_state=7).explain_instance(
        inputs.permute(1, 2, 0).numpy(),
        lambda images: dice(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy(),
        labels=range(3),
        top_labels=None,
        hide_color=fill_image("mean", inputs).flatten().numpy(),
        num_samples=40,
        batch_size=4,
        segmentation_fn=lambda _: tiles(scorer.segmenter.input_size),
        random_seed=0,
    )
    for organ in range(3):
        expected = dict(explanation.local_exp[organ])
        assert np.ptp(coefficients[organ, 0]) > 1e-3
        np.testing.assert_allclose(
            coefficients[organ, 0], [expected[f] for f in range(16)], atol=1e-5
        )


@pytest.mark.slow
def test_rise_paper_equals_the_published_formula(study) -> None:
    """Every mask and every masked image in memory."""
    scorer, dice, context = study
    inputs = scorer.inputs
    settings = context(masks=12, estimators=("paper",))
    plans = rise.plans(settings)
    tables = {n: score(p, scorer, batch_size=4) for n, p in plans.items()}
    masks = plans["masks"].keep(0, 12, scorer.segmenter.input_size)
    images = fill_image("mean", inputs) * (1 - masks) + inputs * masks
    drawn = plans["masks"].keep(0, 12, 512)[:, 0]
    scores = torch.cat([dice(image[None]) for image in images])
    for organ, ours in enumerate(rise.aggregate(plans, tables, settings)):
        expected = torch.einsum("n,nhw->hw", scores[:, organ], drawn) / 12 / 0.5
        np.testing.assert_allclose(ours.map, expected, atol=1e-5)
