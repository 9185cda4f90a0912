import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis.extra.numpy import arrays
from monai.metrics import DiceMetric, MeanIoU, compute_average_surface_distance
from monai.metrics import compute_hausdorff_distance as monai_hausdorff

from xaiclip.metrics.overlap import dice, iou, surface_distances

MASKS = arrays(bool, (9, 7))


def one_hot(mask: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(mask.astype(np.float32))[None, None]


def same(a: float, b: float) -> bool:
    return (math.isnan(a) and math.isnan(b)) or a == pytest.approx(b, abs=1e-6)


@settings(deadline=None, max_examples=50)
@given(MASKS, MASKS)
def test_equal_to_monai(a: np.ndarray, b: np.ndarray) -> None:
    theirs_dice = DiceMetric(ignore_empty=True)(one_hot(a), one_hot(b)).item()
    theirs_iou = MeanIoU(ignore_empty=True)(one_hot(a), one_hot(b)).item()
    if b.any():  # MONAI leaves out an empty reference, whatever was predicted
        assert same(dice(a, b), theirs_dice)
        assert same(iou(a, b), theirs_iou)


@settings(deadline=None, max_examples=50)
@given(MASKS, MASKS)
def test_bounds_symmetry_and_the_tie_between_the_two(a: np.ndarray, b: np.ndarray) -> None:
    d, j = dice(a, b), iou(a, b)
    assert same(d, dice(b, a))
    if not math.isnan(d):
        assert 0 <= j <= d <= 1
        assert j == pytest.approx(d / (2 - d))


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ([0, 0], [0, 0], math.nan),
        ([1, 0], [0, 0], 0.0),
        ([0, 0], [0, 1], 0.0),
        ([1, 1], [1, 1], 1.0),
    ],
)
def test_empty_masks(a: list[int], b: list[int], expected: float) -> None:
    assert same(dice(np.array(a, bool), np.array(b, bool)), expected)
    assert same(iou(np.array(a, bool), np.array(b, bool)), expected)


def test_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="different shapes"):
        dice(np.ones((2, 2), bool), np.ones((1, 2), bool))


def test_surface_distances_equal_monai() -> None:
    rows, columns = np.mgrid[:40, :50]
    a = (rows - 18) ** 2 + (columns - 22) ** 2 < 90
    b = (rows - 21) ** 2 / 2 + (columns - 27) ** 2 < 110
    spacing = (0.8, 1.5)
    ours = surface_distances(a, b, spacing)
    hd95 = monai_hausdorff(one_hot(a), one_hot(b), True, percentile=95, spacing=spacing)
    assert ours["hd95_mm"] == pytest.approx(hd95.item(), rel=1e-5)
    assd = compute_average_surface_distance(
        one_hot(a), one_hot(b), True, symmetric=True, spacing=spacing
    )
    assert ours["assd_mm"] == pytest.approx(assd.item(), rel=1e-5)


@pytest.mark.parametrize(
    ("move", "spacing", "mm"),
    [
        ((3, 0), (1, 2), 3),
        ((0, 3), (1, 2), 6),
        ((3, 0), (0.7, 1.9), 2.1),
        ((0, 3), (0.7, 1.9), 5.7),
    ],
)
def test_distances_are_along_the_axis_of_their_spacing(move, spacing, mm) -> None:
    """A bar moved along its short side: every outline pixel is `move` away, in mm of that axis."""
    long = (1, 12) if move[0] else (12, 1)
    a, b = np.zeros((20, 24), bool), np.zeros((20, 24), bool)
    a[4 : 4 + long[0], 5 : 5 + long[1]] = True
    b[4 + move[0] : 4 + move[0] + long[0], 5 + move[1] : 5 + move[1] + long[1]] = True
    found = surface_distances(a, b, spacing)
    assert found == pytest.approx({"hd95_mm": mm, "assd_mm": mm})


def test_the_larger_of_the_two_directions_counts() -> None:
    """From a small mask to a large one around it, and back; percentiles of each by themselves."""
    small, large = np.zeros((1, 101), bool), np.zeros((1, 101), bool)
    small[0, :2], large[0, ::20] = True, True  # 2 outline pixels, and 6
    found = surface_distances(small, large)
    there, back = [0, 1], [0, 19, 39, 59, 79, 99]
    assert found["hd95_mm"] == pytest.approx(np.percentile(back, 95))
    assert found["assd_mm"] == pytest.approx((sum(there) + sum(back)) / 8)
    assert surface_distances(large, small) == found


def test_surface_distance_of_shifted_square() -> None:
    a, b = np.zeros((20, 20), bool), np.zeros((20, 20), bool)
    a[5:10, 5:10] = b[5:10, 8:13] = True
    assert surface_distances(a, b, (1, 2))["hd95_mm"] == 6
    assert surface_distances(a, a) == {"hd95_mm": 0, "assd_mm": 0}
    assert all(map(math.isnan, surface_distances(a, np.zeros_like(a)).values()))
