"""A point's place, through every change of grid: to half a pixel, in mm, on slices that are no
square."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from explain_fakes import run_of
from xaiclip.data.geometry import Geometry
from xaiclip.data.record import Slice
from xaiclip.data.volumes import restore
from xaiclip.explain import lime
from xaiclip.explain.attribution import to_canonical_image, to_canonical_mask, to_slice_grid
from xaiclip.explain.engine import score
from xaiclip.explain.plan import CellPlan, SuperpixelPlan, WindowPlan, nearest
from xaiclip.explain.runner import Request, attribute_slice, score_slice
from xaiclip.models.segmenters.base import Prompts, to_mask
from xaiclip.models.segmenters.frame import cut, extent, pad
from xaiclip.targets import SegmenterScorer

SHAPES = [(96, 128), (101, 76), (512, 300), (700, 613)]


def under(count: int, other: int) -> np.ndarray:
    """Of ``other`` pixels, the one under the centre of each of ``count``."""
    return np.array([int((2 * k + 1) * other / (2 * count)) for k in range(count)])


def clear(count: int, other: int) -> np.ndarray:
    """Which centres lie in a pixel, not on the edge of two."""
    return np.array([(2 * k + 1) * other % (2 * count) > 0 for k in range(count)])


@pytest.mark.parametrize("shape", SHAPES)
def test_a_map_comes_back_from_under_the_pixels_centres(shape):
    rows, columns = np.mgrid[:512, :512].astype(np.float32)
    found = to_slice_grid(rows, shape)[:, 0], to_slice_grid(columns, shape)[0]
    for line, count in zip(found, shape, strict=True):
        wanted, sure = under(count, 512), clear(count, 512)
        np.testing.assert_array_equal(line[sure], wanted[sure])
        assert np.isin(wanted - line, (0, 1)).all()  # on an edge, either neighbour will do


@pytest.mark.parametrize("shape", SHAPES)
def test_a_mask_goes_to_the_pixels_whose_centres_it_covers(shape):
    mask = np.random.default_rng(0).random(shape) < 0.5
    expected = mask[under(512, shape[0])][:, under(512, shape[1])]
    sure = np.ix_(*(clear(512, side) for side in shape))
    np.testing.assert_array_equal(to_canonical_mask(mask)[sure], expected[sure])


@pytest.mark.parametrize("shape", SHAPES)
def test_an_image_keeps_its_places(shape):
    """Ramps along rows and along columns, and stripes that are finer than the grid."""
    for axis in (0, 1):
        at = (np.arange(shape[axis]) + 0.5) / shape[axis] * 250
        ramp = np.broadcast_to(at if axis else at[:, None], shape).round().astype(np.uint8)
        there = to_canonical_image(ramp).astype(float)
        expected = (np.arange(512) + 0.5) / 512 * 250
        line = there[256] if axis else there[:, 256]
        np.testing.assert_allclose(line[8:-8], expected[8:-8], atol=1.1)
    stripes = np.zeros((1024, 1024), np.uint8)
    stripes[:, ::2] = 200
    assert (to_canonical_image(stripes) == 100).all()


@pytest.mark.parametrize("size", [100, 128, 512, 1000])
def test_plans_hide_what_lies_under_the_pixels_centres(size):
    """One window, the superpixels and the cells' region, at a size that does not divide 512."""
    at = under(size, 512)
    np.testing.assert_array_equal(nearest(size), at)
    members = np.ones((1, 1), bool)
    hidden = np.zeros((512, 512), bool)
    hidden[33:200, 101:130] = True
    here = hidden[at][:, at]
    segments = np.where(hidden, 0, -1).astype(np.int32)
    kept = [
        WindowPlan(members, 1, np.array([[101, 33, 130, 200]], np.int32)),
        SuperpixelPlan(members, 1, segments, np.zeros((1, 1), bool)),
        CellPlan(members, 1, np.zeros((1, 7, 7), bool), np.zeros((1, 2), np.int32), hidden),
    ]
    for plan in kept:
        np.testing.assert_array_equal(plan.keep(0, 1, size)[0, 0].numpy() == 0, here)
        np.testing.assert_allclose(
            plan.weighted_sum(np.ones((1, 1)), size)[0] == 0, here, err_msg=str(type(plan))
        )


def test_cells_are_shifted_along_their_own_axis():
    """One cell that is kept: moved by a row shift it goes up, by a column shift to the left."""
    cells = np.zeros((3, 7, 7), bool)
    cells[:, 3, 4] = True
    shifts = np.array([[0, 0], [50, 0], [0, 50]], np.int32)
    plan = CellPlan(np.ones((3, 1), bool), 3, cells, shifts, np.ones((512, 512), bool))
    keep = plan.keep(0, 3, 512)[:, 0].double()
    centres = [
        [
            float((k * (torch.arange(512) + 0.5).view(shape)).sum() / k.sum())
            for shape in ((-1, 1), (1, -1))
        ]
        for k in keep
    ]
    pitch = 8 * 74 / 7
    np.testing.assert_allclose(centres[0], [3.5 * pitch, 4.5 * pitch], atol=0.5)
    np.testing.assert_allclose(np.subtract(centres[0], centres[1]), [50, 0], atol=0.5)
    np.testing.assert_allclose(np.subtract(centres[0], centres[2]), [0, 50], atol=0.5)
    for k, weights in enumerate(np.eye(3)):
        np.testing.assert_allclose(plan.weighted_sum(weights[:, None])[0], keep[k], atol=1e-5)


def test_quickshift_finds_the_edges_where_they_are():
    image = np.full((512, 512), 40, np.uint8)
    image[130:260, 300:420] = 220
    labels = lime.superpixels("quickshift", image, lime.PlanSettings(superpixels=["quickshift"]))
    bright = image > 100
    assert not np.isin(labels[~bright], labels[bright]).any()


# ------------------------------------------------------------------------- aspect and padding


@pytest.mark.parametrize(
    ("shape", "size", "expected"),
    [((101, 76), 64, (64, 48)), ((76, 101), 64, (48, 64)), ((100, 73), 64, (64, 47)),
     ((512, 300), 1024, (1024, 600)), ((30, 40), 256, (192, 256))],
)  # fmt: skip
def test_a_slice_keeps_its_aspect_rounded(shape, size, expected):
    assert extent(shape, size) == expected


@pytest.mark.parametrize("shape", [(64, 47), (47, 64), (64, 41), (30, 64)])
def test_padding_is_cut_off_again(shape):
    """Ramps through pad, down to logits of a fourth, and back: each cell says where it lies."""
    size, cells = 64, 16
    rows, columns = torch.meshgrid(torch.arange(shape[0]), torch.arange(shape[1]), indexing="ij")
    image = torch.stack([rows + 0.5, columns + 0.5]).float()
    padded = pad(image[None], size)
    assert padded.shape == (1, 2, size, size)
    assert torch.equal(padded[..., : shape[0], : shape[1]], image[None])
    assert padded.sum() == image.sum()
    # logits that say the place of their cell's centre, all over the square
    places = (torch.arange(cells) + 0.5) * size / cells
    logits = torch.stack(torch.meshgrid(places, places, indexing="ij"))[None]
    back = cut(logits, shape, size)
    # a cell that is filled in part is left to its neighbour
    assert back.shape[2:] == tuple(side * cells // size for side in shape)
    for axis, line in enumerate((back[0, 0, :, 0], back[0, 1, 0])):
        count = len(line)
        torch.testing.assert_close(line, (torch.arange(count) + 0.5) * shape[axis] / count)


def test_logits_become_masks_by_bilinear_probabilities():
    logits = torch.tensor([[[-4.0, 4.0], [-4.0, 4.0]]])
    probability = F.interpolate(logits.sigmoid()[None], (3, 8), mode="bilinear")[0, 0]
    mask = to_mask(logits, (3, 8))[0]
    assert torch.equal(mask, probability > 0.5)
    assert mask[0].tolist() == [False] * 4 + [True] * 4
    uneven = torch.tensor([[[-1.0, 9.0]]])  # the edge is nearer to the side that is less sure
    assert to_mask(uneven, (1, 8))[0, 0].tolist() == [False] * 3 + [True] * 5


class Watched:
    """A model of the slice's aspect that shows what it was given; it sees brightness in a box."""

    name, precision, dtype = "watched", "fp32", torch.float32
    device = torch.device("cpu")

    def __init__(self, height: int, width: int) -> None:
        self.shape = (height, width)
        self.input_size = max(height, width)
        self.seen: list[Tensor] = []

    def prepare(self, image: np.ndarray) -> Tensor:
        grey = torch.from_numpy(image).float()[None, None] / 255
        return F.interpolate(grey, self.shape, mode="bilinear", antialias=True)[0].expand(3, -1, -1)

    def encode(self, inputs: Tensor) -> Tensor:
        self.seen.append(inputs)
        return inputs.mean(1, keepdim=True)

    def decode(self, embeddings: Tensor, prompts: Prompts) -> Tensor:
        y, x = ((torch.arange(side) + 0.5) / side for side in self.shape)
        x0, y0, x1, y1 = prompts.boxes.T[..., None]
        rows, columns = (y > y0) & (y < y1), (x > x0) & (x < x1)
        inside = (rows[:, :, None] & columns[:, None]).float()
        return 20 * (embeddings - 0.5) - 40 * (1 - inside)


@pytest.mark.parametrize("shape", [(48, 128), (128, 48), (100, 128), (128, 128)])
def test_a_window_hides_the_inputs_pixels_whose_centres_it_covers(shape):
    """Whatever the input's aspect, and for edges that fall inside of pixels."""
    model, box = Watched(*shape), (37, 12, 205, 300)
    plan = WindowPlan(np.ones((1, 1), bool), 1, np.array([box], np.int32))
    inputs = 0.5 + torch.rand(3, *shape, generator=torch.Generator().manual_seed(0)) / 2
    prompts = Prompts(("liver",), torch.tensor([[0.0, 0.0, 1.0, 1.0]]))
    score(plan, SegmenterScorer(model, prompts, inputs), fill="zero")
    hidden = (model.seen[-1][0] == 0).all(0).numpy()
    y, x = ((np.arange(side) + 0.5) * 512 / side for side in shape)
    expected = ((y >= box[1]) & (y < box[3]))[:, None] & ((x >= box[0]) & (x < box[2]))
    # masks are drawn on a square of the longer side first: a centre's place there counts
    near = np.zeros_like(expected)
    longer = 512 / max(shape)
    for at, (low, high), axis in ((y, (box[1], box[3]), 0), (x, (box[0], box[2]), 1)):
        close = (np.abs(at - low) < longer / 2) | (np.abs(at - high) < longer / 2)
        near |= close[:, None] if axis == 0 else close[None]
    assert np.array_equal(hidden[~near], expected[~near])
    assert near.mean() < 0.1


# --------------------------------------------------------------------------------- in mm

#: Stored as scanners store it: x to the patient's left, y to posterior; pixels of 2.5 × 3 mm.
AFFINE = np.array([[-2.5, 0, 0, 160.0], [0, -3.0, 0, 120.0], [0, 0, 5.0, -20], [0, 0, 0, 1]])
TALL, WIDE = (18, 60), (70, 84)  # rows, columns: where the organ is
OTHER = (64, 76), (20, 50)


def bright(rows, columns, shape=(96, 128)):
    mask = np.zeros(shape, bool)
    mask[slice(*rows), slice(*columns)] = True
    return mask


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(128, 128), (96, 128)])
@pytest.mark.parametrize(
    ("method", "settings", "mm"),
    [
        ("occlusion", {"window": 16, "stride": 8}, 3.0),
        ("lime", {"variants": ["felzenszwalb"], "samples": 300}, 3.0),
        ("rise", {"masks": 300, "estimators": ["covariance"]}, 12.0),
    ],
)
def test_a_map_lies_where_the_organ_is(method, settings, mm, shape):
    """Organ in mm → slice → model → map → NIfTI → mm: where the map is over half of its highest."""
    organs = {"spleen": bright(*OTHER), "liver": bright(TALL, WIDE)}
    image = np.full((96, 128), 50, np.uint8)
    image += np.random.default_rng(0).integers(0, 9, image.shape).astype(np.uint8)
    boxes = {}
    for organ, mask in organs.items():
        image[mask] = 230
        rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
        boxes[organ] = np.array([columns[0] - 2, rows[0] - 2, columns[-1] + 3, rows[-1] + 3.0])
    item = Slice("a", 7, "CT", image, None, Geometry(AFFINE, (128, 96, 20)))
    scores, skips = score_slice(
        Watched(*shape), Request("a", 7, image, boxes), run_of(method, settings, fill="zero")
    )
    assert not skips
    for one in attribute_slice(scores)[0]:
        if one.value != "soft_dice":
            continue
        mask = organs[one.organ]
        restored = restore({7: to_slice_grid(one.map, image.shape)}, item.geometry)
        stored = np.asarray(restored.dataobj)
        assert np.array_equal(np.unique(np.argwhere(np.isfinite(stored))[:, 2]), [7])
        chosen = np.argwhere(stored > np.nanmax(stored) / 2)
        found = (restored.affine @ np.append(chosen.mean(0), 1))[:3]
        # column and row of the slice are the stored x and y
        row, column = np.argwhere(mask).mean(0)
        expected = (160 - 2.5 * column, 120 - 3 * row, -20 + 5 * 7)
        np.testing.assert_allclose(found, expected, atol=mm)
