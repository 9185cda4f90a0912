import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from xaiclip.explain.values import VALUES, boundary_dice, explained

MASK = torch.zeros(1, 4, 4)
MASK[0, :2] = 1  # 8 of 16 pixels

EMPTY = torch.zeros(1, 1, 4, 4)
LEFT = torch.zeros(1, 1, 4, 4)
LEFT[..., :2] = 1  # 4 pixels inside, 4 outside


@pytest.mark.parametrize(
    ("name", "probability", "expected"),
    [
        ("soft_dice", MASK[None], 1.0),
        ("soft_dice", EMPTY, 0.0),
        ("soft_dice", LEFT, 0.5),
        ("soft_dice", MASK[None] * 0.5, 2 * 4 / (4 + 8)),
        ("hard_dice", MASK[None] * 0.6, 1.0),
        ("hard_dice", MASK[None] * 0.5, 0.0),
        ("hard_iou", LEFT, 4 / 12),
        ("in_mask_probability", MASK[None] * 0.3, 0.3),
        ("in_mask_probability", torch.ones(1, 1, 4, 4), 1.0),
        ("boundary_dice", MASK[None], 1.0),
        ("boundary_dice", EMPTY, 0.0),
        ("false_positive_area", LEFT, 0.5),
        ("false_positive_area", torch.ones(1, 1, 4, 4), 1.0),
        ("false_positive_area", MASK[None], 0.0),
    ],
)
def test_known_values(name, probability, expected):
    assert VALUES[name](probability, MASK).item() == pytest.approx(expected)


@given(st.integers(0, 2**31))
@settings(deadline=None)
def test_ranges_and_identities(seed):
    generator = torch.Generator().manual_seed(seed)
    probability = torch.rand(3, 2, 16, 16, generator=generator)
    mask = (torch.rand(2, 16, 16, generator=generator) > 0.6).float()
    mask[:, 0, 0] = 1
    got = {name: function(probability, mask) for name, function in VALUES.items()}
    for name, value in got.items():
        assert value.shape == (3, 2)
        assert (value >= 0).all()
        assert name == "false_positive_area" or (value <= 1 + 1e-6).all()
    dice = got["hard_dice"]
    torch.testing.assert_close(got["hard_iou"], dice / (2 - dice))
    for b in range(3):
        for o in range(2):
            p, m = probability[b, o], mask[o]
            torch.testing.assert_close(got["soft_dice"][b, o], 2 * (p * m).sum() / (p + m).sum())
            hard = p > 0.5
            union = (hard | (m > 0)).sum()
            torch.testing.assert_close(got["hard_iou"][b, o], (hard & (m > 0)).sum() / union)


def test_boundary_sees_the_edge_only():
    mask = torch.zeros(1, 128, 128)
    mask[0, 32:96, 32:96] = 1
    hole, shaved = mask.clone(), mask.clone()
    hole[0, 60:68, 60:68] = 0
    shaved[0, 32:33] = 0
    assert boundary_dice(hole[None], mask).item() == 1
    assert boundary_dice(shaved[None], mask).item() < 1


@pytest.mark.parametrize(("height", "width", "reach"), [(128, 64, 2), (64, 256, 1), (32, 90, 1)])
def test_the_band_reaches_as_far_as_the_height_says(height, width, reach):
    """What is missed at the band's last row counts, what is missed one row further in does not."""
    mask = torch.zeros(1, height, width)
    mask[0, height // 4 : -height // 4, width // 4 : -width // 4] = 1
    for row, seen in ((height // 4 + reach - 1, True), (height // 4 + reach, False)):
        missed = mask.clone()
        missed[0, row, width // 2] = 0
        assert (boundary_dice(missed[None], mask).item() < 1) == seen
    for row, seen in ((height // 4 - reach, True), (height // 4 - reach - 1, False)):
        more = mask.clone()
        more[0, row, width // 2] = 1
        assert (boundary_dice(more[None], mask).item() < 1) == seen


def test_which_values_get_a_map():
    assert explained(("hard_dice", "soft_dice")) == ("hard_dice", "soft_dice")
    assert explained(("soft_dice", "in_mask_probability", "hard_iou")) == (
        "soft_dice",
        "in_mask_probability",
    )
    assert explained(("hard_iou",)) == ("hard_iou",)
