"""The one-call API: models, the numbers of the workflow, and wrong inputs."""

import inspect
from importlib import import_module

import numpy as np
import pandas as pd
import pytest
import torch
from segment_anything.modeling import Sam
from torch import nn

import xaiclip
from api_slices import LABEL, SCAN, explain
from explain_fakes import FakeSegmenter
from xaiclip import config as configuration
from xaiclip.config.constraints import label_table
from xaiclip.config.methods import methods
from xaiclip.data.sheet import Case
from xaiclip.data.slices import take_slices
from xaiclip.errors import CaseError, ConfigError
from xaiclip.explain.attribution import to_canonical_mask
from xaiclip.explain.runner import Request, Run, attribute_slice, score_slice
from xaiclip.masks.roi import RoiSettings, box_of
from xaiclip.metrics.rows import explanation_rows
from xaiclip.models.segmenters.loading import load_compact, load_segmenter
from xaiclip.models.segmenters.predict import segment_slice
from xaiclip.organs import SIX_CLASSES, organs_of
from xaiclip.seeds import derived

# --- models --------------------------------------------------------------------------------------


class Planes(nn.Module):
    """Class logits: background, and the bright and the dark half."""

    def forward(self, images):
        bright = images[:, :1] * 8 - 3
        return torch.cat([torch.zeros_like(bright), bright, -bright], dim=1)


def test_a_network_of_fixed_classes_needs_channels_and_no_boxes():
    maps = explain(boxes=None, model=Planes(), channels={"spleen": 2, "liver": 1})
    assert list(maps) == ["spleen", "liver"]
    assert maps.model == "Planes"
    assert (maps.masks["liver"] & maps.masks["spleen"]).sum() == 0
    with pytest.raises(ConfigError, match="which organ is which: give channels"):
        explain(boxes=None, model=Planes())


def test_a_sam_is_a_model():
    sam = load_compact()
    assert isinstance(sam, Sam)
    own = xaiclip.load_model(sam, stock=False, box_masks=True, device="cpu")
    box = {"liver": (19, 48, 148, 164)}
    shown = explain(SCAN, box, model=own, device="cpu")
    named = explain(SCAN, box, model="compact", device="cpu")
    np.testing.assert_array_equal(shown["liver"], named["liver"])
    assert xaiclip.load_model(load_compact()).stock  # as segment_anything's own predictor does


def test_a_segmenter_is_given_back():
    model = FakeSegmenter()
    assert xaiclip.load_model(model) is model


def test_a_function_of_ones_own_is_a_model(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from torch import nn\ndef make(width):\n    return nn.Conv2d(1, width, 1)\n"
    )
    made = xaiclip.load_model(
        f"{tmp_path}/mine.py:make", channels={"liver": 1}, width=3, device="cpu"
    )
    assert made.channels == {"liver": [1]}


# --- the same numbers as the workflow's ----------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "settings"), [("occlusion", {"window": 128, "stride": 128}), ("rise", {"masks": 12})]
)
@pytest.mark.parametrize("guidance", ["full", "roi_reference"])
def test_the_workflow_has_the_same_numbers(method, settings, guidance):
    config = configuration.complete({"methods": {method: settings}})
    plan, own = methods()[method].split(config["methods"][method])
    case = Case("case7", SCAN, LABEL, "CT", "test")
    reading = {
        "classes": config["classes"],
        "labels": label_table(config),
        **{k: config["data"][k] for k in ("window", "percentiles", "orientation", "implausible")},
        "policy": "middle_labelled",
    }
    (item,) = take_slices(case, reading).slices
    segmenter = load_segmenter(config["segmenter"], "cpu", "fp32")
    organs = organs_of(SIX_CLASSES)
    present = {o: item.label == k for k, o in enumerate(organs, 1) if (item.label == k).any()}
    boxes = {o: box_of(mask, RoiSettings().margin) for o, mask in present.items()}
    rois = present if guidance == "roi_reference" else None
    seed = derived(config["seed"], "explain", method)
    run = Run(method, plan, config["explain"]["values"], config["explain"]["fill"], "auto", seed)
    request = Request(item.case, item.index, item.image, boxes, rois, guidance)
    scores, skips = score_slice(segmenter, request, run)
    attributions, seconds = attribute_slice(scores, own)
    masks = segment_slice(segmenter, item.image, boxes)
    rows = explanation_rows(
        item, scores, attributions, skips, organs=organs, method=method, guidance=guidance,
        prompt="reference", seed=seed, segmented=masks,
        reference={o: to_canonical_mask(item.label == k) for k, o in enumerate(organs, 1)},
        seconds_aggregate=seconds, seconds_roi=None,
        cost={"device": "cpu", "precision": "fp32", "decoded_organs": len(organs),
              **{k: {"ptflops": 1.0, "total": 1.0} for k in ("encode", "decode", "localizer")}},
    )  # fmt: skip

    image = xaiclip.load_image(SCAN, label=LABEL, modality="CT", name="case7")
    np.testing.assert_array_equal(image.image, item.image)
    maps = xaiclip.explain(
        "compact", image, "reference", method, guidance=guidance, device="cpu", **settings
    )
    for one in attributions:
        np.testing.assert_array_equal(
            maps.attribution((one.organ, one.variant, one.value)).map, one.map
        )
    key = ["organ", "variant", "value"]
    frame = pd.DataFrame([row for row in rows if row["organ"] in present])
    columns = [name for name in frame if not name.startswith(("seconds", "gflops"))]
    ours, theirs = (
        one[columns].set_index(key).sort_index() for one in (maps.metrics(), frame.fillna(np.nan))
    )
    assert set(columns) >= {"seed", "n_forwards", "rho", "baseline_dice_gt", "pointing_pred"}
    pd.testing.assert_frame_equal(ours, theirs, check_exact=True, check_dtype=False)


# --- wrong inputs --------------------------------------------------------------------------------

WRONG = {
    "no model of that name": ({"model": "medsma"}, "'medsma' is unknown: use compact"),
    "no weights": ({"model": "medsam"}, "needs a weights file"),
    "weights of a model that has them": ({"checkpoint": "x.pth"}, "checkpoint belongs to a model"),
    "no model at all": ({"model": 7}, "the model is of type int"),
    "channels of a name": ({"model": "compact", "channels": {"liver": 1}}, "take channels out"),
    "channels of a segmenter": ({"channels": {"liver": 1}}, "a segmenter takes no channels"),
    "no method": ({"method": "rize"}, "no explanation method 'rize'"),
    "a module that is no method": ({"method": "engine"}, "'engine' is no explanation method"),
    "a setting that is misspelled": ({"strid": 3}, "did you mean 'stride'"),
    "a setting that is no number": ({"stride": "wide"}, "setting 'occlusion.stride' is 'wide'"),
    "a stride that leaves gaps": ({"window": 32, "stride": 64}, "more than the window"),
    "no boxes": ({"boxes": None}, "is told by boxes"),
    "empty boxes": ({"boxes": {}}, "no organ was named"),
    "a word as boxes": ({"boxes": "all"}, "or 'reference'"),
    "no label": ({"boxes": "reference"}, "the image has no label"),
    "three corners": ({"boxes": {"liver": (1, 2, 3)}}, "the box of liver is (1, 2, 3)"),
    "words in a box": ({"boxes": {"liver": "1,2,3,4"}}, "give (x0, y0, x1, y1)"),
    "a box turned over": ({"boxes": {"liver": (60, 2, 3, 40)}}, "x0 must be below x1"),
    "a box upside down": ({"boxes": {"liver": (3, 60, 40, 20)}}, "y0 below y1"),
    "a box with NaN": ({"boxes": {"liver": (1, 2, 30, np.nan)}}, "x0 must be below x1"),
    "a box beside the slice": ({"boxes": {"liver": (200, 2, 230, 40)}}, "131 × 97"),
    "regions without their guidance": (
        {"rois": {"liver": np.ones((97, 131))}, "guidance": "full"}, "take rois out"),
    "a guidance without regions": ({"guidance": "roi"}, "give rois"),
    "an unknown guidance": ({"guidance": "some"}, "must be one of: full, roi"),
    "a region of another shape": ({"rois": {"liver": np.ones((9, 9))}}, "has the shape (9, 9)"),
    "an unknown value": ({"values": ["dice"]}, "values are 'dice'"),
    "a word as values": ({"values": "soft_dice"}, "values are 'soft_dice'"),
    "no values": ({"values": []}, "give some of soft_dice"),
    "an unknown fill": ({"fill": "noise"}, "fill is 'noise'"),
    "an unknown device": ({"model": "compact", "device": "tpu"}, "device 'tpu' is unknown"),
    "a volume as an array": ({"image": np.zeros((9, 9, 9))}, "shape (9, 9, 9)"),
    "a list of words": ({"image": np.array([["a", "b"], ["c", "d"]])}, "of numbers"),
    "numbers without a meaning": ({"image": np.eye(40)}, "say what its numbers are"),
    "NaN in the image": ({"image": np.full((40, 40), np.nan)}, "NaN or infinity"),
    "a constant image": ({"image": np.full((40, 40), 7, np.uint8)}, "is constant"),
    "an unknown modality": ({"modality": "PET"}, "it must be CT or MR"),
    "no such file": ({"image": "nowhere.nii.gz"}, "there is no such file"),
    "a slice of an array": ({"slice": 3}, "an array is one slice already"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_wrong_inputs_end_in_a_sentence(case):
    given, words = WRONG[case]
    with pytest.raises((ConfigError, CaseError)) as caught:
        explain(**given)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_where_nothing_can_be_explained_the_reasons_are_told():
    with pytest.raises(CaseError, match="liver: there is no box"):
        explain(boxes={"liver": None})


def test_an_array_has_no_nifti(tmp_path):
    maps = explain()
    with pytest.raises(CaseError, match="no geometry"):
        maps.save_nifti(tmp_path / "x.nii.gz", "liver")
    scan = explain(SCAN, {"liver": (19, 48, 148, 164), "spleen": (152, 95, 200, 161)})
    with pytest.raises(ConfigError, match="say which map"):
        scan.save_nifti(tmp_path / "x.nii.gz")
    with pytest.raises(ConfigError, match=r"must end in \.nii"):
        scan.save_nifti(tmp_path / "x.png", "liver")


# --- the name ------------------------------------------------------------------------------------


def test_the_package_of_explanations_can_be_called():
    import_module("xaiclip.explain.engine")  # which puts the package in the name's place
    assert callable(xaiclip.explain)
    assert list(inspect.signature(xaiclip.explain).parameters)[:4] == [
        "model", "image", "boxes", "method",
    ]  # fmt: skip
    assert xaiclip.explain.method("rise").PlanSettings
    with pytest.raises(AttributeError, match="no attribute 'explane'"):
        _ = xaiclip.explane
