"""One call: what goes in, what comes back, and that the workflow's numbers are the same."""

import inspect
import io
from importlib import import_module

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from segment_anything.modeling import Sam
from torch import nn

import xaiclip
from explain_fakes import FakeSegmenter
from xaiclip import config as configuration
from xaiclip.config.constraints import label_table
from xaiclip.config.methods import methods
from xaiclip.data.sheet import Case
from xaiclip.data.slices import take_slices
from xaiclip.errors import CaseError, ConfigError
from xaiclip.explain.attribution import to_canonical_mask, to_slice_grid
from xaiclip.explain.runner import Request, Run, attribute_slice, score_slice
from xaiclip.masks.roi import Roi, RoiSettings, box_of
from xaiclip.metrics.rows import explanation_rows
from xaiclip.metrics.schema import EXPLANATIONS
from xaiclip.models.segmenters.loading import load_compact, load_segmenter
from xaiclip.models.segmenters.predict import segment_slice
from xaiclip.organs import SIX_CLASSES, organs_of
from xaiclip.resources import shipped
from xaiclip.seeds import derived

SCAN = shipped("compact", "example_ct.nii.gz")
LABEL = shipped("compact", "example_ct_labels.nii.gz")
BOXES = {"spleen": (80, 40, 120, 75), "liver": (10, 20, 60, 70), "pancreas": (50, 30, 90, 60)}
FEW = {"window": 256, "stride": 256}


def slice_image(height=97, width=131, seed=3):
    rows, columns = np.mgrid[:height, :width]
    image = 60 + 80 * np.exp(-((rows - 45) ** 2 + (columns - 40) ** 2) / 500)
    image += 50 * np.exp(-((rows - 60) ** 2 + (columns - 95) ** 2) / 300)
    return (
        (image + np.random.default_rng(seed).normal(0, 6, image.shape))
        .clip(0, 255)
        .astype(np.uint8)
    )


def explain(image=None, boxes=BOXES, method="occlusion", model=None, **given):
    if method == "occlusion":
        given = {**FEW, **given}
    image = slice_image() if image is None else image
    return xaiclip.explain(model or FakeSegmenter(), image, boxes, method, **given)


# --- what comes back -----------------------------------------------------------------------------


def test_maps_come_by_organ_in_the_slices_own_pixels():
    maps = explain()
    assert list(maps) == ["spleen", "liver", "pancreas"]
    assert len(maps) == 3
    for organ in maps:
        assert maps[organ].shape == (97, 131)
        assert maps[organ].dtype == np.float32
        np.testing.assert_array_equal(
            maps[organ], to_slice_grid(maps.attribution(organ).map, (97, 131))
        )
        assert maps.masks[organ].shape == (97, 131)
    assert maps.n_forwards == 5
    assert maps.seconds > 0
    assert not np.array_equal(maps["spleen"], maps["liver"])


def test_variants_and_values_have_keys_of_their_own():
    maps = explain(method="rise", masks=8, estimators=["paper", "covariance"])
    assert maps.variants == ("paper", "covariance")
    np.testing.assert_array_equal(maps["liver"], maps["liver", "paper"])
    np.testing.assert_array_equal(maps["liver"], maps["liver", "paper", "soft_dice"])
    other = maps["liver", "covariance", "in_mask_probability"]
    assert not np.array_equal(other, maps["liver", "covariance"])
    assert ("liver", "complement") not in maps
    with pytest.raises(KeyError, match="organs are spleen, liver, pancreas, variants paper"):
        maps["kidney"]


def test_the_first_value_is_the_one_that_is_explained():
    maps = explain(values=["boundary_dice"])
    assert maps.attribution("liver").value == "boundary_dice"
    assert {"hard_dice", "hard_iou"} <= set(maps.score_table().columns)


def test_the_scores_are_a_row_for_each_organ_and_forward():
    table = explain().score_table()
    assert len(table) == 3 * (1 + 4)
    assert set(table["organ"]) == set(BOXES)


def test_an_organ_without_a_box_is_left_out_with_its_reason():
    maps = explain(boxes={**BOXES, "left kidney": None})
    assert "left kidney" not in maps
    assert maps.left_out == {"left kidney": "there is no box to prompt the segmenter with"}
    with pytest.raises(KeyError, match="has no map: there is no box"):
        maps["left kidney"]
    rows = maps.metrics().set_index("organ")
    assert rows.loc["left kidney", "skipped"] == "there is no box to prompt the segmenter with"
    assert "without left kidney" in repr(maps)


def test_metrics_have_the_columns_of_the_workflows_table():
    maps = explain()
    frame = maps.metrics()
    assert list(frame.columns) == EXPLANATIONS.names
    assert frame["primary"].sum() == 3
    assert frame["baseline_dice_gt"].isna().all()
    assert frame["gflops_total"].isna().all()
    truth = maps.metrics(reference={"liver": maps.masks["liver"]})
    rows = truth[truth["primary"]].set_index("organ")
    assert rows.loc["liver", "baseline_dice_gt"] == 1
    assert np.isnan(rows.loc["spleen", "baseline_dice_gt"])
    with pytest.raises(ConfigError, match=r"reference of liver has the shape \(5, 5\)"):
        maps.metrics(reference={"liver": np.ones((5, 5))})


def test_a_picture_is_shown_and_written(tmp_path):
    maps = explain()
    maps.picture().save(tmp_path / "all.png")
    maps.save_picture(tmp_path / "one.png", ["liver"], dpi=60)
    whole, one = (Image.open(tmp_path / name) for name in ("all.png", "one.png"))
    assert whole.size[1] > 2 * one.size[1]
    assert np.asarray(one)[..., :3].std() > 10  # something is drawn
    assert whole.info.get("Software") is None
    assert Image.open(io.BytesIO(maps._repr_png_())).format == "PNG"
    assert "data:image/png;base64," in maps._repr_html_()
    with pytest.raises(ConfigError, match="no map of heart"):
        maps.picture(["heart"])


def test_repr_says_what_it_is():
    words = repr(explain())
    assert "spleen, liver, pancreas" in words
    assert "occlusion, guidance full, model fake" in words
    assert "97 × 131" in words
    assert "5 forwards" in words


def test_progress_hears_of_every_forward():
    heard = []
    explain(progress=lambda done, number: heard.append((done, number)))
    assert heard[-1] == (4, 4)
    assert [done for done, _ in heard] == sorted(done for done, _ in heard)
    explain(progress=True)  # a bar


def test_a_seed_makes_it_the_same_and_another_makes_it_another():
    first, again, other = (explain(method="rise", masks=6, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first["liver"], again["liver"])
    assert not np.array_equal(first["liver"], other["liver"])


# --- guidance ------------------------------------------------------------------------------------


def test_regions_restrict_the_perturbations():
    region = np.zeros((97, 131), bool)
    region[10:40, 10:50] = True
    maps = explain(boxes={"liver": BOXES["liver"]}, rois={"liver": region}, window=64, stride=64)
    assert maps.guidance == "roi"
    assert maps.n_forwards < 1 + 64
    assert np.isnan(maps["liver"]).any()
    assert np.isfinite(maps["liver"][15:35, 15:45]).all()
    assert (maps.metrics()["roi_source"] == "given").all()
    assert (maps.metrics()["guidance"] == "roi").all()


def test_what_locate_gives_is_boxes_and_regions():
    region = np.zeros((97, 131), bool)
    region[10:40, 10:50] = True
    found = {"liver": Roi(region, np.array([5, 5, 60, 50], np.float32))}
    maps = explain(boxes=found, rois=found)
    assert maps.boxes["liver"].tolist() == [5, 5, 60, 50]
    assert (maps.metrics()["roi_source"] == "localizer").all()


def test_the_body_is_a_guidance_too():
    image = np.zeros((97, 131), np.uint8)
    image[20:80, 30:100] = slice_image()[20:80, 30:100]
    maps = explain(image, guidance="roi_body", window=32, stride=32)
    assert maps.n_forwards < 1 + 16**2
    assert (maps.metrics()["roi_source"] == "body").all()


# --- images --------------------------------------------------------------------------------------


def test_a_file_keeps_its_geometry(tmp_path):
    maps = explain(SCAN, {"liver": (19, 48, 148, 164)}, model="compact")
    maps.save_nifti(tmp_path / "map.nii.gz")
    source, written = nib.load(SCAN), nib.load(tmp_path / "map.nii.gz")
    assert written.shape == source.shape
    np.testing.assert_allclose(written.affine, source.affine)
    voxels = np.asarray(written.dataobj)
    # as the workflow shows it: row 0 anterior, column 0 the patient's right
    np.testing.assert_array_equal(maps.slice.geometry.to_canonical(voxels)[::-1, ::-1, 0].T,
                                  maps["liver"])  # fmt: skip


def test_a_picture_is_taken_as_it_is(tmp_path):
    Image.fromarray(slice_image()).save(tmp_path / "slice.png")
    item = xaiclip.load_image(tmp_path / "slice.png")
    np.testing.assert_array_equal(item.image, slice_image())
    assert item.modality == ""
    assert xaiclip.load_image(item) is item


def test_numbers_become_grey_by_their_modality():
    hu = np.linspace(-1000, 1000, 64 * 80).reshape(64, 80)
    ct = xaiclip.load_image(hu, modality="CT", window=(0, 200))
    assert (ct.image[hu <= -100] == 0).all()
    assert (ct.image[hu >= 100] == 255).all()
    mr = xaiclip.load_image(np.abs(hu).astype(np.float32), modality="MR")
    assert mr.image.max() == 255
    same = np.repeat(slice_image()[..., None], 3, axis=2)
    np.testing.assert_array_equal(xaiclip.load_image(same).image, slice_image())


def volume(tmp_path, low, name="volume.nii.gz"):
    """Three slices of unequal spacing, with a lowest value."""
    array = np.stack([slice_image(seed=k).T[::-1] for k in range(3)], axis=-1).astype(np.int16)
    array[array > 120] += low
    array[:40] = low
    image = nib.Nifti1Image(array, np.diag([1.1, 0.9, 5, 1]) + np.eye(4)[[3, 3, 3, 3]].T * 7)
    nib.save(image, tmp_path / name)
    return tmp_path / name


def test_a_slice_of_a_volume_is_its_middle_or_the_one_that_is_asked_for(tmp_path):
    path = volume(tmp_path, 0)
    assert xaiclip.load_image(path, modality="MR").index == 1
    assert xaiclip.load_image(path, modality="MR", slice=2).index == 2
    with pytest.raises(CaseError, match="no slice 3: it has 3"):
        xaiclip.load_image(path, modality="MR", slice=3)


def test_a_files_modality_is_told_by_its_grey_values(tmp_path):
    assert xaiclip.load_image(SCAN).modality == "CT"
    assert xaiclip.load_image(volume(tmp_path, 0)).modality == "MR"


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
