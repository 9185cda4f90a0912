"""The reference of a case: a label map, or a folder with a mask for each organ."""

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from xaiclip.data.labels import mask_files, read_classes
from xaiclip.data.volumes import read_volume
from xaiclip.errors import CaseError
from xaiclip.organs import FLARE22, SIX_CLASSES

SHAPE = (9, 7, 5)
AFFINE = np.array([[0, -1.5, 0, 4], [2, 0, 0, 5], [0, 0.3, 3, 6], [0, 0, 0, 1.0]])
LIVER, RIGHT, LEFT, SPLEEN, PANCREAS = range(1, 6)


def save(path, array, affine=AFFINE):
    path.parent.mkdir(exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine), path)
    return path


@pytest.fixture
def image(tmp_path):
    return read_volume(save(tmp_path / "scan.nii", np.zeros(SHAPE, np.int16)))


@pytest.fixture
def classes():
    """Of the stored array: each organ somewhere, no two alike."""
    return np.random.default_rng(0).choice(6, SHAPE, p=[0.5, 0.2, 0.1, 0.1, 0.05, 0.05])


def read(path, image, **options):
    return read_classes(path, image, FLARE22, SIX_CLASSES, **options)


def sentence(path, image):
    with pytest.raises(CaseError) as caught:
        read(path, image)
    assert str(path) not in caught.value.reason
    assert caught.value.reason.endswith(".")
    return caught.value.reason


NAMES = {
    "total segmentator": ("liver", "kidney_right", "kidney_left", "spleen", "pancreas"),
    "amos": ("Liver", "right kidney", "left kidney", "Spleen", "Pancreas"),
    "camel": ("liver", "RightKidney", "LeftKidney", "spleen", "pancreas"),
    "short": ("LIVER", "Kidney-R", "kidney.l", "spleen_mask", "pancreas_seg"),
    "upper": ("LIVER", "RIGHT_KIDNEY", "LEFT_KIDNEY", "SPLEEN", "PANCREAS"),
}


@pytest.mark.parametrize("kind", NAMES)
@pytest.mark.parametrize("suffix", [".nii.gz", ".nii"])
def test_a_folder_of_masks_is_a_label(tmp_path, image, classes, kind, suffix):
    folder = tmp_path / "segmentations"
    for number, name in enumerate(NAMES[kind], start=1):
        save(folder / f"{name}{suffix}", (classes == number).astype(np.uint8) * number)
    save(folder / f"aorta{suffix}", np.ones(SHAPE, np.uint8))
    save(folder / f"kidney_cyst_left{suffix}", np.ones(SHAPE, np.uint8))
    (folder / "statistics.json").write_text("{}")
    (folder / "._liver.nii.gz").write_bytes(b"a Mac's")
    got, warnings = read(folder, image)
    assert got.dtype == np.uint8
    np.testing.assert_array_equal(image.geometry.from_canonical(got), classes)
    assert warnings == ()
    assert len(mask_files(folder)) == 7


def test_masks_of_some_organs_are_enough(tmp_path, image, classes):
    folder = tmp_path / "m"
    save(folder / "spleen.nii.gz", (classes == SPLEEN).astype(np.float32) * 255)
    got, (words,) = read(folder, image)
    assert words.startswith("there is no mask of liver, right kidney, left kidney, pancreas, ")
    np.testing.assert_array_equal(
        image.geometry.from_canonical(got), np.where(classes == SPLEEN, SPLEEN, 0)
    )


def test_a_voxel_of_two_masks_is_the_first_organs(tmp_path, image):
    folder = tmp_path / "m"
    liver, spleen = np.zeros(SHAPE, np.uint8), np.zeros(SHAPE, np.uint8)
    liver[:4], spleen[3:] = 1, 1
    save(folder / "a_spleen.nii", np.zeros(SHAPE, np.uint8))  # no organ: another word
    save(folder / "spleen.nii", spleen)
    save(folder / "liver.nii", liver)
    got, (_, words) = read(folder, image)
    assert words.startswith("35 voxels belong to two masks")
    expected = np.where(liver > 0, LIVER, SPLEEN)
    np.testing.assert_array_equal(image.geometry.from_canonical(got), expected)


def test_bad_folders(tmp_path, image):
    folder = tmp_path / "m"
    save(folder / "heart.nii", np.ones(SHAPE, np.uint8))
    words = sentence(folder, image)
    assert "'heart'" in words
    assert "right kidney" in words
    save(folder / "liver.nii", np.ones(SHAPE, np.uint8))
    save(folder / "LIVER.nii.gz", np.ones(SHAPE, np.uint8))
    assert "two masks of 'liver'" in sentence(folder, image)
    (folder / "LIVER.nii.gz").unlink()
    shifted = AFFINE.copy()
    shifted[2, 3] += 3
    save(folder / "spleen.nii", np.ones(SHAPE, np.uint8), shifted)
    assert "mm away from the image" in sentence(folder, image)
    save(folder / "spleen.nii", np.ones((9, 7, 4), np.uint8))
    assert "its grid" in sentence(folder, image)
    save(folder / "spleen.nii", np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE) % 3)
    assert "one value beside 0" in sentence(folder, image)
    (folder / "spleen.nii").write_bytes(b"x")
    assert "not a readable NIfTI" in sentence(folder, image)


def test_masks_as_pictures(tmp_path):
    classes = np.random.default_rng(1).choice(3, (6, 9)).astype(np.uint8)
    Image.fromarray(classes * 80).save(tmp_path / "scan.png")
    (tmp_path / "m").mkdir()
    for number, name in enumerate(("liver", "kidney_right"), start=1):
        Image.fromarray((classes == number).astype(np.uint8) * 255).save(tmp_path / f"m/{name}.png")
    got, _ = read(tmp_path / "m", read_volume(tmp_path / "scan.png"))
    np.testing.assert_array_equal(got[::-1, ::-1, 0].T, classes)


def test_a_label_map_keeps_its_warnings(tmp_path, image):
    qform = AFFINE.copy()
    qform[:3, 3] += 20
    label = nib.Nifti1Image(np.ones(SHAPE, np.uint8), AFFINE)
    label.set_qform(qform, 1)
    label.set_sform(AFFINE, 1)
    nib.save(label, tmp_path / "label.nii")
    got, (words,) = read(tmp_path / "label.nii", image)
    assert (got == LIVER).all()
    assert "sform and qform" in words


def test_one_hot_channels_name_the_cure(tmp_path, image):
    path = save(tmp_path / "label.nii", np.zeros((*SHAPE, 5), np.uint8))
    assert "one label map instead of a channel for each organ" in sentence(path, image)
