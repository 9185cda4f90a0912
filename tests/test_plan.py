import tracemalloc

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from explain_fakes import ORGANS, LargestTensor, context, rois
from xaiclip.explain.attribution import to_canonical_image, to_canonical_mask, to_slice_grid
from xaiclip.explain.plan import CellPlan, Plan, SuperpixelPlan, WindowPlan, cell_side

RNG = np.random.default_rng(0)


def windows(count: int = 6) -> WindowPlan:
    corner = RNG.integers(0, 400, (count, 2))
    edges = np.concatenate([corner, corner + RNG.integers(8, 112, (count, 2))], 1)
    return WindowPlan(np.ones((count, 2), bool), count, edges.astype(np.int32))


def superpixels(count: int = 6) -> SuperpixelPlan:
    segments = (np.arange(512)[:, None] // 100 * 6 + np.arange(512) // 100).astype(np.int32)
    segments[:50] = -1
    return SuperpixelPlan(np.ones((count, 2), bool), 9, segments, RNG.random((count, 36)) < 0.5)


def cells(count: int = 6, region: np.ndarray | None = None) -> CellPlan:
    return CellPlan(
        np.ones((count, 2), bool),
        count,
        RNG.random((count, 7, 7)) < 0.5,
        RNG.integers(0, cell_side(7), (count, 2), dtype=np.int32),
        np.ones((512, 512), bool) if region is None else region,
    )


KINDS = pytest.mark.parametrize("make", [windows, superpixels, cells])


@KINDS
@pytest.mark.parametrize("size", [128, 256, 512, 1024])
def test_masks_have_shape_and_range_at_any_size(make, size):
    keep = make().keep(1, 4, size)
    assert keep.shape == (3, 1, size, size)
    assert keep.dtype == torch.float32
    assert 0 <= keep.min() < 0.01
    assert 0.99 < keep.max() <= 1


@KINDS
def test_chunks_agree_with_single_masks(make):
    plan = make()
    single = torch.cat([plan.keep(k, k + 1, 256) for k in range(6)])
    assert torch.equal(plan.keep(0, 6, 256), single)


@KINDS
def test_survives_storage(make):
    plan = make()
    loaded = Plan.from_arrays(plan.to_arrays())
    assert type(loaded) is type(plan)
    assert loaded.n_full == plan.n_full
    assert loaded.n_forwards == 6
    assert torch.equal(loaded.keep(0, 6, 128), plan.keep(0, 6, 128))


@KINDS
def test_weighted_sum_is_the_sum_of_the_masks(make):
    """Closed forms included: windows by their corners, cells by their shifts."""
    plan, weights = make(40), RNG.normal(size=(40, 3))
    masks = plan.keep(0, 40, 512)[:, 0].double().numpy()
    np.testing.assert_allclose(
        plan.weighted_sum(weights), np.einsum("nk,nhw->khw", weights, masks), atol=1e-4
    )


@pytest.mark.parametrize("region", [None, rois()[0]])
def test_square_sum_is_the_sum_of_the_squared_masks(region):
    plan = cells(40, region)
    masks = plan.keep(0, 40, 512)[:, 0].double().numpy()
    np.testing.assert_allclose(plan.square_sum(), (masks**2).sum(0), atol=1e-4)


@KINDS
def test_memory_does_not_grow_with_the_number_of_forwards(make):
    """Beyond the plan itself and the weights, which are a few bytes a forward."""
    peaks = []
    for count in (100, 1000):
        plan, weights = make(count), np.ones((count, 2), np.float32)
        tracemalloc.start()
        with LargestTensor() as watch:
            plan.weighted_sum(weights)
        peaks.append(watch.numel * 4 + tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] - peaks[0] < 900 * 2000  # a mask has a million bytes


@given(
    st.integers(0, 500),
    st.integers(0, 500),
    st.integers(1, 200),
    st.integers(1, 200),
    st.sampled_from([64, 256, 512, 1024]),
)
@settings(max_examples=25, deadline=None)
def test_a_window_hides_its_own_pixels_only(x, y, width, height, size):
    box = np.array([[x, y, min(x + width, 512), min(y + height, 512)]], np.int32)
    keep = WindowPlan(np.ones((1, 1), bool), 1, box).keep(0, 1, size)[0, 0].numpy()
    centres = (np.arange(size) + 0.5) * 512 / size
    x0, y0, x1, y1 = box[0]
    rows, columns = (centres >= y0) & (centres < y1), (centres >= x0) & (centres < x1)
    assert np.array_equal(keep == 0, rows[:, None] & columns)


def test_superpixels_off_are_hidden_and_the_rest_is_kept():
    plan = superpixels()
    keep = plan.keep(0, 6, 512)[:, 0].numpy()
    assert (keep[:, plan.segments == -1] == 1).all()
    for label in (7, 12, 35):
        assert np.array_equal(keep[:, plan.segments == label].min(1), plan.on[:, label])


def test_cells_are_the_published_masks():
    """Bilinear enlargement to (7 + 1) cells, cropped at a random shift (Petsiuk et al. 2018)."""
    plan = cells()
    side = cell_side(7)
    assert side == 74
    small = torch.from_numpy(plan.cells).float()[:, None]
    large = F.interpolate(small, (8 * side, 8 * side), mode="bilinear")
    for k, (row, column) in enumerate(plan.shifts):
        expected = large[k, 0, row : row + 512, column : column + 512]
        torch.testing.assert_close(plan.keep(k, k + 1, 512)[0, 0], expected, atol=2e-5, rtol=0)


def test_cells_keep_everything_outside_the_region():
    region = rois()[0]
    keep = cells(region=region).keep(0, 6, 512)[:, 0].numpy()
    assert (keep[:, ~region] == 1).all()
    assert keep[:, region].mean() < 0.7


def test_context_selects_organs():
    both = context(guided=True)
    one = both.select(np.array([False, True]))
    assert one.organs == ("spleen",)
    assert both.without(np.array([False, True])) == ("liver",)
    assert np.array_equal(one.rois, both.rois[1:])
    assert np.array_equal(one.masks, both.masks[1:])
    assert np.array_equal(one.union, both.rois[1])
    assert both.union.sum() == both.rois.sum()
    assert context().select(np.array([True, False])).rois is None
    assert context().union.all()


def test_one_map_is_primary():
    maps = np.arange(4).reshape(2, 2, 1, 1) * np.ones((512, 512))
    named = context(explained=("soft_dice", "hard_dice")).attributions(
        "a", ["p"], maps, primary=True, details={"r2": np.array([[0.1, 0.2], [0.3, 0.4]])}
    )
    assert [(one.organ, one.value, one.primary) for one in named] == [
        (ORGANS[0], "soft_dice", True),
        (ORGANS[0], "hard_dice", False),
        (ORGANS[1], "soft_dice", True),
        (ORGANS[1], "hard_dice", False),
    ]
    assert [one.map[0, 0] for one in named] == [0, 1, 2, 3]
    assert [one.details["r2"] for one in named] == [0.1, 0.2, 0.3, 0.4]


@pytest.mark.parametrize("shape", [(128, 100), (512, 512), (700, 900)])
def test_grids_lead_there_and_back(shape):
    mask = np.zeros(shape, bool)
    mask[shape[0] // 4 : shape[0] // 2, shape[1] // 3 :] = True
    canonical = to_canonical_mask(mask)
    assert canonical.shape == (512, 512)
    back = to_slice_grid(np.where(canonical, 2.5, np.nan), shape)
    assert set(np.unique(back[np.isfinite(back)])) == {2.5}
    assert (np.isfinite(back) != mask).mean() < 0.01
    image = to_canonical_image(mask.astype(np.uint8) * 200)
    assert image.dtype == np.uint8
    assert abs(image.mean() - mask.mean() * 200) < 2
