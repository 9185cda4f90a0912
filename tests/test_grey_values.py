"""Whether grey values are what they are said to be; good scans of any kind raise no doubt."""

import numpy as np
import pytest
from scipy import ndimage

from compact import phantom
from xaiclip.data.grey_values import implausible

ORGANS = (1, 2, 3, 4, 13)


@pytest.fixture(scope="module")
def scans():
    """A CT and an MR phantom, with their labels."""
    return {kind: phantom.generate(7, kind) for kind in ("CT", "MR")}


def inner(volume):
    """Cropped to the organs."""
    box = ndimage.find_objects((np.isin(volume.label, ORGANS)).astype(int))[0]
    return volume.image[box]


GOOD = {
    "as it is": lambda a: a,
    "one slice": lambda a: a[:, :, a.shape[2] // 2],
    "padded": lambda a: np.where(a < -900, -3024, a),
    "padded in part": lambda a: np.where(np.indices(a.shape)[0] < 40, -2000, a),
    "air at -1000": lambda a: np.clip(a, -1000, None),
    "air at -200": lambda a: np.clip(a, -200, None),
    "clipped to the window": lambda a: np.clip(a, -160, 240),
    "without air": lambda a: np.where(a < -500, 0, a),
    "metal": lambda a: np.where(np.indices(a.shape)[0] % 50 == 0, 32767, a),
    "contrast": lambda a: np.where((a > 20) & (a < 200), a + 120, a),
    "real": lambda a: a.astype(np.float32) + 0.3,
}
BAD = {
    "1024 added": (lambda a: a + 1024, "was 1024 added"),
    "1024 added, clipped": (lambda a: np.clip(a + 1024, 0, 4095).astype(np.uint16), "was 1024"),
    "1024 added, padded": (lambda a: np.where(a < -900, -2000, a + 1024), "was 1024 added"),
    "1024 added, air filled": (lambda a: np.where(a < -900, -1000, a + 1024), "was 1024 added"),
    "1000 added": (lambda a: a + 1000, "was 1024 added"),
    "32768 added": (lambda a: a.astype(int) + 32768, "not Hounsfield units"),
    "1024 taken twice": (lambda a: a - 1024, "taken twice"),
    "0 to 1": (lambda a: (np.clip(a, -160, 240) + 160) / 400, "normalised"),
    "-1 to 1": (lambda a: (np.clip(a, -160, 240) - 40) / 200, "normalised"),
    "by mean and deviation": (lambda a: (a - a.mean()) / a.std(), "normalised"),
    "0 to 255": (lambda a: (np.clip(a, -160, 240) + 160) / 400 * 255, "as dark as fat"),
    "wrapped": (lambda a: np.ascontiguousarray(a).view(np.uint16), "wrapped"),
    "ten times": (lambda a: a * 10.0, "should be tissue"),
    "attenuation": (lambda a: (a / 1000 + 1) * 0.19, "normalised"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", GOOD)
def test_good_scans_raise_no_doubt(scans, name):
    change = GOOD[name]
    assert implausible(change(scans["CT"].image.astype(np.int16)), "CT") is None


@pytest.mark.parametrize("name", ["as it is", "air at -200", "clipped to the window", "contrast"])
def test_tightly_cropped_scans_raise_no_doubt(scans, name):
    cropped = inner(scans["CT"])
    assert cropped.size < 0.5 * scans["CT"].image.size
    assert implausible(GOOD[name](cropped.astype(np.int16)), "CT") is None


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("cropped", [False, True])
def test_grey_values_that_are_no_hu(scans, name, cropped):
    change, words = BAD[name]
    array = (inner(scans["CT"]) if cropped else scans["CT"].image).astype(np.int16)
    reason = implausible(change(array), "CT")
    assert reason is not None
    assert reason.endswith(".")
    if not cropped:
        assert words in reason


def test_modalities_taken_for_each_other(scans):
    assert "correct the modality" in implausible(scans["CT"].image, "MR")
    assert "correct the modality" in implausible(scans["MR"].image, "CT")
    mr = scans["MR"].image.astype(np.float32)
    for values in (mr, mr * 1e-9, mr * 100, mr - 50, (mr - mr.mean()) / mr.std()):
        assert implausible(values, "MR") is None


def test_a_constant_or_tiny_array_raises_nothing_else():
    for array in (np.zeros((3, 3, 1)), np.full((2, 2, 2), -2000), np.array([[[-3000, 5]]])):
        for modality in ("CT", "MR"):
            assert implausible(array, modality) is None or array.size == 2
