"""Segmenters against segment_anything itself: prompts, input, logits, masks."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from segment_anything.modeling import (
    Sam,
)

from segmenter_models import some_prompts
from xaiclip.models.segmenters.base import Prompts, Segmenter, to_mask
from xaiclip.models.segmenters.decoder import box_masks, decode_pairs
from xaiclip.models.segmenters.encoder import encode_images
from xaiclip.models.segmenters.predict import segment_slice
from xaiclip.models.segmenters.sam import SamSegmenter, fit_input


@pytest.fixture(scope="module")
def segmenter(sam: Sam) -> SamSegmenter:
    return SamSegmenter(sam, "tiny")


@pytest.mark.parametrize(
    "box",
    [
        (0.2, 0.2, 0.2, 0.5),
        (0.5, 0.2, 0.4, 0.5),
        (-0.1, 0, 0.5, 0.5),
        (0, 0, 0.5, 1.1),
        (0, 0, float("nan"), 1),
    ],
)
def test_a_bad_box_is_named(box: tuple[float, ...]) -> None:
    good = (0.1, 0.1, 0.9, 0.9)
    with pytest.raises(ValueError, match="box of spleen"):
        Prompts(("liver", "spleen"), torch.tensor([good, box]))


def test_organs_and_boxes_must_pair() -> None:
    with pytest.raises(ValueError, match="shape"):
        Prompts(("liver", "spleen"), torch.tensor([[0.1, 0.1, 0.9, 0.9]]))


def test_boxes_from_pixels_scale_each_axis_and_are_clipped() -> None:
    prompts = Prompts.from_pixels(["a", "b"], [(10, 20, 40, 60), (-5, 0, 50, 300)], (100, 50))
    expected = torch.tensor([[0.2, 0.2, 0.8, 0.6], [0, 0, 1, 1]])
    torch.testing.assert_close(prompts.boxes, expected)


@settings(max_examples=12, deadline=None)
@given(arrays(np.uint8, st.tuples(st.integers(8, 90), st.integers(8, 90))))
def test_the_input_fills_the_square_from_zero_to_one(image: np.ndarray) -> None:
    x = fit_input(image, 64)
    assert x.shape == (64, 64)
    assert x.dtype == torch.float32
    if x.any():
        assert (x.min(), x.max()) == (0, 1)
    if image.min() == image.max():
        assert not x.any()


def test_the_input_keeps_no_aspect_and_is_antialiased(segmenter: SamSegmenter) -> None:
    image = np.zeros((32, 128), np.uint8)
    image[:, 64:] = 200
    x = segmenter.prepare(image)
    assert x.shape == (3, 64, 64)
    assert (x[0] == x[1]).all()
    assert (x[0] == x[2]).all()
    assert x[:, :, :30].max() < 0.02
    assert x[:, :, 34:].min() > 0.98
    stripes = np.zeros((256, 256), np.uint8)
    stripes[:, ::2] = 255
    stripes[:128] = 0  # without antialiasing the stripes below would be all or nothing
    fine = fit_input(stripes, 64)
    assert fine[40:, 8:-8].std() < 0.02


@pytest.mark.parametrize("stock", [False, True])
def test_equal_to_segment_anything_called_one_image_and_box_at_a_time(
    sam: Sam, stock: bool
) -> None:
    mine = SamSegmenter(sam, "tiny", stock=stock)
    x, prompts = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(1)), None
    prompts = some_prompts(4)
    embeddings = mine.encode(x)
    logits = mine.decode(embeddings, prompts)
    assert logits.shape == (3, 4, 16, 16)
    assert logits.dtype == torch.float32
    for b in range(3):
        with torch.no_grad():
            one = sam.preprocess(x[b] * 255) if stock else x[b]
            embedding = sam.image_encoder(one[None])
            torch.testing.assert_close(embeddings[b : b + 1], embedding, atol=1e-5, rtol=1e-5)
            for o in range(4):
                sparse, dense = sam.prompt_encoder(
                    points=None, boxes=prompts.boxes[o : o + 1] * 64, masks=None
                )
                expected, _ = sam.mask_decoder(
                    image_embeddings=embedding,
                    image_pe=sam.prompt_encoder.get_dense_pe(),
                    sparse_prompt_embeddings=sparse,
                    dense_prompt_embeddings=dense,
                    multimask_output=False,
                )
                torch.testing.assert_close(logits[b, o], expected[0, 0], atol=1e-5, rtol=1e-5)


def test_boxes_as_mask_prompts_are_segment_anythings_mask_prompts(sam: Sam) -> None:
    mine = SamSegmenter(sam, "tiny", box_masks=True)
    prompts = some_prompts(3, seed=2)
    embeddings = mine.encode(torch.rand(2, 3, 64, 64))
    logits = mine.decode(embeddings, prompts)
    boxes = prompts.boxes * 64
    with torch.no_grad():
        sparse, dense = sam.prompt_encoder(points=None, boxes=boxes, masks=box_masks(boxes, 64, 16))
        for b in range(2):
            expected, _ = sam.mask_decoder(
                image_embeddings=embeddings[b : b + 1],
                image_pe=sam.prompt_encoder.get_dense_pe(),
                sparse_prompt_embeddings=sparse,
                dense_prompt_embeddings=dense,
                multimask_output=False,
            )
            torch.testing.assert_close(logits[b], expected[:, 0], atol=1e-5, rtol=1e-5)


@settings(max_examples=8, deadline=None)
@given(images=st.integers(1, 4), organs=st.integers(1, 4), seed=st.integers(0, 99))
def test_decoding_is_the_outer_product(
    segmenter: SamSegmenter, images: int, organs: int, seed: int
) -> None:
    """Any batch equals its images and boxes one by one: nothing is paired by position."""
    generator = torch.Generator().manual_seed(seed)
    embeddings = torch.randn(images, 32, 4, 4, generator=generator)
    prompts = some_prompts(organs, seed)
    together = segmenter.decode(embeddings, prompts)
    assert together.shape == (images, organs, 16, 16)
    for b in range(images):
        for o in range(organs):
            alone = Prompts(prompts.organs[o : o + 1], prompts.boxes[o : o + 1])
            one = segmenter.decode(embeddings[b : b + 1], alone)[0, 0]
            torch.testing.assert_close(together[b, o], one, atol=1e-5, rtol=1e-5)


def test_box_masks_hold_the_covered_share() -> None:
    fine = torch.zeros(64, 64)
    fine[10:37, 5:50] = 1
    share = fine.view(16, 4, 16, 4).mean((1, 3))
    mine = box_masks(torch.tensor([[5.0, 10, 50, 37]]), 64, 16)
    assert mine.shape == (1, 1, 16, 16)
    torch.testing.assert_close(mine[0, 0], share)


def test_bf16_is_close_and_gives_float32(sam: Sam, segmenter: SamSegmenter) -> None:
    half = SamSegmenter(copy.deepcopy(sam), "tiny", precision="bf16")
    x, prompts = torch.rand(2, 3, 64, 64), some_prompts(2)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        expected = encode_images(sam.image_encoder, x).float()
    assert torch.equal(half.encode(x), expected)  # weights rounded once, not for each batch
    full, rough = (s.decode(s.encode(x), prompts) for s in (segmenter, half))
    assert rough.dtype == torch.float32
    assert torch.corrcoef(torch.stack([full.flatten(), rough.flatten()]))[0, 1] > 0.98


def test_segmenters_have_the_interface(segmenter: SamSegmenter) -> None:
    assert isinstance(segmenter, Segmenter)
    assert (segmenter.input_size, segmenter.device.type, segmenter.precision) == (64, "cpu", "fp32")
    assert not any(p.requires_grad for p in segmenter.sam.parameters())


def test_gradients_through_the_pairs_are_segment_anythings(sam: Sam) -> None:
    """Training uses the same decoding: every parameter gets what the stock decoder would give."""
    generator = torch.Generator().manual_seed(4)
    x = torch.rand(2, 3, 64, 64, generator=generator)
    weights = torch.randn(2, 3, 16, 16, generator=generator)
    boxes = some_prompts(3, seed=5).boxes * 64

    def pairs(model: Sam) -> torch.Tensor:
        found = decode_pairs(model, model.image_encoder(x), boxes.expand(2, -1, -1), as_masks=True)
        return found

    def stock(model: Sam) -> torch.Tensor:
        embeddings = model.image_encoder(x)
        sparse, dense = model.prompt_encoder(
            points=None, boxes=boxes, masks=box_masks(boxes, 64, 16)
        )
        masks = [
            model.mask_decoder(
                image_embeddings=one[None],
                image_pe=model.prompt_encoder.get_dense_pe(),
                sparse_prompt_embeddings=sparse,
                dense_prompt_embeddings=dense,
                multimask_output=False,
            )[0][:, 0]
            for one in embeddings
        ]
        return torch.stack(masks)

    gradients = []
    for decode in (pairs, stock):
        model = copy.deepcopy(sam).requires_grad_(True)
        model.zero_grad()
        (decode(model) * weights).sum().backward()
        gradients.append(
            {
                name: torch.zeros_like(p) if p.grad is None else p.grad
                for name, p in model.named_parameters()
            }
        )
    mine, theirs = gradients
    reached = [name for name, grad in theirs.items() if grad.any()]
    for part in ("image_encoder.patch_embed", "prompt_encoder.mask_downscaling", "mask_decoder"):
        assert any(name.startswith(part) for name in reached), part
    for name, grad in theirs.items():
        size = float(grad.abs().max())
        torch.testing.assert_close(mine[name], grad, atol=2e-4 * max(size, 1), rtol=2e-3)


def test_masks_are_probabilities_resized_then_cut() -> None:
    logits = torch.full((2, 3, 4, 4), -8.0)
    logits[..., 2:] = 8
    mask = to_mask(logits, (10, 20))
    assert mask.shape == (2, 3, 10, 20)
    assert mask.dtype == torch.bool
    assert mask[..., 10:].all()
    assert not mask[..., :10].any()


def test_a_slice_without_boxes_has_no_masks(segmenter: SamSegmenter) -> None:
    image = np.random.default_rng(0).integers(0, 255, (40, 30), dtype=np.uint8)
    assert segment_slice(segmenter, image, {"liver": None}) == {}
    box = np.array([2, 3, 20, 30], np.float32)
    found = segment_slice(segmenter, image, {"liver": None, "spleen": box})
    assert list(found) == ["spleen"]
    assert found["spleen"].shape == (40, 30)
    assert found["spleen"].dtype == np.bool_
