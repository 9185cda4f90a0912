"""One call: what goes in, what comes back, and that the workflow's numbers are the same."""

import io

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

import xaiclip
from api_slices import BOXES, SCAN, explain, slice_image
from xaiclip.errors import CaseError, ConfigError
from xaiclip.explain.attribution import to_slice_grid
from xaiclip.masks.roi import Roi
from xaiclip.metrics.schema import EXPLANATIONS

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


@pytest.mark.slow
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
    assert list(maps.regions) == ["liver"]
    np.testing.assert_array_equal(maps.regions["liver"], region)
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
