"""Which slices show the most of the organs: the rule, the search, and the two that it serves."""

from __future__ import annotations

from itertools import pairwise

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import xaiclip
from xaiclip.data.found import STEP_MM, first_step, most_shown
from xaiclip.data.sheet import Case
from xaiclip.data.slices import read_planes, take_slices, window_mr
from xaiclip.errors import CaseError, ConfigError
from xaiclip.localizer import locating
from xaiclip.localizer.locating import Locator
from xaiclip.masks.roi import RoiSettings
from xaiclip.organs import SIX_CLASSES
from xaiclip.preprocess import PreprocessSettings

SETTINGS = {
    "classes": ["background", "spleen", "right kidney", "liver"],
    "labels": {1: "liver", 2: "spleen", 7: "right kidney"},
    "window": {"level": 40, "width": 400},
    "percentiles": {"low": 0.5, "high": 99.5},
    "policy": "found",
    "index": None,
    "every": 1,
}


class Searched:
    """Areas, and which slices were asked for."""

    def __init__(self, areas):
        self.areas, self.looks = np.asarray(areas, float), []

    def __call__(self, indices):
        self.looks += indices
        return self.areas[list(indices)]


def best(areas, **options):
    return most_shown(Searched(areas), len(areas), **options)


@pytest.mark.parametrize(
    ("areas", "index"),
    [
        # two organs are more than one, however large that is
        ([[0.3, 0], [0.1, 0.01], [0.2, 0]], 1),
        # among as many, each counts by its own largest area: the small one as much as the large
        ([[0.30, 0.004], [0.20, 0.010], [0.15, 0.011]], 1),
        # less than a tenth of an organ's largest area is not the organ
        ([[0.30, 0.0], [0.0, 0.02], [0.04, 0.0022]], 2),
        ([[0.04, 0.0022], [0.30, 0.0018], [0.0, 0.02]], 0),
        # nor is less than a thousandth of the slice
        ([[0.10, 0.0009], [0.30, 0.0], [0.0, 0.0]], 1),
        # but of nothing else, it is better than nothing
        ([[0.0, 0.0], [0.0, 0.0], [0.0002, 0.0]], 2),
        # of equal ones the lowest
        ([[0.0, 0.0], [0.2, 0.1], [0.2, 0.1]], 1),
    ],
)
def test_what_is_more(areas, index):
    assert best(areas) == [index]


def test_nothing_is_found_where_nothing_is_seen():
    assert best(np.zeros((9, 3))) == []
    assert best(np.zeros((9, 3)), step=4, count=3) == []


def hill(depth, *tops):
    """An area for each organ, that falls off from its top."""
    places = np.arange(depth)
    return np.stack([size * np.exp(-(((places - top) / 9.0) ** 2)) for top, size in tops], axis=1)


def test_several_slices_lie_apart():
    areas = hill(60, (20, 0.2), (24, 0.02))
    assert best(areas, count=3) == [21, 22, 23]
    assert best(areas, count=3, apart=5) == [17, 22, 27]
    assert best(areas[:4], count=9) == [0, 1, 2, 3]
    assert best(np.diag([0.1, 0, 0.1, 0, 0])[:, [0, 2]], count=4) == [0, 2]


def test_a_search_by_steps_looks_at_few_slices_once_and_finds_the_same():
    areas = hill(121, (70, 0.2), (75, 0.01), (79, 0.05))
    search = Searched(areas)
    assert most_shown(search, 121, step=11) == best(areas)
    assert len(search.looks) == len(set(search.looks)) < 25
    assert search.looks[:11] == list(range(5, 121, 11))  # as far from either end


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 40),
    st.integers(1, 12),
    st.integers(1, 3),
    st.integers(1, 6),
    st.integers(0, 2**32 - 1),
)
def test_no_neighbour_of_a_choice_shows_more(depth, step, count, apart, seed):
    rng = np.random.default_rng(seed)
    areas = rng.random((depth, 3)) * (rng.random((depth, 3)) < 0.5)
    search = Searched(areas)
    chosen = most_shown(search, depth, step=step, count=count, apart=apart)
    assert len(chosen) <= count
    assert chosen == sorted(chosen)
    assert all(b - a >= apart for a, b in pairwise(chosen))
    around = {k + move for k in chosen for move in (-1, 1)} & set(range(depth))
    assert around <= set(search.looks)  # so none of them is better
    if step == 1:
        assert set(search.looks) == set(range(depth))


@pytest.mark.parametrize(
    ("spacing", "depth", "step"),
    [(3.0, 112, 5), (1.0, 500, 15), (0.6, 900, 25), (20.0, 30, 1), (1.0, 20, 5), (1.0, 3, 1),
     (None, 300, 1)],
)  # fmt: skip
def test_the_first_look_steps_over_millimetres(spacing, depth, step):
    assert first_step(spacing, depth) == step
    assert spacing is None or step == 1 or step * spacing <= STEP_MM


# --- of a case ---------------------------------------------------------------------------------

#: Stored with the second axis to the feet, the third to the left.
AFFINE = np.array([[0, 0, -2.0, 40], [3.0, 0, 0, -20], [0, -4.0, 0, 90], [0, 0, 0, 1]])
DEPTH = 13


def organs(depth=DEPTH):
    """(X, Y, Z) ids: the kidney is in slices 3 to 5, the liver in 4 to 11, the spleen in 5 to 8."""
    label = np.zeros((45, 38, depth), np.uint8)
    label[5:25, 6:30, 4:12] = 1
    label[30:40, 20:34, 5:9] = 2
    label[8:16, 31:37, 3:6] = 7
    return label


@pytest.fixture
def scan(tmp_path):
    """A CT whose organs are bright, and its label."""
    label = organs()
    image = np.where(label > 0, 150 - 30.0 * (label == 2) - 60.0 * (label == 7), -80)
    image += np.random.default_rng(2).normal(0, 5, image.shape)
    for name, array in (("image", image.astype(np.int16)), ("label", label)):
        stored = np.transpose(array[::-1, :, ::-1], (1, 2, 0))
        nib.save(nib.Nifti1Image(stored, AFFINE), tmp_path / f"{name}.nii.gz")
    return tmp_path


def case_of(folder, labelled=False):
    label = folder / "label.nii.gz" if labelled else None
    return Case("case", folder / "image.nii.gz", label, "CT", "test")


def test_a_label_tells_without_a_localizer(scan):
    def never(_):
        pytest.fail("the label tells")

    taken = take_slices(case_of(scan, labelled=True), SETTINGS, never)
    assert [item.index for item in taken.slices] == [5]  # the only one with all three
    several = {**SETTINGS, "count": 2, "every": 3}
    assert [one.index for one in take_slices(case_of(scan, True), several).slices] == [5, 8]


def test_without_a_label_what_finds_is_asked_for_what_is_shown(scan):
    asked = []

    def find(planes):
        asked.append((len(planes), planes.spacing, planes[5]))
        return [2, 9]

    taken = take_slices(case_of(scan), SETTINGS, find)
    assert [item.index for item in taken.slices] == [2, 9]
    ((depth, spacing, shown),) = asked
    assert (depth, spacing) == (DEPTH, 4.0)
    (same,) = take_slices(case_of(scan), {**SETTINGS, "policy": "index", "index": 5}).slices
    np.testing.assert_array_equal(shown, same.image)


def test_of_a_single_slice_nothing_is_searched(tmp_path):
    image = np.random.default_rng(0).normal(40, 60, (31, 22, 1)).astype(np.int16)
    nib.save(nib.Nifti1Image(image, np.diag([-2, -2, 5, 1.0])), tmp_path / "image.nii.gz")
    taken = take_slices(case_of(tmp_path), SETTINGS, lambda _: pytest.fail("there is but one"))
    assert [item.index for item in taken.slices] == [0]


def test_a_case_of_which_nothing_is_found_is_left_out(scan):
    def find(_):
        raise CaseError("the localizer finds no liver in any slice.")

    taken = take_slices(case_of(scan), SETTINGS, find)
    assert taken.slices == []
    assert [skip.reason for skip in taken.skips] == [
        "image: the localizer finds no liver in any slice."
    ]


def test_slices_of_an_mr_share_the_limits_of_the_volume(tmp_path):
    volume = np.random.default_rng(1).gamma(2, 90, (20, 17, 6)).astype(np.float32)
    volume[:, :, 4] *= 3
    nib.save(nib.Nifti1Image(volume, np.diag([2, 3, 5, 1.0])), tmp_path / "image.nii.gz")
    planes = read_planes(Case("m", tmp_path / "image.nii.gz", None, "MR", "test"), SETTINGS)
    whole = window_mr(volume, 0.5, 99.5)
    for index in range(6):
        np.testing.assert_array_equal(planes[index], whole[::-1, ::-1, index].T)


# --- by the localizer --------------------------------------------------------------------------


class Painted:
    """A localizer that sees an organ where the slice has its grey value."""

    classes = ("background", "spleen", "right kidney", "liver")


GREYS = {"spleen": 178.5, "right kidney": 159, "liver": 197.5}


@pytest.fixture
def locator(monkeypatch):
    """A `Locator` of `Painted`; ``seen`` holds how many slices each forward had."""
    seen = []

    def predict(_, images, batch_size=16, shifts=()):
        seen.append(len(images))
        assert images.dtype == np.uint8
        assert len(shifts) == 1
        near = [np.abs(images - np.float32(grey)) < 9.5 for grey in GREYS.values()]
        return np.stack([~np.any(near, axis=0), *near], axis=1).astype(np.float32)

    monkeypatch.setattr(locating, "predict", predict)
    made = object.__new__(Locator)
    made.localizer = Painted
    made.settings = PreprocessSettings(low=0, high=100, clip=0, background_threshold=0)
    made.roi = RoiSettings()
    made.seen = seen
    return made


@pytest.fixture
def planes(scan, monkeypatch):
    monkeypatch.setattr(locating, "preprocess", plain)
    return read_planes(case_of(scan), SETTINGS)


def plain(image, settings):
    from xaiclip.preprocess import Letterbox

    box = Letterbox.fit(image.shape, settings.size)
    return box.apply(image, nearest=True), box


def test_the_localizer_finds_the_slice_with_all_organs(locator, planes):
    assert locator.find(planes, list(GREYS)) == [5]
    assert locator.find(planes, ["liver"])[0] in range(4, 12)
    first, second = locator.find(planes, ["right kidney", "spleen"], count=2, apart=2)
    assert (first, second) in ((3, 5), (5, 7), (5, 8))


def test_areas_are_shares_of_the_slice(locator, planes):
    (found,) = locator._areas([planes[5]], [1, 2, 3])
    wanted = [(organs()[:, :, 5] == number).mean() for number in (2, 7, 1)]
    np.testing.assert_allclose(found, wanted, rtol=0.08)


@pytest.mark.parametrize(
    "roi", [RoiSettings(rule="top_fraction"), RoiSettings(min_pixels=60), RoiSettings(sigma=0)]
)
def test_whatever_the_rule_an_organ_has_the_area_that_it_has(locator, planes, roi):
    locator.roi = roi
    assert locator.find(planes, list(GREYS)) == [5]


def test_a_region_that_counts_as_empty_is_not_found(locator, planes):
    locator.roi = RoiSettings(min_pixels=100)  # the kidney has 48, the spleen 140
    assert locator.find(planes, ["right kidney", "spleen"]) == [5]
    assert locator._areas([planes[5]], [2]) == 0
    with pytest.raises(CaseError, match="finds no right kidney in any slice: say which"):
        locator.find(planes, ["right kidney"])


def test_memory_does_not_grow_with_the_scan(locator, planes, monkeypatch):
    monkeypatch.setattr(locating, "first_step", lambda *_: 1)
    locator.find(planes, ["liver"])
    assert locator.seen == [8, 5]


def test_of_a_single_plane_the_localizer_is_not_asked(locator, tmp_path):
    nib.save(
        nib.Nifti1Image(np.ones((9, 8, 1), np.int16), np.diag([-2, -2, 5, 1.0])),
        tmp_path / "image.nii.gz",
    )
    assert locator.find(read_planes(case_of(tmp_path), SETTINGS), ["liver"]) == [0]
    assert locator.seen == []


def test_find_slice_is_load_image_where_the_localizer_finds(locator, planes, scan):
    path = scan / "image.nii.gz"
    found = xaiclip.find_slice(path, ["right kidney"], locator, modality="CT")
    assert found.index in (3, 4, 5)
    same = xaiclip.load_image(path, slice=found.index, modality="CT")
    np.testing.assert_array_equal(found.image, same.image)
    assert found.key == same.key
    assert xaiclip.find_slice(path, localizer=locator, modality="CT").index == 5
    assert xaiclip.find_slice(found) is found
    with pytest.raises(ConfigError, match="knows no heart; it knows spleen, right kidney, liver"):
        xaiclip.find_slice(path, ["heart"], locator)


def test_six_classes_are_the_shipped_localizers():
    assert Locator(device="cpu").classes == SIX_CLASSES
