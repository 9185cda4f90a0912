"""Somebody else's network, adapted: channels, sides, sizes, and SAM's own preprocessing."""

import inspect

import numpy as np
import pytest
import torch
from torch import nn

from explain_fakes import picture
from own_models import BOXES, ORGANS
from xaiclip import config
from xaiclip.errors import ConfigError
from xaiclip.models.segmenters.base import Prompts, Segmenter
from xaiclip.models.segmenters.fixed import FixedClassSegmenter
from xaiclip.models.segmenters.frame import cut
from xaiclip.models.segmenters.predict import segment_slice
from xaiclip.models.segmenters.sam import SamSegmenter


class Stripes(nn.Module):
    """Class logits that are known: class k has the grey value's distance to k / 3."""

    def __init__(self, volumes: bool = False, wrap=lambda x: x) -> None:
        super().__init__()
        self.volumes, self.wrap = volumes, wrap
        self.seen: list[torch.Tensor] = []

    def forward(self, x):
        assert x.ndim == (5 if self.volumes else 4)
        self.seen.append(x)
        levels = torch.arange(4).view(-1, *[1] * (x.ndim - 2)) / 3
        return self.wrap(-50 * (x[:, :1] - levels).abs())


def fixed(**options):
    module = Stripes(bool(options.get("depth")))
    return FixedClassSegmenter(module, {"liver": 1, "spleen": [2, 3]}, **{"size": 64} | options)


def prompts(shape=(1, 1)):
    boxes = torch.tensor([[0.1, 0.1, 0.5, 0.5]]).repeat(2, 1)
    return Prompts(ORGANS, boxes, shape)


def test_an_organ_is_its_channels_probability():
    mine = fixed()
    assert isinstance(mine, Segmenter)
    x = torch.rand(3, 1, 64, 64)
    logits = mine.decode(mine.encode(x), prompts())
    assert logits.shape == (3, 2, 64, 64)
    softmax = Stripes()(x).softmax(1)
    torch.testing.assert_close(logits[:, 0].sigmoid(), softmax[:, 1])
    torch.testing.assert_close(logits[:, 1].sigmoid(), softmax[:, 2] + softmax[:, 3])


def test_sigmoid_channels_stand_alone():
    mine = fixed(output="sigmoid")
    x = torch.rand(1, 1, 64, 64)
    raw = Stripes()(x)
    logits = mine.decode(mine.encode(x), prompts())
    torch.testing.assert_close(logits[:, 0], raw[:, 1])
    torch.testing.assert_close(logits[:, 1], raw[:, 2:].amax(1))


@pytest.mark.parametrize("axis", ["first", "last"])
@pytest.mark.parametrize("orientation", ["display", "ras"])
def test_a_network_for_volumes_gets_a_stack(axis, orientation):
    mine = fixed(depth=5, depth_axis=axis, orientation=orientation)
    x = torch.rand(2, 1, 64, 64)
    logits = mine.decode(mine.encode(x), prompts())
    flat = fixed()
    torch.testing.assert_close(logits, flat.decode(flat.encode(x), prompts()))
    stack = mine.module.seen[0]
    assert stack.shape == ((2, 1, 5, 64, 64) if axis == "first" else (2, 1, 64, 64, 5))
    plane = stack[0, 0, 2] if axis == "first" else stack[0, 0, ..., 2]
    # RAS: the first axis begins at the left (the slice's last column), the second one posterior
    torch.testing.assert_close(plane, x[0, 0].T.flip(0, 1) if orientation == "ras" else x[0, 0])


def test_normalisation_and_channels():
    mine = fixed(in_channels=3, mean=[0.1, 0.2, 0.3], std=[1, 2, 4])
    x = mine.prepare(np.full((20, 20), 255, np.uint8))
    assert x.shape == (3, 64, 64)
    mine.encode(x[None])
    found = mine.module.seen[0][0, :, 0, 0]
    torch.testing.assert_close(found, torch.tensor([0.9, 0.4, 0.175]))


def test_aspect_is_kept_by_padding():
    mine = fixed(keep_aspect=True)
    image = np.zeros((30, 90), np.uint8)
    image[:, 45:] = 85  # class 1
    x = mine.prepare(image)
    assert x.shape == (1, 21, 64)
    assert mine.decode(mine.encode(x[None]), prompts((30, 90))).shape == (1, 2, 21, 64)
    found = segment_slice(mine, image, {"liver": (0, 0, 90, 30)})["liver"]
    assert (found == (image > 0)).mean() > 0.98


def test_an_organ_without_a_channel_is_empty(caplog):
    mine = fixed()
    found = segment_slice(mine, picture(), {"liver": BOXES["liver"], "pancreas": BOXES["spleen"]})
    assert found["liver"].any()
    assert not found["pancreas"].any()
    assert "no channel for pancreas" in caplog.text


@pytest.mark.parametrize("wrap", [lambda x: [x, x[:1]], lambda x: {"out": x}])
def test_networks_that_return_more(wrap):
    mine = FixedClassSegmenter(Stripes(wrap=wrap), {"liver": 1}, size=64)
    assert mine.encode(torch.rand(2, 1, 64, 64)).shape == (2, 4, 64, 64)


@pytest.mark.parametrize(
    ("wrap", "message"),
    [
        (lambda x: x[:, :1], "more than 1 channels"),
        (lambda x: x[0], r"must give \(B, K, h, w\)"),
        (lambda x: "no", "returned str"),
    ],
)
def test_networks_that_do_not_fit(wrap, message):
    mine = FixedClassSegmenter(Stripes(wrap=wrap), {"liver": 1}, size=64)
    with pytest.raises(ConfigError, match=message):
        mine.encode(torch.rand(2, 1, 64, 64))


@pytest.mark.parametrize(
    "options", [{"output": "tanh"}, {"depth_axis": "middle"}, {"orientation": "lps"}]
)
def test_unknown_options_are_named(options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        fixed(**options)


SIDES = {"spleen": 4, "right kidney": 1, "left kidney": 2}  # no order of a config


class Anatomy(nn.Module):
    """What a network in RAS order knows: the right kidney lies where x and the left where y ends.

    Of volumes, only the plane in the middle is right.
    """

    def __init__(self, axis: int = 0) -> None:
        super().__init__()
        self.axis = axis

    def forward(self, x):
        planes = x.unsqueeze(-1) if x.ndim == 4 else x.movedim(self.axis, -1)
        count = planes.shape[-1]
        right, anterior = torch.meshgrid(
            *((torch.arange(n) + 0.5) / n for n in planes.shape[2:4]), indexing="ij"
        )
        classes = torch.full((len(x), 5, *planes.shape[2:]), -9.0)
        middle = count // 2
        classes[:, 0] = 0
        classes[:, 1, ..., middle] = torch.where((right > 0.75) & (anterior < 0.5), 9.0, -9.0)
        classes[:, 2, ..., middle] = torch.where((right < 0.5) & (anterior > 0.75), 9.0, -9.0)
        classes[:, 4, ..., middle] = 20 * (planes[:, 0, ..., middle] - 0.5)
        return classes[..., 0] if x.ndim == 4 else classes.movedim(-1, self.axis)


@pytest.mark.parametrize(
    "options", [{}, {"depth": 4}, {"depth": 5, "depth_axis": "first"}, {"depth": 1}]
)
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_organs_come_by_name_and_on_their_side(options, order):
    axis = 2 if options.get("depth_axis") == "first" else -1
    mine = FixedClassSegmenter(Anatomy(axis), SIDES, size=64, orientation="ras", **options)
    organs = [list(SIDES)[i] for i in order]
    image = np.full((64, 64), 30, np.uint8)
    image[20:27, 40:64] = 255
    found = segment_slice(mine, image, dict.fromkeys(organs, (1, 1, 60, 60)))
    assert list(found) == organs
    wanted = {organ: np.zeros((64, 64), bool) for organ in SIDES}
    wanted["right kidney"][32:, :16] = True  # displayed on the left, posterior below
    wanted["left kidney"][:16, 32:] = True
    wanted["spleen"] = image > 128
    for organ in organs:
        np.testing.assert_array_equal(found[organ], wanted[organ], err_msg=organ)


def test_padding_is_zero_after_mean_and_deviation():
    mine = fixed(keep_aspect=True, mean=0.2, std=0.5)
    mine.encode(mine.prepare(np.full((30, 90), 255, np.uint8))[None])
    seen = mine.module.seen[0][0, 0]
    torch.testing.assert_close(seen[:21], torch.full((21, 64), 1.6))
    assert not seen[21:].any()


def test_the_slice_is_resized_as_pillow_does():
    from PIL import Image

    image = np.random.default_rng(1).integers(0, 256, (150, 93), dtype=np.uint8)
    grey = Image.fromarray(image.astype(np.float32) / 255)
    wanted = np.asarray(grey.resize((64, 64), Image.Resampling.BILINEAR))
    np.testing.assert_allclose(fixed().prepare(image)[0], wanted, atol=1e-4)


@pytest.mark.parametrize("shape", [(64, 64), (40, 80), (90, 63)])
def test_stock_sam_prepares_and_cuts_as_its_predictor(shape):
    from segment_anything import SamPredictor

    from segmenter_models import tiny

    torch.manual_seed(0)
    sam = tiny().eval()
    for parameter in sam.parameters():
        nn.init.normal_(parameter, std=0.2)
    mine = SamSegmenter(sam, "sam", stock=True)
    image = picture(shape=shape)
    height, width = shape
    box = np.array([0.2 * width, 0.3 * height, 0.8 * width, 0.9 * height])
    given = Prompts.from_pixels(["liver"], box[None], shape)
    logits = mine.decode(mine.encode(mine.prepare(image)[None]), given)[0, 0]

    predictor = SamPredictor(sam)
    predictor.set_image(np.repeat(image[..., None], 3, 2))
    _, _, low = predictor.predict(box=box, multimask_output=False, return_logits=True)
    h, w = predictor.input_size
    assert logits.shape == (h // 4, w // 4)
    if h % 4 == 0 and w % 4 == 0:
        exact = torch.from_numpy(low)[0, : h // 4, : w // 4]
        torch.testing.assert_close(logits, exact, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("shape", [(64, 41), (37, 64), (64, 48)])
def test_a_cut_inside_a_cell_is_resampled(shape):
    at = (torch.arange(16) + 0.5) / 16
    ramp = at[:, None] + 3 * at  # of the position in the square
    found = cut(ramp[None, None], shape, 64)[0, 0]
    rows, columns = (
        (torch.arange(n) + 0.5) / n * extent / 64
        for n, extent in zip(found.shape, shape, strict=True)
    )
    torch.testing.assert_close(found, rows[:, None] + 3 * columns, atol=1e-5, rtol=1e-5)


def test_the_adapter_of_the_configuration_has_the_networks_defaults():
    """The schema states them for people; a key or a default of one alone is a mistake."""
    parameters = inspect.signature(FixedClassSegmenter).parameters.values()
    given = ("module", "channels", "name", "device", "precision")
    own = {one.name: one.default for one in parameters if one.name not in given}
    adapter = config.default_config()["segmenter"]["adapter"]
    assert adapter.pop("channels") is None
    assert adapter == own
