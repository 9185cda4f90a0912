"""The record of a slice and its file; the file of the segmenter's masks."""

import numpy as np
import pytest

from xaiclip.data.geometry import Geometry
from xaiclip.data.record import (
    Slice,
    SliceName,
    load_slice,
    load_slices,
    save_slices,
    slice_names,
)
from xaiclip.errors import Skip
from xaiclip.masks.segmented import open_masks, save_masks

PLACES = [("b", 3), ("a", 3), ("b", 11), ("c", 0)]  # not the alphabet's order


def drawn(case, index):
    """A slice that nothing is symmetric in: sides, spacing, axes."""
    rng = np.random.default_rng([index, ord(case)])
    affine = np.array([[1.5, 0.1, 0, 7], [-0.2, 2.5, 0.3, -8], [0, 0.4, 4, 9], [0, 0, 0, 1.0]])
    label = None if case == "a" else rng.integers(0, 4, (7, 10), dtype=np.uint8)
    image = rng.integers(0, 255, (7, 10), dtype=np.uint8)
    geometry = Geometry(affine, (10, 7, 12), measured=case != "c")
    return Slice(case, index, "MR" if case == "b" else "CT", image, label, geometry)


@pytest.fixture
def stored(tmp_path):
    slices = [drawn(*place) for place in PLACES]
    save_slices(tmp_path / "slices.npz", slices, [Skip("d", "slices", "is truncated")])
    return tmp_path / "slices.npz", slices


def same(one, other):
    assert (one.case, one.index, one.key) == (other.case, other.index, other.key)
    assert one.modality == other.modality
    np.testing.assert_array_equal(one.image, other.image)
    assert (one.label is None) == (other.label is None)
    if one.label is not None:
        np.testing.assert_array_equal(one.label, other.label)
    np.testing.assert_array_equal(one.geometry.affine, other.geometry.affine)
    assert one.geometry.shape == other.geometry.shape
    assert one.geometry.measured == other.geometry.measured
    assert one.spacing == other.spacing


def test_slices_come_back_whole_and_in_their_order(stored):
    path, slices = stored
    again, skips = load_slices(path)
    assert [one.key for one in again] == ["b/3", "a/3", "b/11", "c/0"]
    for one, other in zip(again, slices, strict=True):
        same(one, other)
    assert [(skip.case, skip.reason) for skip in skips] == [("d", "is truncated")]
    assert [name.key for name in slice_names(path)] == ["b/3", "a/3", "b/11", "c/0"]


def test_cases_and_slices_are_read_alone(stored):
    path, slices = stored
    assert [one.key for one in load_slices(path, {"b", "c"})[0]] == ["b/3", "b/11", "c/0"]
    assert load_slices(path, ())[0] == []
    for one in slices:  # two of one case, and two of one index
        same(load_slice(path, SliceName(one.case, one.index)), one)
    with pytest.raises(KeyError, match="a/11"):
        load_slice(path, SliceName("a", 11))


def test_height_and_width_of_a_pixel_are_row_and_column():
    height, width = drawn("b", 3).spacing
    assert height == pytest.approx(np.hypot(0.1, np.hypot(2.5, 0.4)))
    assert width == pytest.approx(np.hypot(1.5, 0.2))


def test_masks_are_told_apart_by_slice_organ_and_prompt(tmp_path):
    keys = [
        (SliceName(case, index), organ, prompt)
        for case, index in (("a", 1), ("a", 11), ("b", 1))
        for organ in ("spleen", "liver")
        for prompt in ("roi", "reference")
    ]
    rng = np.random.default_rng(0)
    masks = {key: rng.random((5, 9)) < 0.5 for key in keys}
    save_masks(tmp_path / "masks.npz", masks, [Skip("a", "segment", "no box", 1, "pancreas")])
    with open_masks(tmp_path / "masks.npz") as found:
        for (name, organ, prompt), mask in masks.items():
            again = found.of(SliceName(name.case, name.index), organ, prompt)
            assert again.dtype == bool
            np.testing.assert_array_equal(again, mask)
        assert found.of(SliceName("a", 1), "pancreas", "roi") is None
        assert [(skip.organ, skip.slice) for skip in found.skips] == [("pancreas", 1)]
