"""Volumes: orientation, forms, formats, and the way back."""

import itertools
import struct

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from scipy.spatial.transform import Rotation

from volume_files import RAS, SHAPE, VOXELS, itk_image, oriented, sentence, write
from xaiclip.data.geometry import Geometry, display
from xaiclip.data.volumes import read_volume, restore, write_volume

CODES = [
    "".join(pair[sign] for pair, sign in zip(axes, signs, strict=True))
    for axes in itertools.permutations(("LR", "PA", "IS"))
    for signs in itertools.product((0, 1), repeat=3)
]


@pytest.mark.parametrize("code", CODES)
def test_every_orientation_gives_the_same_slices_and_leads_back(tmp_path, code):
    assert len(set(CODES)) == 48
    stored, affine = oriented(code)
    volume = read_volume(write(tmp_path / "scan.nii.gz", stored, affine))
    np.testing.assert_array_equal(volume.array, VOXELS)
    np.testing.assert_allclose(volume.geometry.canonical_affine, RAS)
    assert volume.geometry.canonical_shape == SHAPE
    np.testing.assert_allclose(volume.geometry.spacing, (1.5, 2, 3))
    assert volume.array.dtype == np.int16  # the file's own

    slices = {k: display(volume.array[:, :, k]) for k in range(SHAPE[2])}
    back = restore(slices, volume.geometry)
    np.testing.assert_array_equal(back.get_fdata(), stored)
    np.testing.assert_array_equal(back.affine, affine)
    nib.save(back, tmp_path / "back.nii.gz")
    again = nib.load(tmp_path / "back.nii.gz")
    np.testing.assert_array_equal(again.get_fdata(), stored)
    np.testing.assert_allclose(again.get_qform(), affine, atol=1e-5)


def test_slices_that_are_not_there_are_filled():
    geometry = Geometry(*(lambda stored, affine: (affine, stored.shape))(*oriented("SPL")))
    one = np.ones((SHAPE[1], SHAPE[0]))
    maps = restore({2: one}, geometry).get_fdata()
    assert np.isnan(maps).sum() == VOXELS.size - one.size
    labels = restore({2: one}, geometry, fill=0, dtype=np.uint8)
    assert labels.get_data_dtype() == np.uint8
    assert labels.get_fdata().sum() == one.size
    # the first stored axis runs from the feet to the head
    assert (labels.get_fdata()[2] == 1).all()


def test_a_slice_is_shown_as_a_radiologist_sees_it():
    array = np.zeros(SHAPE)
    array[0, -1, 3] = 1  # in RAS index 0 is the patient's left, and -1 the front
    shown = display(array[:, :, 3])
    assert shown.shape == (SHAPE[1], SHAPE[0])
    assert shown[0, -1] == 1  # the patient's left is on the right
    assert shown.flags.c_contiguous


def test_oblique_scans_take_the_nearest_axes(tmp_path):
    angle = np.deg2rad(20)
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    stored, affine = oriented("LPS")
    volume = read_volume(write(tmp_path / "oblique.nii", stored, turn @ affine))
    np.testing.assert_array_equal(volume.array, VOXELS)
    back = restore({0: display(volume.array[:, :, 0])}, volume.geometry)
    np.testing.assert_allclose(back.affine, turn @ affine, atol=1e-5)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.float32, np.float64])
def test_label_types(tmp_path, dtype):
    array = np.random.default_rng(1).integers(0, 14, SHAPE).astype(dtype)
    label = read_volume(write(tmp_path / "label.nii.gz", array), label=True)
    assert label.array.dtype == np.uint8  # the smallest that holds 13
    np.testing.assert_array_equal(label.array, array)


def test_scaled_storage(tmp_path):
    image = nib.Nifti1Image(VOXELS, RAS)
    image.header.set_slope_inter(0.5, -10)
    nib.save(image, tmp_path / "scaled.nii")
    np.testing.assert_array_equal(read_volume(tmp_path / "scaled.nii").array, VOXELS * 0.5 - 10)
    raw = bytearray(nib.Nifti1Image((VOXELS > 0).astype(np.uint8) * 30, RAS).to_bytes())
    raw[112:120] = struct.pack("<ff", 0.1, 0.0)  # scl_slope, scl_inter: 30 × 0.1 is not quite 3
    (tmp_path / "label.nii").write_bytes(raw)
    label = read_volume(tmp_path / "label.nii", label=True)
    np.testing.assert_array_equal(label.array, (VOXELS > 0) * 3)


def with_forms(path, sform, qform, codes=(1, 1), array=VOXELS):
    """A NIfTI file whose two forms are set one by one; pixdim follows the qform."""
    image = nib.Nifti1Image(array, qform)
    image.set_qform(qform, codes[1])
    image.set_sform(sform, codes[0])
    nib.save(image, path)
    return path


def moved(x=0.0, y=0.0, z=0.0):
    affine = RAS.copy()
    affine[:3, 3] += x, y, z
    return affine


def test_sform_before_qform(tmp_path):
    path = with_forms(tmp_path / "both.nii", RAS, moved(z=9))
    volume = read_volume(path)
    np.testing.assert_array_equal(volume.geometry.affine, RAS)
    assert "sform and qform lie up to 9 mm apart" in volume.warnings[0]
    assert read_volume(with_forms(path, RAS, moved(z=1))).warnings == ()
    only = read_volume(with_forms(path, RAS, moved(z=9), (0, 1)))
    np.testing.assert_allclose(only.geometry.affine, moved(z=9))
    assert only.warnings == ()
    void = read_volume(with_forms(path, np.diag([0, 0, 0, 1]), moved(z=9)))
    np.testing.assert_allclose(void.geometry.affine, moved(z=9))


@pytest.mark.parametrize("mirrored", [(-1, -1, 1), (-1, 1, 1), (1, 1, -1)])
def test_forms_that_contradict_each_other_are_refused(tmp_path, mirrored):
    path = with_forms(tmp_path / "both.nii", RAS, np.diag([*mirrored, 1]) @ RAS)
    assert "sform and qform contradict" in sentence(path)


def test_voxel_sizes_that_contradict_each_other_are_refused(tmp_path):
    steps = RAS.copy()
    steps[:3, :3] /= np.linalg.norm(RAS[:3, :3], axis=0)
    path = with_forms(tmp_path / "unit.nii", steps, RAS)
    assert "its sform makes the voxels 1 × 1 × 1 mm, its pixdim 1.5 × 2 × 3 mm" in sentence(path)
    swapped = RAS[[1, 0, 2, 3]]  # rows for columns: 2 × 1.5
    assert "contradict" in sentence(with_forms(path, swapped, RAS))


def test_a_tilted_gantry_has_two_distances_of_slices(tmp_path):
    """Along the sheared axis, and between the planes: tools write either into pixdim."""
    sheared = RAS.copy()
    sheared[1, 2] = 1.2
    path = write(tmp_path / "sheared.nii", VOXELS, sheared)
    for distance in (np.hypot(3, 1.2), 3):
        raw = bytearray(path.read_bytes())
        struct.pack_into("<f", raw, 88, distance)
        path.write_bytes(raw)
        np.testing.assert_allclose(read_volume(path).geometry.affine, sheared, rtol=1e-6)
    struct.pack_into("<f", raw, 88, 4)
    path.write_bytes(raw)
    assert "pixdim" in sentence(path)


@pytest.mark.parametrize(("code", "factor"), [(0, 1), (1, 1000), (2, 1), (3, 0.001)])
def test_units(tmp_path, code, factor):
    raw = bytearray(nib.Nifti1Image(VOXELS, np.diag([1 / factor] * 3 + [1]) @ RAS).to_bytes())
    raw[123] = code
    (tmp_path / "units.nii").write_bytes(raw)
    affine = read_volume(tmp_path / "units.nii").geometry.affine
    np.testing.assert_allclose(affine, RAS, rtol=1e-5)


@pytest.mark.parametrize("shape", [(*SHAPE, 1), (*SHAPE, 1, 1)])
def test_trailing_axes_of_one_are_dropped(tmp_path, shape):
    volume = read_volume(write(tmp_path / "4d.nii.gz", VOXELS.reshape(shape)))
    np.testing.assert_array_equal(volume.array, VOXELS)


@pytest.mark.parametrize("name", ["Köpfe und Bäuche.nii.gz", "スキャン.nii", "a b.NII.GZ", "x.mha"])
def test_any_path(tmp_path, name):
    folder = tmp_path / "ein Ordner ü"
    folder.mkdir()
    sitk.WriteImage(itk_image(), folder / "x.mha")
    if not name.endswith(".mha"):
        write(folder / name, VOXELS)
    np.testing.assert_array_equal(read_volume(folder / name).array, VOXELS)


@pytest.mark.parametrize("suffix", [".mha", ".mhd", ".nrrd", ".nhdr", ".nii.gz"])
@pytest.mark.parametrize("trailing", [False, True])
def test_itk_formats_agree_with_nifti(tmp_path, suffix, trailing):
    image = itk_image()
    image = sitk.JoinSeries(image) if trailing else image
    sitk.WriteImage(image, tmp_path / f"scan{suffix}", True)
    volume = read_volume(tmp_path / f"scan{suffix}")
    np.testing.assert_array_equal(volume.array, VOXELS)
    np.testing.assert_allclose(volume.geometry.canonical_affine, RAS, atol=1e-5)


def mm(path, index):
    """Where a voxel lies, in RAS mm: by nibabel's choice, by either form, and by ITK's; None where
    the file does not have the form, or is refused."""
    image = nib.load(path)
    places = [image.affine @ [*index, 1]]
    for form in (image.get_sform, image.get_qform):
        affine, code = form(coded=True)
        places.append(affine @ [*index, 1] if code else None)
    try:
        itk = sitk.ReadImage(str(path)).TransformIndexToPhysicalPoint([int(k) for k in index])
        places.append(np.array([-itk[0], -itk[1], itk[2], 1]))
    except RuntimeError:
        places.append(None)
    return places


SHEARED = np.array([[1.5, 0, 0.2, -20], [0, 2, 0.9, 30], [0, 0, 3, -40], [0, 0, 0, 1]])


TURNED = np.eye(4)
TURNED[:3, :3] = Rotation.from_euler("xyz", [20, 30, -10], degrees=True).as_matrix()


@pytest.mark.parametrize(
    ("affine", "sheared"),
    [(RAS, False), (TURNED @ RAS, False), (SHEARED, True), (TURNED @ SHEARED, True)],
)
@pytest.mark.parametrize("way", ["map", "volume"])
def test_what_we_write_lies_in_one_place_for_every_viewer(tmp_path, affine, sheared, way):
    """ITK may refuse what is sheared, but not show it elsewhere."""
    path = tmp_path / "out.nii.gz"
    if way == "map":
        nib.save(restore({3: np.ones((6, 5))}, Geometry(affine, SHAPE)), path)
    else:
        write_volume(path, VOXELS, affine)
    for index in ((0, 0, 0), (4, 5, 6), (4, 0, 3)):
        places = mm(path, index)
        assert [place is None for place in places] == [False, False, sheared, sheared]
        for place in places:
            if place is not None:
                np.testing.assert_allclose(place, affine @ [*index, 1], atol=1e-3)
