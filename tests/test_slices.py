"""Slices: windows, labels, which ones are taken, what is left out and why, and their file."""

from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from xaiclip.data import slices as reading
from xaiclip.data.geometry import Geometry, Volume, display
from xaiclip.data.labels import map_labels
from xaiclip.data.record import load_slices, save_slices
from xaiclip.data.sheet import Case
from xaiclip.data.slices import choose_slices, take_slices, window_ct, window_mr
from xaiclip.data.volumes import restore
from xaiclip.errors import CaseError, Caution, Skip
from xaiclip.files import load_meta
from xaiclip.organs import FLARE22, SIX_CLASSES

LPS = np.array([[-2, 0, 0, 30], [0, -2, 0, 40], [0, 0, 5, 50], [0, 0, 0, 1.0]])
SETTINGS = {
    "classes": list(SIX_CLASSES),
    "labels": dict(FLARE22),
    "window": {"level": 40, "width": 400},
    "percentiles": {"low": 0.5, "high": 99.5},
    "policy": "middle_labelled",
    "index": None,
    "every": 1,
}


@pytest.fixture
def case(tmp_path):
    """A scan stored LPS: liver in slices 7 to 10 of 12, so none in the middle slice.

    The liver lies at the patient's right, so at low indices of the stored array.
    """
    rng = np.random.default_rng(0)
    image = rng.integers(-200, 300, (20, 16, 12)).astype(np.int16)
    label = np.zeros(image.shape, np.uint8)
    label[2:8, 4:9, 7:11] = 1
    label[12:15, 4:9, 9:11] = 3  # spleen
    label[9:11, 4:9, 2:11] = 5  # aorta: no class
    nib.save(nib.Nifti1Image(image, LPS), tmp_path / "image.nii.gz")
    nib.save(nib.Nifti1Image(label, LPS), tmp_path / "label.nii.gz")
    return Case("case", tmp_path / "image.nii.gz", tmp_path / "label.nii.gz", "CT", "test")


def take(case, **settings):
    return take_slices(case, {**SETTINGS, **settings})


def test_window_ct():
    hu = np.array([-3000, -160, 40, 240, 3000], np.int16)
    assert window_ct(hu, 40, 400).tolist() == [0, 0, 128, 255, 255]
    assert window_ct(np.array([0.0, 50, 100]), 50, 100).tolist() == [0, 128, 255]


def test_window_mr_uses_percentiles_of_the_non_zero_voxels():
    volume = np.zeros((10, 10, 11))
    volume.ravel()[:1001] = np.arange(1001)
    grey = window_mr(volume, 10, 90)
    assert grey[volume < 100].max() == 0
    assert grey[volume > 902].min() == 255
    assert abs(int(grey.ravel()[500]) - 127) <= 1


@pytest.mark.parametrize("value", [0, 7, -3])
def test_window_mr_of_a_constant_volume_is_black(value):
    assert not window_mr(np.full((4, 4, 4), value, np.float32), 0.5, 99.5).any()


@settings(deadline=None)
@given(
    hnp.arrays(np.float32, (3, 4, 5), elements=st.floats(-1e6, 1e6, width=32)),
)
def test_windows_keep_the_order_of_grey_values(volume):
    order = np.argsort(volume, axis=None)
    for grey in (window_ct(volume, 40, 400), window_mr(volume, 0.5, 99.5)):
        assert grey.dtype == np.uint8
        assert (np.diff(grey.ravel()[order].astype(int)) >= 0).all()


def labelled(*ids):
    array = np.array(ids, np.int32).reshape(1, 1, -1)
    return Volume(array, Geometry(np.eye(4), array.shape), "label.nii")


def test_labels_become_class_indices():
    mapped = map_labels(labelled(0, 1, 2, 3, 4, 13, 5), FLARE22, SIX_CLASSES)
    assert mapped.dtype == np.uint8
    assert mapped.ravel().tolist() == [0, 1, 2, 4, 5, 3, 0]
    with pytest.raises(CaseError, match=r"label\.nii: holds the label ids 14, 2000000000, which"):
        map_labels(labelled(0, 1, 14, 2_000_000_000), FLARE22, SIX_CLASSES)


def filled(depth, *indices):
    labels = np.zeros((2, 2, depth), np.uint8)
    labels[0, 0, list(indices)] = 1
    return labels


@pytest.mark.parametrize(
    ("policy", "labels", "options", "chosen"),
    [
        ("middle", None, {}, [5]),
        ("middle", filled(10, 1), {}, [5]),
        ("index", None, {"index": 0}, [0]),
        ("index", None, {"index": 9}, [9]),
        ("middle_labelled", filled(10, 6, 7, 8), {}, [7]),
        ("middle_labelled", filled(10, 1, 2, 8), {}, [2]),  # the very middle, 4, is empty
        ("all", filled(10, 2, 3, 5, 8), {"every": 2}, [2, 5]),
        ("all", None, {"every": 4}, [0, 4, 8]),
    ],
)
def test_policies(policy, labels, options, chosen):
    assert choose_slices(policy, 10, labels, **options) == chosen


@pytest.mark.parametrize(
    ("policy", "labels", "options"),
    [
        ("middle", None, {}),
        ("index", None, {"index": 5}),
        ("middle_labelled", filled(1, 0), {}),
        ("middle_labelled", None, {}),
        ("all", filled(1), {"every": 5}),
    ],
)
def test_every_policy_takes_a_single_slice(policy, labels, options):
    assert choose_slices(policy, 1, labels, **options) == [0]


@pytest.mark.parametrize(
    ("policy", "labels", "options", "words"),
    [
        ("index", None, {"index": 10}, "no slice 10"),
        ("index", None, {"index": -1}, "no slice -1"),
        ("index", None, {}, "no slice None"),
        ("middle_labelled", None, {}, "needs"),
        ("middle_labelled", filled(10), {}, "none of the wanted organs"),
        ("all", filled(10), {}, "none of the wanted organs"),
    ],
)
def test_policies_that_pick_nothing(policy, labels, options, words):
    with pytest.raises(CaseError, match=words):
        choose_slices(policy, 10, labels, **options)


def test_unknown_policy():
    with pytest.raises(ValueError, match="unknown slice policy 'best'"):
        choose_slices("best", 10, None)


def test_taken_slices(case):
    (one,), skips, _ = take(case)
    assert (one.case, one.index, one.modality, one.key) == ("case", 8, "CT", "case/8")
    assert one.image.shape == one.label.shape == (16, 20)
    assert one.image.dtype == one.label.dtype == np.uint8
    assert one.spacing == (2, 2)
    # LPS is the display's own order: columns from the patient's right, rows from the front
    stored = nib.load(case.image).get_fdata()[:, :, 8].T
    np.testing.assert_array_equal(one.image, window_ct(stored, 40, 400))
    assert np.argwhere(one.label == 1)[:, 1].max() < 10  # the liver is at the right, shown left
    assert {skip.organ for skip in skips} == set(SIX_CLASSES[2:])
    assert all((skip.case, skip.stage, skip.slice) == ("case", "slices", 8) for skip in skips)
    assert len(take(case, policy="all", every=2)[0]) == 2


def test_a_training_slice_without_an_organ_is_nothing_left_out(case):
    slices, skips, _ = take(replace(case, split="train"), policy="all")
    assert len(slices) == 4
    assert skips == []


def test_a_slice_without_a_wanted_organ_is_left_out(case):
    slices, (skip,), _ = take(case, policy="middle")
    assert slices == []
    assert skip.slice == 6
    assert skip.organ is None
    assert "none of the wanted organs" in skip.reason


def test_without_label_every_slice_with_content_is_taken(case):
    unlabelled = replace(case, label=None)
    slices, skips, _ = take(unlabelled, policy="all", every=5)
    assert [one.index for one in slices] == [0, 5, 10]
    assert all(one.label is None for one in slices)
    assert skips == []
    _, (skip,), _ = take(unlabelled)
    assert "image: has no label" in skip.reason


@pytest.mark.parametrize("value", [-1000, 40, 3000])
def test_a_constant_slice_is_left_out(case, value):
    image = nib.load(case.image)
    array = np.asarray(image.dataobj).copy()
    array[:, :, 3] = value
    nib.save(nib.Nifti1Image(array, LPS), case.image)
    slices, (skip,), _ = take(replace(case, label=None), policy="index", index=3)
    assert slices == []
    assert skip.slice == 3
    assert "constant" in skip.reason


def test_mr(case):
    (one,), _, _ = take(replace(case, modality="MR"))
    assert one.image.min() == 0
    assert one.image.max() == 255


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda case: case.image.unlink(), "image: there is no such file"),
        (lambda case: case.image.write_bytes(b"x"), "image: not a readable NIfTI"),
        (lambda case: case.label.write_bytes(b"x"), "label: not a readable NIfTI"),
        (
            lambda case: nib.save(nib.Nifti1Image(np.ones((20, 16, 5)), LPS), case.label),
            "label: its grid (20, 16, 5) differs",
        ),
        (
            lambda case: nib.save(nib.Nifti1Image(np.full((20, 16, 12), 99.0), LPS), case.label),
            "label: holds the label ids 99",
        ),
        (
            lambda case: nib.save(nib.Nifti1Image(np.zeros((20, 16, 12)), LPS), case.label),
            "none of the wanted organs",
        ),
    ],
)
def test_a_bad_case_is_left_out_with_its_reason(case, spoil, words):
    spoil(case)
    slices, (skip,), _ = take(case)
    assert slices == []
    assert (skip.case, skip.stage, skip.slice, skip.organ) == ("case", "slices", None, None)
    assert words in skip.reason


def test_a_reason_names_no_path(case):
    """A path may hold a patient's name; the reason is published."""
    for spoilt in (case.label, case.image):
        spoilt.write_bytes(b"x")
        (skip,) = take(case).skips
        assert str(case.image.parent) not in skip.reason
        assert skip.reason.endswith(".")


def test_whatever_goes_wrong_is_the_cases_own(case, monkeypatch, caplog):
    def fail(*_, **__):
        raise ZeroDivisionError("nobody foresaw this")

    monkeypatch.setattr("xaiclip.data.slices.read_volume", fail)
    taken = take(case)
    assert taken.slices == []
    (skip,) = taken.skips
    assert skip.reason.startswith("unexpected: ZeroDivisionError")
    assert "nobody foresaw this" in caplog.text

    monkeypatch.setattr("xaiclip.data.slices.read_volume", lambda *_, **__: np.ones(2**50))
    assert "does not fit into memory" in take(case).skips[0].reason


def test_height_and_width_of_a_pixel(tmp_path):
    """Unequal ones, stored in another order than they are shown."""
    array = np.random.default_rng(0).integers(-200, 300, (6, 20, 16)).astype(np.int16)
    affine = np.array([[0, 1.5, 0, 3], [0, 0, -2.5, 4], [5, 0, 0, 5], [0, 0, 0, 1.0]])
    nib.save(nib.Nifti1Image(array, affine), tmp_path / "image.nii")  # stored S, R, P
    case = Case("case", tmp_path / "image.nii", None, "CT", "test")
    (one,) = take(case, policy="index", index=2).slices
    assert one.image.shape == (16, 20)
    assert one.spacing == (2.5, 1.5)
    np.testing.assert_array_equal(one.image, window_ct(array[2, ::-1, :].T, 40, 400))


def test_what_looks_wrong_is_told_or_refused(case):
    assert take(case).warnings == []
    image = nib.load(case.image)
    shifted = (np.asarray(image.dataobj) + 230).astype(np.uint16)
    nib.save(nib.Nifti1Image(shifted, image.affine), case.image)
    slices, _, (warning,) = take(case)
    assert len(slices) == 1
    assert (warning.case, warning.stage) == ("case", "slices")
    assert warning.reason.startswith("image: its grey values are not Hounsfield units")
    slices, (skip,), warnings = take(case, implausible="refuse")
    assert (slices, warnings) == ([], [])
    assert skip.reason == warning.reason
    assert take(replace(case, modality="MR")).warnings == []


def test_what_a_label_tells_is_never_refused(case, monkeypatch):
    """It tells how the label was read; only grey values can be of another scan."""
    read = reading.read_classes

    def told(*arguments, **options):
        return read(*arguments, **options)[0], ["was told in words"]

    monkeypatch.setattr(reading, "read_classes", told)
    for implausible in ("warn", "refuse"):
        taken = take(case, implausible=implausible)
        assert len(taken.slices) == 1
        assert [one.reason for one in taken.warnings] == ["label: was told in words"]


def test_an_orientation_is_for_files_that_tell_none(case):
    told = take(case).slices[0]
    assert told.geometry.measured
    for file in (case.image, case.label):
        image = nib.load(file)
        image.set_sform(None, 0)
        image.set_qform(None, 0)
        nib.save(image, file)
    assert "data.orientation" in take(case).skips[0].reason
    (said,) = take(case, orientation="LPS").slices
    np.testing.assert_array_equal(said.image, told.image)
    np.testing.assert_array_equal(said.label, told.label)
    assert said.spacing == told.spacing  # pixdim tells it
    (mirrored,) = take(case, orientation="RPS").slices
    np.testing.assert_array_equal(mirrored.image, told.image[:, ::-1])


def test_a_ct_of_eight_bits_is_taken_as_it_is_and_a_dark_mr_is_not(case):
    shown = np.random.default_rng(0).integers(0, 256, (20, 16, 12)).astype(np.uint8)
    nib.save(nib.Nifti1Image(shown, LPS), case.image)
    (one,), _, (warning,) = take(case)
    np.testing.assert_array_equal(one.image, shown[:, :, 8].T)
    assert "8 bits" in warning.reason
    dark = np.random.default_rng(0).integers(1, 61, (20, 16, 12)).astype(np.uint8)
    nib.save(nib.Nifti1Image(dark, LPS), case.image)
    (one,), _, warnings = take(replace(case, modality="MR"))
    low, high = np.percentile(dark, (0.5, 99.5))
    wanted = np.rint(np.clip((dark[:, :, 8].T - low) / (high - low), 0, 1) * 255)
    np.testing.assert_array_equal(one.image, wanted)
    assert warnings == []


def test_half_of_a_case_is_none(case, monkeypatch):
    """What fails at the third slice leaves no slice of the first two."""
    shown = iter(range(5))

    def fail(plane):
        if next(shown) == 4:
            raise ZeroDivisionError
        return display(plane)

    monkeypatch.setattr("xaiclip.data.slices.display", fail)
    taken = take(case, policy="all")
    assert taken.slices == []
    assert taken.skips[-1].reason.startswith("unexpected: ZeroDivisionError")
    assert (taken.skips[-1].slice, taken.skips[-1].organ) == (None, None)


def test_maps_go_back_to_the_scan(case):
    slices, _, _ = take(case, policy="all")
    back = restore({one.index: one.label for one in slices}, slices[0].geometry)
    label = nib.load(case.label)
    np.testing.assert_array_equal(back.affine, label.affine)
    ids = np.asarray(label.dataobj)
    got = back.get_fdata()
    assert np.isnan(got[:, :, :7]).all()
    np.testing.assert_array_equal(got[:, :, 7:11] == 1, ids[:, :, 7:11] == 1)
    np.testing.assert_array_equal(got[:, :, 7:11] == 4, ids[:, :, 7:11] == 3)


def test_file_of_a_batch(case, tmp_path):
    slices, skips, _ = take(case, policy="all")
    slices += take(replace(case, name="other", label=None), policy="middle")[0]
    slices.append(replace(slices[0], index=3, geometry=replace(slices[0].geometry, measured=False)))
    save_slices(tmp_path / "batch.npz", slices, skips, [Caution("case", "slices", "hm")])
    assert load_meta(tmp_path / "batch.npz")["warnings"] == [
        {"case": "case", "stage": "slices", "reason": "hm"}
    ]
    got, got_skips = load_slices(tmp_path / "batch.npz")
    assert got_skips == skips
    assert [one.key for one in got] == [one.key for one in slices]
    for a, b in zip(got, slices, strict=True):
        np.testing.assert_array_equal(a.image, b.image)
        np.testing.assert_array_equal(a.geometry.affine, b.geometry.affine)
        assert a.geometry.shape == b.geometry.shape
        assert a.geometry.measured == b.geometry.measured
        assert a.modality == b.modality
        if b.label is None:
            assert a.label is None
        else:
            np.testing.assert_array_equal(a.label, b.label)
    save_slices(tmp_path / "empty.npz", [], [Skip("x", "slices", "why")])
    assert load_slices(tmp_path / "empty.npz") == ([], [Skip("x", "slices", "why")])
