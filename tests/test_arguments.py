"""What `xaiclip.explain` is given, as the runner takes it: no model runs here."""

import numpy as np
import pytest
from torch import nn

from explain_fakes import FakeSegmenter
from xaiclip import arguments
from xaiclip.data.geometry import Geometry
from xaiclip.data.record import Slice
from xaiclip.errors import ConfigError
from xaiclip.masks.roi import Roi, RoiSettings, body_mask
from xaiclip.models.segmenters.fixed import FixedClassSegmenter

CLASSES = ["background", "spleen", "liver", "pancreas"]  # out of the alphabet's order
HEIGHT, WIDTH = 61, 87
SPOTS = {"spleen": (slice(20, 31), slice(40, 45)), "pancreas": (slice(2, 9), slice(70, 86))}


def drawn(label=True):
    image = np.zeros((HEIGHT, WIDTH), np.uint8)
    image[8:50, 10:70] = 120
    image[20:30, 30:40] = 180
    classes = np.zeros((HEIGHT, WIDTH), np.uint8)
    for organ, spot in SPOTS.items():
        classes[spot] = CLASSES.index(organ)
    geometry = Geometry(np.diag([2.0, 3.0, 5.0, 1.0]), (WIDTH, HEIGHT, 4), measured=True)
    return Slice("a", 3, "CT", image, classes if label else None, geometry)


def boxes(given, segmenter=None):
    return arguments.boxes_of(segmenter or FakeSegmenter(), drawn(), given, CLASSES)


def test_a_network_of_fixed_classes_sees_the_whole_slice():
    network = FixedClassSegmenter(nn.Identity(), {"liver": 2, "spleen": 0})
    found = boxes(None, network)
    assert list(found) == ["liver", "spleen"]
    for box in found.values():
        assert box.tolist() == [0, 0, WIDTH, HEIGHT]
    with pytest.raises(ConfigError, match="is told by boxes what to segment"):
        boxes(None)


def test_boxes_are_taken_as_they_are():
    roi = Roi(np.ones((HEIGHT, WIDTH), bool), np.array([1, 2, 3, 4], np.float32))
    nothing = Roi(np.zeros((HEIGHT, WIDTH), bool), None)
    given = {"liver": [-4, 3.5, 90, 61], "spleen": roi, "pancreas": nothing, "heart": None}
    found = boxes(given)
    assert list(found) == list(given)
    assert found["liver"].tolist() == [-4, 3.5, 90, 61]
    assert found["spleen"].tolist() == [1, 2, 3, 4]
    assert found["pancreas"] is found["heart"] is None


@pytest.mark.parametrize(
    ("box", "words"),
    [
        ((10, 5, 10, 9), "x0 must be below x1"),
        ((10, 9, 20, 9), "y0 below y1"),
        ((10, 12, 20, 9), "y0 below y1"),
        ((np.nan, 5, 12, 9), "x0 must be below x1"),
        ((-9, 5, 0, 9), "outside the slice of 87 × 61"),
        ((5, -9, 9, 0), "outside the slice"),
        ((WIDTH, 5, WIDTH + 4, 9), "outside the slice"),
        ((5, HEIGHT, 9, HEIGHT + 4), "outside the slice"),
        ((1, 2, 3), "give .x0, y0, x1, y1."),
        ("wrong", "give .x0, y0, x1, y1."),
    ],
)
def test_a_box_that_cannot_be_is_refused(box, words):
    with pytest.raises(ConfigError, match=rf"the box of liver is .*{words}"):
        boxes({"liver": box})


@pytest.mark.parametrize("box", [(70, 5, 86, 9), (5, 50, 9, 60)])
def test_a_box_may_lie_at_the_far_side(box):
    assert boxes({"liver": box})["liver"].tolist() == list(box)


def test_boxes_of_the_reference_have_the_workflows_margin():
    found = boxes("reference")
    margin = RoiSettings().margin
    assert margin > 0
    assert {name: box.tolist() for name, box in found.items()} == {
        "spleen": [40 - margin, 20 - margin, 45 + margin, 31 + margin],
        "pancreas": [70 - margin, 0, WIDTH, 9 + margin],  # inside the slice
    }
    with pytest.raises(ConfigError, match="the image has no label"):
        arguments.reference_boxes(drawn(label=False), CLASSES)
    for wrong, words in (("label", "or 'reference'"), ({}, "boxes are empty")):
        with pytest.raises(ConfigError, match=words):
            boxes(wrong)


def regions(rois=None, guidance=None, organs=("liver", "spleen")):
    return arguments.regions_of(drawn(), organs, rois, guidance, CLASSES)


def test_each_guidance_has_its_regions():
    assert regions() == (None, "full", None)
    assert regions(guidance="full") == (None, "full", None)
    body, guidance, source = regions(guidance="roi_body")
    assert (guidance, source) == ("roi_body", "body")
    assert list(body) == ["liver", "spleen"]
    for mask in body.values():
        np.testing.assert_array_equal(mask, body_mask(drawn().image))
        assert mask[25, 35]
        assert not mask[0, 0]
    reference, guidance, source = regions(guidance="roi_reference")
    assert (guidance, source) == ("roi_reference", "reference")
    for organ, spot in SPOTS.items():
        assert reference[organ][spot].all()
        assert reference[organ].sum() == reference[organ][spot].size


def test_regions_that_are_given_say_whence():
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[3, 4] = 1
    found, guidance, source = regions({"spleen": mask, "pancreas": mask})
    assert (guidance, source, list(found)) == ("roi", "given", ["spleen"])
    assert found["spleen"].dtype == bool
    assert found["spleen"].sum() == 1
    assert regions({"liver": Roi(mask > 0, None)})[2] == "localizer"
    with pytest.raises(ConfigError, match=r"ROI of liver has the shape \(87, 61\)"):
        regions({"liver": mask.T})
    with pytest.raises(ConfigError, match="guidance is 'roi': give rois"):
        regions(guidance="roi")
    with pytest.raises(ConfigError, match="guidance is 'roi_body': take rois out"):
        regions({"liver": mask}, "roi_body")
    with pytest.raises(ConfigError, match="guidance is 'half'; it must be one of: full, roi"):
        regions(guidance="half")


def test_units_are_of_the_label_or_of_what_was_located():
    mask = np.ones((HEIGHT, WIDTH), bool)
    rois = {"liver": Roi(mask, None), "spleen": mask}
    assert list(arguments.units_of(drawn(), "localizer", rois, CLASSES)) == ["liver"]
    assert list(arguments.units_of(drawn(), "label", None, CLASSES)) == ["spleen", "pancreas"]
    assert arguments.units_of(drawn(), "prediction", rois, CLASSES) == {}
    assert arguments.units_of(drawn(), None, None, CLASSES) == {}
    with pytest.raises(ConfigError, match="give the rois that locate"):
        arguments.units_of(drawn(), "localizer", {"spleen": mask}, CLASSES)


def test_words_are_checked():
    arguments.check_words(["soft_dice", "hard_iou"], "blur")
    for values in ("soft_dice", [], ["soft_dice", "dize"]):
        with pytest.raises(ConfigError, match="give some of soft_dice"):
            arguments.check_words(values, "mean")
    with pytest.raises(ConfigError, match="fill is 'grey'"):
        arguments.check_words(["soft_dice"], "grey")


def test_the_bar_starts_anew_with_each_plan():
    """Also with one of the same length."""
    reporting = arguments.Reporting(True)
    with reporting as report:
        seen, resets = [], []
        reset = reporting._bar.reset
        reporting._bar.reset = lambda total: (resets.append(total), reset(total))
        for done, number in ((2, 4), (4, 4), (1, 4), (4, 4), (3, 9)):
            report(done, number)
            seen.append((reporting._bar.n, reporting._bar.total))
    assert seen == [(2, 4), (4, 4), (1, 4), (4, 4), (3, 9)]
    assert resets == [4, 4, 9]
    for silent in (None, False):
        with arguments.Reporting(silent) as report:
            assert report is None
