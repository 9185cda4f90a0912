"""The command: what it writes, what it says, and how it ends."""

import json
import subprocess
import sys
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from PIL import Image

import xaiclip
from xaiclip import cli, images
from xaiclip.errors import CaseError
from xaiclip.masks.roi import Roi
from xaiclip.resources import shipped

SCAN = shipped("compact", "example_ct.nii.gz")
LABEL = shipped("compact", "example_ct_labels.nii.gz")
FEW = ("--set", "window=256", "--set", "stride=256", "--device", "cpu")
BOX = ("--organ", "liver", "--box", "19,48,148,164")


def explain(tmp_path, *arguments, scan=SCAN):
    return cli.main(["explain", str(scan), "--out", str(tmp_path / "out"), *FEW, *arguments])


def written(tmp_path):
    return sorted(path.name for path in (tmp_path / "out").iterdir())


@pytest.mark.slow
def test_the_localizer_finds_what_is_asked_for(tmp_path, capsys):
    assert explain(tmp_path, "--organ", "liver,right_kidney", "--guidance", "roi") == cli.DONE
    assert written(tmp_path) == [
        "liver_occlusion_roi.nii.gz",
        "liver_occlusion_roi.png",
        "occlusion_roi.json",
        "occlusion_roi_metrics.csv",
        "right_kidney_occlusion_roi.nii.gz",
        "right_kidney_occlusion_roi.png",
    ]
    out = tmp_path / "out"
    voxels = nib.load(out / "liver_occlusion_roi.nii.gz").get_fdata()
    assert voxels.shape == nib.load(SCAN).shape
    assert np.isfinite(voxels).any()
    assert Image.open(out / "liver_occlusion_roi.png").format == "PNG"
    rows = pd.read_csv(out / "occlusion_roi_metrics.csv")
    assert set(rows["organ"]) == {"liver", "right kidney"}
    assert (rows["roi_source"] == "localizer").all()
    about = json.loads((out / "occlusion_roi.json").read_text())
    assert about["boxes_from"] == "localizer (compact)"
    assert about["settings"]["window"] == 256
    assert about["n_forwards"] == 4  # one window misses both regions
    said = capsys.readouterr()
    assert said.out == ""
    assert "liver_occlusion_roi.png" in said.err


@pytest.mark.slow
def test_a_box_needs_no_localizer(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "open_clip", None)
    assert explain(tmp_path, *BOX, "--quiet") == cli.DONE
    assert "liver_occlusion_full.nii.gz" in written(tmp_path)
    assert capsys.readouterr().err == ""
    about = json.loads((tmp_path / "out" / "occlusion_full.json").read_text())
    assert about["boxes"] == {"liver": [19, 48, 148, 164]}


def test_a_label_gives_the_boxes_and_the_reference(tmp_path):
    assert explain(tmp_path, "--label", str(LABEL), "--organ", "spleen") == cli.DONE
    (row,) = (
        row
        for row in pd.read_csv(tmp_path / "out" / "occlusion_full_metrics.csv").to_dict("records")
        if row["primary"]
    )
    assert row["organ"] == "spleen"
    assert row["baseline_dice_gt"] > 0.5


def test_an_organ_that_is_not_there_is_said(tmp_path, capsys):
    shown = np.asarray(nib.load(LABEL).dataobj).copy()
    shown[shown == 3] = 0
    nib.save(nib.Nifti1Image(shown, nib.load(LABEL).affine), tmp_path / "label.nii.gz")
    label = ("--label", str(tmp_path / "label.nii.gz"))
    assert explain(tmp_path, *label, "--organ", "liver,spleen") == cli.PARTLY
    assert "spleen is left out: there is no box" in capsys.readouterr().err
    assert explain(tmp_path, *label, "--organ", "spleen") == cli.FAILED


def test_a_picture_gives_an_array(tmp_path):
    grey = np.random.default_rng(0).integers(0, 255, (60, 80)).astype(np.uint8)
    grey[15:40, 20:50] = 230
    Image.fromarray(grey).save(tmp_path / "slice.png")
    given = ("--organ", "liver", "--box", "18,13,52,42")
    assert explain(tmp_path, *given, scan=tmp_path / "slice.png") == cli.DONE
    assert np.load(tmp_path / "out" / "liver_occlusion_full.npy").shape == (60, 80)


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """What the command would ask the library for; nothing is explained."""

    def ask(*arguments, scan=SCAN):
        calls = []

        def explain(*positional, **named):
            calls.append((positional, named))
            raise CaseError("enough.")

        monkeypatch.setattr(xaiclip, "explain", explain)
        monkeypatch.setattr(images, "load_image", lambda path, **how: loaded(path, **how, to=read))
        read = []
        assert explain_(tmp_path, *arguments, scan=scan) == cli.FAILED
        ((positional, named),) = calls
        return positional, named, read[0]

    def loaded(path, to, **how):
        to.append(how)
        return load_image(path, **how)

    load_image, explain_ = images.load_image, globals()["explain"]
    return ask


def test_what_is_given_is_passed_on(asked):
    """Boxes stay with their organs, and each option comes to where it counts."""
    (model, item, boxes, method), named, read = asked(
        *("--organ", "spleen,right_kidney", "--organ", " liver"),
        *("--box", "1,2,30,40", "--box", "5,6,70,80", "--box", "9,10,110,120"),
        *("--model", "own.py:make", "--checkpoint", "w.pth", "--method", "rise"),
        *("--set", "masks=7", "--set", "word=text", "--fill", "blur", "--seed", "11"),
        *("--precision", "fp32", "--slice", "0", "--window", "50", "300", "--modality", "CT"),
        *("--orientation", "LPS", "--guidance", "roi_body"),
    )  # fmt: skip
    assert (model, method) == ("own.py:make", "rise")
    assert boxes == {
        "spleen": (1, 2, 30, 40), "right kidney": (5, 6, 70, 80), "liver": (9, 10, 110, 120)
    }  # fmt: skip
    assert item.index == 0
    assert read == {"slice": 0, "label": None, "modality": "CT", "window": (50, 300),
                    "orientation": "LPS"}  # fmt: skip
    assert str(named.pop("checkpoint")) == "w.pth"
    assert named == {
        "rois": None, "guidance": "roi_body", "fill": "blur", "seed": 11, "device": "cpu",
        "precision": "fp32", "progress": False, "window": 256, "stride": 256, "masks": 7,
        "word": "text",
    }  # fmt: skip


def test_what_is_not_given_is_the_default(asked):
    (model, _, boxes, method), named, read = asked(*BOX)
    assert (model, method, boxes) == ("compact", "occlusion", {"liver": (19, 48, 148, 164)})
    assert read["window"] == (40, 400)
    assert {key: named[key] for key in ("guidance", "fill", "seed", "checkpoint", "rois")} == {
        "guidance": "full", "fill": "mean", "seed": 2026, "checkpoint": None, "rois": None
    }  # fmt: skip


def test_the_localizers_regions_are_passed_on_under_guidance_alone(asked, monkeypatch):
    from xaiclip.localizer import locating

    mask = np.ones((3, 4), bool)
    found = {
        "spleen": Roi(mask, np.array([1, 2, 3, 4], np.float32)),
        "liver": Roi(mask, None),
        "pancreas": Roi(mask, np.array([5, 6, 7, 8], np.float32)),
    }

    class Fake(locating.Locator):
        classes = ("background", *found)

        def __init__(self, *given):
            pass

        def rois(self, item, settings=None):
            return found

    monkeypatch.setattr(locating, "Locator", Fake)
    at = ("--slice", "0")
    (_, _, boxes, _), named, _ = asked(*at)
    assert (list(boxes), named["rois"]) == (["spleen", "pancreas"], None)
    (_, _, boxes, _), named, _ = asked(*at, "--organ", "liver,pancreas", "--guidance", "roi")
    assert list(boxes) == ["liver", "pancreas"]  # what was asked for, also where it is not found
    assert named["rois"] == boxes
    assert boxes["pancreas"] is found["pancreas"]
    assert list(xaiclip.locate(SCAN, Fake())) == ["spleen", "pancreas"]


def test_a_box_needs_its_slice_where_there_are_two(asked, tmp_path, capsys):
    image = nib.load(SCAN)
    voxels = np.asarray(image.dataobj)
    two = np.concatenate([voxels, voxels], axis=2)
    nib.save(nib.Nifti1Image(two, image.affine), tmp_path / "two.nii.gz")
    assert explain(tmp_path, *BOX, scan=tmp_path / "two.nii.gz") == cli.FAILED
    assert "say which with --slice" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("organs", "code"), [(["--organ", "spleen,liver"], cli.PARTLY), ([], cli.DONE)]
)
def test_only_what_was_asked_for_by_name_can_be_missed(organs, code, monkeypatch, tmp_path):
    maps = SimpleNamespace(left_out={"liver": "it is not there"}, n_forwards=3, seconds=1.0)
    monkeypatch.setattr(xaiclip, "explain", lambda *given, **named: maps)
    monkeypatch.setattr(cli, "write", lambda *given: [])
    assert explain(tmp_path, "--label", str(LABEL), *organs) == code


def test_exit_codes_are_those_of_the_help():
    assert (cli.DONE, cli.FAILED, cli.PARTLY) == (0, 1, 3)


def test_nothing_tells_whose_scan_it_was(tmp_path):
    place = tmp_path / "DOE_JANE_19500101"
    place.mkdir()
    image = nib.load(SCAN)
    image.header["descrip"] = b"DOE JANE"
    nib.save(image, place / "DOE_JANE_ct.nii.gz")
    assert explain(tmp_path, *BOX, scan=place / "DOE_JANE_ct.nii.gz") == cli.DONE
    for path in (tmp_path / "out").iterdir():
        content = path.read_bytes()
        if path.name.endswith(".nii.gz"):
            content = nib.load(path).to_bytes()
        assert b"DOE" not in content
        assert b"JANE" not in content
        assert str(tmp_path).encode() not in content
        assert "DOE" not in path.name


@pytest.mark.slow
def test_of_a_volume_the_localizer_takes_the_slice_that_shows_most(tmp_path):
    image, label = nib.load(SCAN), nib.load(LABEL)
    # the organs are in the third slice alone
    empty = np.full(image.shape, -1000, np.int16)
    voxels = np.asarray(image.dataobj).astype(np.int16)
    body = np.where(np.asarray(label.dataobj) > 0, -100, voxels).astype(np.int16)
    stack = np.concatenate([body, empty, voxels, body], axis=2)
    nib.save(nib.Nifti1Image(stack, image.affine), tmp_path / "volume.nii.gz")
    assert explain(tmp_path, "--organ", "liver", scan=tmp_path / "volume.nii.gz") == cli.DONE
    about = json.loads((tmp_path / "out" / "occlusion_full.json").read_text())
    assert about["slice"] == 2
    map_ = nib.load(tmp_path / "out" / "liver_occlusion_full.nii.gz").get_fdata()
    assert np.isfinite(map_[:, :, 2]).any()
    assert np.isnan(map_[:, :, [0, 1, 3]]).all()
    # a box lies in a slice, which must be said
    assert explain(tmp_path, *BOX, scan=tmp_path / "volume.nii.gz") == cli.FAILED
    assert explain(tmp_path, *BOX, "--slice", "2", scan=tmp_path / "volume.nii.gz") == cli.DONE


WRONG = {
    "no such file": (["nowhere.nii.gz", *BOX], "nowhere.nii.gz: there is no such file"),
    "an organ that the localizer does not know": (
        [str(SCAN), "--organ", "heart"], "knows no heart; it knows liver"),
    "no such localizer": (
        [str(SCAN), "--localizer", "x.safetensors"], "no localizer 'x.safetensors'"),
    "a box too few": ([str(SCAN), "--organ", "liver,spleen", "--box", "1,2,3,4"],
        "one --box for each --organ"),
    "a box for no organ": ([str(SCAN), "--box", "1,2,3,4"], "one --box for each --organ"),
    "a guidance that needs the localizer": (
        [str(SCAN), *BOX, "--guidance", "roi"], "needs the localizer's regions"),
    "an unknown setting": ([str(SCAN), *BOX, "--set", "masks=3"], "occlusion.masks' is unknown"),
    "an unknown method": ([str(SCAN), *BOX, "--method", "rize"], "no explanation method 'rize'"),
    "weights that are not there": (
        [str(SCAN), *BOX, "--model", "medsam", "--checkpoint", "x.pth"], "x.pth does not exist"),
    "no such label": (
        [str(SCAN), "--label", "label.nii.gz"], "there is no such file"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_one_sentence(case, tmp_path, capsys):
    arguments, words = WRONG[case]
    assert cli.main(["explain", *arguments, "--out", str(tmp_path / "out")]) == cli.FAILED
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("xaiclip: ")]
    assert len(said) == 1
    assert words in said[0]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "arguments",
    [["explain"], [], ["explain", "x", "--box", "1,2"], ["explain", "x", "--set", "masks"],
     ["explain", "x", "--box", "1,2,3,4", "--label", "y"], ["explain", "x", "--slice", "top"]],
)  # fmt: skip
def test_wrong_usage_is_argparses(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2
    assert "usage: xaiclip" in capsys.readouterr().err


def test_methods_are_listed_with_their_settings(capsys):
    assert cli.main(["methods"]) == cli.DONE
    listed = capsys.readouterr().out
    assert "occlusion: " in listed
    assert "  window=64" in listed
    assert "  masks=" in listed


def test_help_needs_no_heavy_library(tmp_path):
    code = (
        "import sys\nfrom xaiclip import cli\n"
        "try:\n    cli.main(['explain', '--help'])\nexcept SystemExit as end:\n"
        "    assert end.code == 0\n"
        "heavy = {'torch', 'numpy', 'pandas', 'matplotlib', 'cv2'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path,
        env={"PYTHONPATH": str(cli.__file__).rpartition("/xaiclip/")[0]},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "--localizer" in done.stdout
    assert "exit codes" in done.stdout
