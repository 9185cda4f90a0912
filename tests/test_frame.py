"""A point of the slice keeps its place on the way into a segmenter and back, boxes too."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from scipy.ndimage import map_coordinates

from segmenter_models import tiny
from xaiclip.models.segmenters import sam as sam_module
from xaiclip.models.segmenters.base import Prompts, to_mask
from xaiclip.models.segmenters.fixed import FixedClassSegmenter
from xaiclip.models.segmenters.frame import cut, extent, pad
from xaiclip.models.segmenters.predict import segment_slice
from xaiclip.models.segmenters.sam import SamSegmenter, fit_input

SHAPES = [(90, 63), (47, 120), (101, 80)]  # odd, higher than wide and the reverse


def rectangle(shape, box):
    """A bright rectangle on a dark slice; the box is XYXY in pixels."""
    image = np.full(shape, 20, np.uint8)
    x0, y0, x1, y1 = box
    image[y0:y1, x0:x1] = 220
    return image


def box_in(shape):
    """Off the centre in both directions, higher than wide."""
    height, width = shape
    return (width // 8, height // 3, width // 8 + width // 3, height // 3 + height // 2)


def edges(mask):
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])


def bilinear(values, shape):
    """Half-pixel centres, edges repeated, by SciPy: what a resize without antialiasing is."""
    at = [(np.arange(n) + 0.5) * old / n - 0.5 for n, old in zip(shape, values.shape, strict=True)]
    return map_coordinates(values, np.meshgrid(*at, indexing="ij"), order=1, mode="nearest")


# ----------------------------------------------------------------------- the whole way and back


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("stock", [False, True])
def test_sam_sees_the_box_where_the_rectangle_is_and_gives_it_back(shape, stock, monkeypatch):
    """An encoder that averages 4 × 4 pixels and a decoder that repeats them: all else is ours."""
    monkeypatch.setattr(
        sam_module, "encode_images", lambda encoder, x: F.avg_pool2d(x[:, :1], 4).contiguous()
    )
    boxes = []

    def decode_pairs(sam, embeddings, given, *, as_masks):
        boxes.append(given)
        return embeddings * (10 if stock else 20) - (0 if stock else 10)

    monkeypatch.setattr(sam_module, "decode_pairs", decode_pairs)
    segmenter = SamSegmenter(tiny(), "tiny", stock=stock)
    segmenter.input_size = 256
    box = box_in(shape)
    image = rectangle(shape, box)
    same_place(segment_slice(segmenter, image, {"liver": box})["liver"], box)
    # the box is where the rectangle is in the model's own input
    seen = segmenter.prepare(image)[0].numpy()
    np.testing.assert_allclose(boxes[0][0, 0], edges(seen > 0.5), atol=1)
    height, width = seen.shape
    wanted = np.array(box) * np.array([width / shape[1], height / shape[0]] * 2)
    np.testing.assert_allclose(boxes[0][0, 0], wanted, atol=1e-3)


def same_place(mask, box):
    """Half a cell of the logits would be 0.7 to 1 pixels of these slices."""
    found = edges(mask)
    assert np.abs((found[:2] + found[2:]) / 2 - (np.array(box)[:2] + box[2:]) / 2).max() <= 0.5
    assert np.abs(found - box).max() <= 1


class Pool(torch.nn.Module):
    """Class logits at a quarter of the size; class 1 is bright."""

    def forward(self, x):
        bright = F.avg_pool2d(x[:, :1], 4) * 20 - 10
        return torch.cat([torch.zeros_like(bright), bright], 1)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("keep_aspect", [False, True])
def test_fixed_classes_give_the_rectangle_back(shape, keep_aspect):
    segmenter = FixedClassSegmenter(Pool(), {"liver": 1}, size=256, keep_aspect=keep_aspect)
    box = box_in(shape)
    image = rectangle(shape, box)
    same_place(segment_slice(segmenter, image, {"liver": (0, 0, *shape[::-1])})["liver"], box)


# --------------------------------------------------------------------------------- its pieces


@pytest.mark.parametrize("shape", [(64, 43), (39, 64), (62, 64), (64, 47), (64, 33)])
def test_a_cut_takes_no_more_cells_than_the_slice_fills(shape):
    """Where more than half of the last cell is the slice's too: nothing of the padding enters."""
    at = (torch.arange(16) + 0.5) / 16
    ramp = 5 + at[:, None] + 3 * at
    found = cut(ramp[None, None], shape, 64)[0, 0]
    assert found.shape == tuple(side * 16 // 64 for side in shape)
    rows, columns = (
        (torch.arange(n) + 0.5) / n * side / 64 for n, side in zip(found.shape, shape, strict=True)
    )
    torch.testing.assert_close(found, 5 + rows[:, None] + 3 * columns, atol=1e-5, rtol=1e-5)
    one = torch.ones(1, 2, 16, 16)
    torch.testing.assert_close(cut(one, shape, 64), torch.ones(1, 2, *found.shape))


def test_padding_lies_on_the_right_and_below():
    x = torch.rand(1, 2, 5, 3)
    padded = pad(x, 7)
    assert padded.shape == (1, 2, 7, 7)
    assert torch.equal(padded[..., :5, :3], x)
    assert padded.sum() == pytest.approx(float(x.sum()))


@pytest.mark.parametrize(
    ("shape", "size", "wanted"),
    [((512, 512), 1024, (1024, 1024)), ((512, 340), 1024, (1024, 680)), ((90, 63), 64, (64, 45))],
)
def test_the_longer_side_fills_the_square(shape, size, wanted):
    assert extent(shape, size) == wanted
    assert extent(shape[::-1], size) == wanted[::-1]


def test_stock_input_is_normalised_and_then_padded(monkeypatch):
    """SAM's published mean and deviation, of red, green and blue; the padding is zero after it."""
    seen = []
    monkeypatch.setattr(
        sam_module, "encode_images", lambda encoder, x: seen.append(x) or x.new_zeros(1, 32, 4, 4)
    )
    segmenter = SamSegmenter(tiny(), "sam", stock=True)
    x = segmenter.prepare(np.full((40, 80), 150, np.uint8))
    assert x.shape == (3, 32, 64)
    segmenter.encode(x[None])
    (given,) = seen
    wanted = (150 - np.array([123.675, 116.28, 103.53])) / [58.395, 57.12, 57.375]
    np.testing.assert_allclose(given[0, :, 31, 63], wanted, atol=1e-4)
    assert not given[0, :, 32:].any()


def test_medsams_input_is_pillows_bicubic_then_min_max():
    image = np.random.default_rng(3).integers(0, 256, (87, 51), dtype=np.uint8)
    image[20:60, 10:30] = 255  # sharp edges overshoot: cut before the range is taken
    image[30:40, 15:25] = 0
    resized = Image.fromarray(image.astype(np.float32)).resize((64, 64), Image.Resampling.BICUBIC)
    wanted = np.asarray(resized).clip(0, 255)
    wanted = (wanted - wanted.min()) / (wanted.max() - wanted.min())
    np.testing.assert_allclose(fit_input(image, 64), wanted, atol=2e-4)
    dull = 100 + image // 8  # of a narrower range
    assert (fit_input(dull, 64).min(), fit_input(dull, 64).max()) == (0, 1)


def test_probabilities_are_resized_not_logits():
    """Sigmoid, then bilinear, then more than one half; recomputed with SciPy."""
    logits = np.random.default_rng(0).normal(-1, 6, (2, 5, 7)).astype(np.float32)
    mine = to_mask(torch.from_numpy(logits), (23, 41)).numpy()
    for one, found in zip(logits, mine, strict=True):
        probability = bilinear(1 / (1 + np.exp(-one.astype(float))), (23, 41))
        sure = abs(probability - 0.5) > 1e-5
        assert sure.mean() > 0.99
        np.testing.assert_array_equal(found[sure], probability[sure] > 0.5)
        assert ((bilinear(one, (23, 41)) > 0) != found).mean() > 0.02  # logits would differ


def test_one_half_is_not_in_the_mask():
    assert not to_mask(torch.zeros(1, 4, 4), (9, 9)).any()


def test_organs_keep_their_masks_whatever_their_order():
    class Boxes:
        """Each organ is its box."""

        name, input_size, precision, device = "boxes", 40, "fp32", torch.device("cpu")

        def prepare(self, image):
            return torch.zeros(1, 40, 40)

        def encode(self, inputs):
            return inputs

        def decode(self, embeddings, prompts):
            assert prompts.shape == (40, 80)
            out = torch.full((1, len(prompts.organs), 40, 80), -9.0)
            scaled = prompts.boxes * torch.tensor([80, 40, 80, 40])
            for o, (x0, y0, x1, y1) in enumerate(scaled.round().int().tolist()):
                out[0, o, y0:y1, x0:x1] = 9
            return out

    boxes = {
        "spleen": (50, 2, 70, 30),
        "liver": (3, 5, 33, 38),
        "aorta": None,
        "colon": (1, 1, 9, 4),
    }
    found = segment_slice(Boxes(), np.zeros((40, 80), np.uint8), boxes)
    assert list(found) == ["spleen", "liver", "colon"]
    for organ, mask in found.items():
        assert edges(mask).tolist() == list(boxes[organ])


def test_prompts_keep_the_shape_of_the_slice():
    assert Prompts.from_pixels(["a"], [(1, 2, 3, 4)], (10, 20)).shape == (10, 20)
