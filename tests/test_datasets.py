"""The data sets' own files, from archives and folders to volumes."""

import gzip
import re
import shutil
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

import published
from dataset_files import LPS, SHAPE, anatomy, sides
from xaiclip.data import chaos, flare22, saros
from xaiclip.data.sheet import Case, read_sheet, write_sheet
from xaiclip.data.slices import take_slices
from xaiclip.data.volumes import check_same_grid, read_volume
from xaiclip.errors import CaseError, ConfigError, Skip
from xaiclip.organs import FLARE22
from xaiclip.published import catalogue
from xaiclip.published.catalogue import DATASETS, entries
from xaiclip.published.packaged import Packaged

pytestmark = pytest.mark.slow

#: The same in canonical order: x and y reversed.
RAS_OF = (slice(None, None, -1), slice(None, None, -1))


@pytest.fixture
def image_and_label():
    return anatomy()


@pytest.mark.parametrize(
    ("case", "shift"), [("mr_13_t2", 0), ("mr_13_t1in", 2), ("mr_13_t1out", 1), ("ct_05", 0)]
)
def test_chaos(archive, tmp_path, image_and_label, case, shift):
    image, label = image_and_label
    out = tmp_path / "image.nii.gz", tmp_path / "label.nii.gz"
    chaos.prepare(case, archive, *out)
    scan, labels = read_volume(out[0]), read_volume(out[1], label=True)
    check_same_grid(scan, labels)
    np.testing.assert_array_equal(scan.array, (image + shift)[RAS_OF])
    wanted = np.where(label == 1, 1, 0) if case == "ct_05" else label
    np.testing.assert_array_equal(labels.array, wanted[RAS_OF])
    np.testing.assert_allclose(scan.geometry.canonical_affine[:3, 3], (0.5, 10, -40), atol=1e-4)
    np.testing.assert_allclose(scan.geometry.spacing, (1.5, 2, 3), atol=1e-5)
    places = sides(out[1])
    if case != "ct_05":
        # in RAS, the patient's right has the larger x
        assert places["right"][0] > places["left"][0] + 10
        assert places["left"][2] > places["right"][2]
        assert places["liver"][0] > places["spleen"][0]
        assert places["liver"][2] > places["right"][2]
        assert places["liver"][1] > places["right"][1]
    (one,), _, _ = take_slices(
        Case(case, out[0], out[1], "MR", "test"),
        {
            "classes": ["background", "liver"],
            "labels": dict(FLARE22),
            "window": {"level": 40, "width": 400},
            "percentiles": {"low": 0.5, "high": 99.5},
            "policy": "index",
            "index": 5,
        },
    )
    assert np.argwhere(one.label == 1)[:, 1].max() < SHAPE[0] / 2  # shown at the left: the right


def spoil_png(folder):
    next((folder / "T2SPIR/Ground").glob("*.png")).write_bytes(b"\x89PNG no")


def spoil_dicom(folder):
    file = next((folder / "T2SPIR/DICOM_anon").glob("*.dcm"))
    file.write_bytes(file.read_bytes()[:300])


def other_greys(folder):
    _, label = anatomy()
    shutil.rmtree(folder / "T2SPIR/Ground")
    names = [path.stem + ".png" for path in sorted((folder / "T2SPIR/DICOM_anon").iterdir())]
    published.masks(folder / "T2SPIR/Ground", label, names)


def other_size(folder):
    _, label = anatomy()
    names = [path.stem + ".png" for path in sorted((folder / "T2SPIR/DICOM_anon").iterdir())]
    published.masks(folder / "T2SPIR/Ground", published.GREY[label][:-1], names)


def lost_mask(folder):
    next((folder / "T2SPIR/Ground").glob("*.png")).unlink()


def lost_slice(folder):
    sorted((folder / "T2SPIR/DICOM_anon").iterdir())[3].unlink()


def no_series(folder):
    shutil.rmtree(folder / "T2SPIR/DICOM_anon")


def shuffled_names(folder):
    files = sorted((folder / "T2SPIR/DICOM_anon").iterdir())
    files[2].rename(files[2].with_name("IMG-9999-00001.dcm"))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (spoil_png, "is no readable PNG"),
        (spoil_dicom, "DICOM"),
        (other_greys, r"grey values \d.*, which stand for no organ"),
        (other_size, "the masks measure"),
        (lost_mask, "7 slices, but 6 masks"),
        (lost_slice, "not evenly spaced"),
        (no_series, "holds no MR/13/T2SPIR/DICOM_anon"),
        (shuffled_names, "do not follow the positions"),
    ],
)
def test_a_broken_chaos_case_says_why(tmp_path, image_and_label, spoil, words):
    image, label = image_and_label
    published.chaos_mr(tmp_path / "in", 13, image, label, LPS)
    spoil(tmp_path / "in/Train_Sets/MR/13")
    archive = published.pack(tmp_path / "in", tmp_path / "x.zip")
    with pytest.raises(CaseError, match=words) as caught:
        chaos.prepare("mr_13_t2", archive, tmp_path / "a.nii.gz", tmp_path / "b.nii.gz")
    text = str(caught.value)
    assert str(archive) in text
    assert "/slices" not in text
    assert "\n" not in text
    assert not (tmp_path / "a.nii.gz").exists()
    # the patient's other series are not touched
    chaos.prepare("mr_13_t1in", archive, tmp_path / "a.nii.gz", tmp_path / "b.nii.gz")


def test_a_case_that_chaos_does_not_hold(archive, tmp_path):
    with pytest.raises(CaseError, match="holds no MR/38/T2SPIR/DICOM_anon"):
        chaos.prepare("mr_38_t2", archive, tmp_path / "a.nii.gz", None)


def test_few_stray_pixels_are_background(tmp_path):
    grey = np.zeros((20, 20), np.uint8)
    grey[:, :10] = 63
    grey[0, 0] = 40
    label = chaos._organs(grey, binary=False, name="x.png")
    assert label[0, 0] == 0
    assert (label == 1).sum() == 199
    for value, number in ((55, 1), (70, 1), (110, 2), (135, 2), (175, 13), (200, 13), (240, 3)):
        assert (
            chaos._organs(np.full((2, 2), value, np.uint8), binary=False, name="").max() == number
        )


def test_flare22(tmp_path, image_and_label):
    image, label = image_and_label
    archive = published.flare22(tmp_path / "x.zip", (1, 41), image, label, LPS)
    out = tmp_path / "raw/image.nii.gz", tmp_path / "raw/label.nii.gz"
    flare22.prepare("FLARE22_Tr_0041", archive, *out)
    np.testing.assert_array_equal(read_volume(out[0]).array, image[RAS_OF])
    np.testing.assert_array_equal(read_volume(out[1], label=True).array, label[RAS_OF])
    for path, stored in zip(out, (image, label), strict=True):
        np.testing.assert_array_equal(nib.load(path).get_fdata(), stored)
        np.testing.assert_array_equal(nib.load(path).affine, LPS)
    assert sorted(path.name for path in out[0].parent.iterdir()) == [p.name for p in out]
    with pytest.raises(CaseError, match=r"holds no 'images/FLARE22_Tr_0002_0000\.nii\.gz'"):
        flare22.prepare("FLARE22_Tr_0002", archive, *out)


def test_flare22_headers_are_written_anew(tmp_path, image_and_label):
    """What a header tells beside the geometry may be about the patient."""
    secret = b"DOE^JANE 1970"
    files = {}
    for name, array in zip(
        ("images/FLARE22_Tr_0041_0000", "labels/FLARE22_Tr_0041"), image_and_label, strict=True
    ):
        nifti = nib.Nifti1Image(array, LPS)
        for field in ("descrip", "aux_file", "intent_name", "db_name"):
            nifti.header[field] = secret
        nifti.header.extensions.append(nib.nifti1.Nifti1Extension("comment", secret * 9))
        files[f"FLARE22Train/{name}.nii.gz"] = gzip.compress(nifti.to_bytes())
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for name, content in files.items():
            assert secret in gzip.decompress(content)
            archive.writestr(name, content)
    out = tmp_path / "image.nii.gz", tmp_path / "label.nii.gz"
    flare22.prepare("FLARE22_Tr_0041", tmp_path / "x.zip", *out)
    for path, array in zip(out, image_and_label, strict=True):
        assert b"DOE" not in gzip.decompress(path.read_bytes())
        np.testing.assert_array_equal(nib.load(path).get_fdata(), array)


def test_flare22_names_the_archive_where_a_volume_is_damaged(tmp_path, image_and_label):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("images/FLARE22_Tr_0041_0000.nii.gz", b"no scan")
        archive.writestr("labels/FLARE22_Tr_0041.nii.gz", b"no label")
    with pytest.raises(CaseError, match="not a readable NIfTI") as caught:
        flare22.prepare("FLARE22_Tr_0041", tmp_path / "x.zip", tmp_path / "a.nii.gz", None)
    assert caught.value.file == tmp_path / "x.zip"
    assert str(tmp_path) not in caught.value.reason


def test_a_cropped_scan_stays_where_it_was(tmp_path):
    """Oblique, of three spacings: a voxel has the same place in mm before and after."""
    rng = np.random.default_rng(0)
    image = rng.permutation(8 * 9 * 31).reshape(8, 9, 31).astype(np.int16)
    regions = np.full(image.shape, saros.IGNORE, np.uint8)
    regions[2:6, 2:6, 10:21] = saros.ABDOMINAL_CAVITY
    turned = np.eye(4)
    turned[:3, :3] = Rotation.from_euler("xyz", [20, -15, 10], degrees=True).as_matrix()
    affine = turned @ LPS
    published.saros(tmp_path / "saros", "case_007", image, regions, affine)
    saros.prepare("case_007", tmp_path / "saros", tmp_path / "out.nii.gz", None)
    out = nib.load(tmp_path / "out.nii.gz")
    array = np.asarray(out.dataobj)
    for value in array[0, 0, 0], array[-1, 3, -1], array[2, -1, 5]:
        before = affine @ [*np.argwhere(image == value)[0], 1]
        after = out.affine @ [*np.argwhere(array == value)[0], 1]
        np.testing.assert_allclose(after, before, atol=1e-3)


def test_saros_is_cropped_to_the_abdomen(tmp_path):
    image = np.random.default_rng(0).integers(-1000, 500, (8, 9, 31)).astype(np.int16)
    regions = np.full(image.shape, saros.IGNORE, np.uint8)
    regions[:, :, ::5] = 1  # only every fifth slice is annotated
    regions[2:6, 2:6, 10:21:5] = saros.ABDOMINAL_CAVITY
    regions[2:6, 2:6, 25] = 4
    published.saros(tmp_path / "saros", "case_007", image, regions, LPS)
    saros.prepare("case_007", tmp_path / "saros", tmp_path / "out.nii.gz", None)
    volume = read_volume(tmp_path / "out.nii.gz")
    np.testing.assert_array_equal(volume.array, image[RAS_OF][:, :, 10:21])
    assert volume.geometry.canonical_affine[2, 3] == pytest.approx(-40 + 10 * 3)
    whole = read_volume(tmp_path / "saros/case_007/image.nii.gz").geometry.canonical_affine
    np.testing.assert_allclose(volume.geometry.canonical_affine[:2], whole[:2])


def test_broken_saros_cases(tmp_path):
    image, _ = anatomy()
    with pytest.raises(CaseError, match=r"holds no image\.nii\.gz"):
        saros.prepare("case_000", tmp_path, tmp_path / "out.nii.gz", None)
    published.saros(tmp_path, "case_001", image, np.full(SHAPE, saros.IGNORE, np.uint8), LPS)
    with pytest.raises(CaseError, match="abdominal cavity"):
        saros.prepare("case_001", tmp_path, tmp_path / "out.nii.gz", None)
    (tmp_path / "case_001/body-regions.nii.gz").unlink()
    with pytest.raises(CaseError, match="no such file"):
        saros.prepare("case_001", tmp_path, tmp_path / "out.nii.gz", None)


def test_case_lists():
    for name, count in (("flare22", 50), ("chaos", 80), ("saros", 900)):
        found = entries(name, Path("nowhere"))
        assert len({entry.name for entry in found}) == count
        assert all(re.fullmatch(DATASETS[name].pattern, entry.name) for entry in found)
        splits = [entry.split for entry in found]
        assert splits == ["train"] * (40 if name == "flare22" else 0) + ["test"] * (
            10 if name == "flare22" else count
        )
    assert sum(entry.modality == "MR" for entry in DATASETS["chaos"].entries) == 60


def test_what_was_got_by_hand_makes_the_list(tmp_path):
    with pytest.raises(ConfigError, match="holds no case of saros"):
        entries("saros", tmp_path)
    for name in ("case_899", "case_003", "case_1", "other"):
        (tmp_path / name).mkdir()
    assert [entry.name for entry in entries("saros", tmp_path)] == ["case_003", "case_899"]


@pytest.mark.parametrize(
    "remote",
    [*catalogue.WEIGHTS.values(), *filter(None, (d.archive for d in DATASETS.values()))],
    ids=lambda r: r.name,
)
def test_remotes_are_well_formed(remote):
    if isinstance(remote, Packaged):
        assert re.fullmatch(r"[a-z-]+==[0-9.]+", remote.package)
        assert remote.member.endswith(f"/{remote.name}")
        assert re.fullmatch("sha256:[0-9a-f]{64}", remote.wheel)
    else:
        assert remote.url.startswith("https://")
        assert remote.name in remote.url
    assert re.fullmatch("md5:[0-9a-f]{32}|sha256:[0-9a-f]{64}", remote.checksum)


def test_a_sheet_that_is_written_is_read(tmp_path):
    for name in ("a.nii.gz", "b.nii.gz"):
        (tmp_path / name).touch()
    cases = [
        Case("x", tmp_path / "a.nii.gz", tmp_path / "b.nii.gz", "CT", "train"),
        Case("y", tmp_path / "b.nii.gz", None, "MR", "test"),
    ]
    write_sheet(tmp_path / "samples.tsv", cases)
    assert read_sheet(tmp_path / "samples.tsv") == cases


def test_a_problem_is_the_cases_reason(tmp_path):
    (tmp_path / "p.txt").write_text("x.zip: holds no such thing.")
    case = Case("x", tmp_path / "none", None, "CT", "test", None, tmp_path / "p.txt")
    skip = Skip("x", "prepare", "x.zip: holds no such thing.")
    assert take_slices(case, {}) == ([], [skip], [])
