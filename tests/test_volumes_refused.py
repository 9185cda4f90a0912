"""Volumes and labels that are refused, each in one sentence."""

import gzip
import struct
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from volume_files import RAS, SHAPE, VOXELS, itk_image, oriented, pair, sentence, write
from xaiclip.data.volumes import check_same_grid, read_volume
from xaiclip.errors import CaseError

LARGER = np.random.default_rng(0).integers(-1000, 1000, (20, 20, 20)).astype(np.int16)


def test_colours_are_refused(tmp_path):
    sitk.WriteImage(sitk.Compose([itk_image()] * 3), tmp_path / "rgb.mha")
    assert "3 values in each voxel" in sentence(tmp_path / "rgb.mha")


def claims(*shape):
    """A NIfTI header of these dimensions with hardly any voxels behind it."""
    raw = bytearray(nib.Nifti1Image(np.zeros((2, 2, 2), np.int16), RAS).to_bytes())
    raw[40:56] = struct.pack("<8h", len(shape), *shape, *[1] * (7 - len(shape)))
    return bytes(raw)


def nifti2_claims(*shape):
    """The same as NIfTI-2, whose dimensions have 64 bits."""
    raw = bytearray(nib.Nifti2Image(np.zeros((2, 2, 2), np.int16), RAS).to_bytes())
    raw[16:80] = struct.pack("<8q", len(shape), *shape, *[1] * (7 - len(shape)))
    return bytes(raw)


def good(array=VOXELS, affine=RAS):
    return nib.Nifti1Image(array, affine).to_bytes()


def patched(offset, format, *values):
    """A good file with a header field changed."""
    raw = bytearray(good())
    struct.pack_into(format, raw, offset, *values)
    return bytes(raw)


BAD_FILES = {
    "empty.nii": (b"", "not a readable NIfTI"),
    "empty.nii.gz": (b"", "not a readable NIfTI"),
    "text.nii.gz": (b"this is no scan", "not a readable NIfTI"),
    "text.nii": (b"this is no scan" * 100, "not a readable NIfTI"),
    "short.nii": (good()[:-20], "truncated"),
    "short.nii.gz": (gzip.compress(good(LARGER))[:-200], "truncated"),
    "zeros.nii.gz": (gzip.compress(good())[:400] + bytes(400), "damaged"),
    "huge.nii": (claims(32767, 32767, 32767), "claims 32767 × 32767 × 32767"),
    "huge.nii.gz": (gzip.compress(claims(32767, 32767, 32767)), "claims"),
    "huge2.nii": (nifti2_claims(10**5, 10**5, 10**5), "claims 100000 × 100000 × 100000"),
    "absurd.nii.gz": (gzip.compress(nifti2_claims(2**40, 2**40, 2**40)), "claims"),
    "lying.nii.gz": (gzip.compress(claims(1000, 1000, 1000)), "claims 1000"),
    "negative.nii": (claims(5, -6, 7), "claims"),
    "type.nii": (patched(70, "<h", 246), "not a readable NIfTI"),
    "offset.nii": (patched(108, "<f", 1e30), "voxels begin"),
    "inside.nii": (patched(108, "<f", 0.0), "voxels begin in its header"),
    "nowhere.nii": (patched(252, "<2h", 0, 0), "does not tell where its axes lead"),
    "flat.nii": (patched(280, "<4f", 0, 0, 0, 0), "singular"),
    "nan_affine.nii": (patched(280, "<f", np.nan), "singular"),
    "metres.nii": (good(affine=np.diag([1e-3, 1e-3, 1e-3, 1])), "voxels measure"),
    "line.nii": (good(np.ones((5, 1, 1), np.int16)), "3D volume or one slice"),
    "4d.nii": (good(np.ones((*SHAPE, 3), np.int16)), "3D"),
    "one_hot.nii.gz": (gzip.compress(good(np.ones((*SHAPE, 5), np.int16))), "one label map"),
    "identity.nii": (good(affine=np.eye(4)), "is the identity"),
    "itk_identity.nii": (good(affine=np.diag([-1, -1, 1, 1.0])), "is the identity"),
    "nan.nii": (good(np.full(SHAPE, np.nan, np.float32)), "NaN"),
    "inf.nii": (good(np.full(SHAPE, np.inf, np.float32)), "NaN or infinite"),
    "colour.nii": (good(np.zeros(SHAPE, [(c, "u1") for c in "RGB"])), "colours"),
    "complex.nii": (good(np.zeros(SHAPE, np.complex64)), "complex"),
    "scan.png": (b"\x89PNG", "not a picture"),
    "scan.zip": (b"PK", "not a known format"),
    "text.mha": (b"this is no scan", "not a MetaImage"),
    "text.nrrd": (b"NRRD0004\n", "damaged"),
    "huge.mha": (
        b"ObjectType = Image\nNDims = 3\nDimSize = 100000 100000 100000\n"
        b"ElementType = MET_SHORT\nElementDataFile = LOCAL\n12",
        "claims",
    ),
    "lost.mhd": (
        b"ObjectType = Image\nNDims = 3\nDimSize = 5 6 7\n"
        b"ElementType = MET_SHORT\nElementDataFile = lost.raw\n",
        "data file that is not there",
    ),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files_are_refused_in_one_sentence(tmp_path, name):
    content, words = BAD_FILES[name]
    (tmp_path / name).write_bytes(content)
    assert words in sentence(tmp_path / name)


def test_missing_and_overlong_paths():
    assert "no such file" in sentence(Path("nowhere.nii.gz"))
    assert "no such file" in sentence(Path("x" * 5000 + ".nii"))


@pytest.mark.parametrize(
    "array",
    [np.full(SHAPE, 0.5, np.float32), np.full(SHAPE, -1, np.int16), VOXELS / 7],
    ids=["half", "negative", "scan"],
)
def test_labels_must_be_whole(tmp_path, array):
    path = write(tmp_path / "label.nii", array.astype(np.float32))
    assert "whole numbers" in sentence(path, label=True)


def test_damaged_headers_never_raise_anything_else(tmp_path):
    """Random bytes in the header: read, or refused as `CaseError`."""
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(300):
        raw = bytearray(good())
        for _ in range(rng.integers(1, 6)):
            raw[rng.integers(0, 352)] = rng.integers(0, 256)
        path = tmp_path / "fuzzed.nii"
        path.write_bytes(raw)
        try:
            read_volume(path)
        except CaseError:
            refused += 1
    assert refused > 30


def test_grids_that_agree(tmp_path):
    rounded = RAS.copy()
    rounded[:3, 3] += 0.01
    rounded[0, 0] *= 1.001
    check_same_grid(*pair(tmp_path, rounded))
    stored, affine = oriented("PIL")  # stored otherwise, in the same place
    check_same_grid(*pair(tmp_path, affine, stored))


@pytest.mark.parametrize("change", [(0, 3, 1.0), (0, 0, 0.2), (2, 3, 30)])
def test_grids_that_differ(tmp_path, change):
    row, column, by = change
    affine = RAS.copy()
    affine[row, column] += by
    with pytest.raises(CaseError, match=r"label\.nii: lies up to .* mm away from the image"):
        check_same_grid(*pair(tmp_path, affine))
    with pytest.raises(CaseError, match=r"label\.nii: its grid \(5, 6, 6\) differs"):
        check_same_grid(*pair(tmp_path, RAS, VOXELS[..., :6]))


@pytest.mark.parametrize("signs", [(1, 1, 1), (-1, -1, 1), (-1, 1, 1)])
@pytest.mark.parametrize("sizes", [(1, 1, 1), (0.8, 0.8, 5)])
@pytest.mark.parametrize("centred", [False, True])
def test_the_geometry_of_an_array_is_not_taken_for_a_scanners(tmp_path, signs, sizes, centred):
    """The origin at 0, or in the middle: what libraries write when nobody told them one."""
    affine = np.diag([*(np.array(signs) * sizes), 1.0])
    if centred:
        affine[:3, 3] = -affine[:3, :3] @ ((np.array(SHAPE) - 1) / 2)
    path = write(tmp_path / "scan.nii", VOXELS, affine)
    if sizes == (1, 1, 1):
        assert "identity" in sentence(path)
        volume = read_volume(path, orientation="LPS")
        np.testing.assert_array_equal(volume.array, VOXELS[::-1, ::-1])
        assert not volume.geometry.measured
    else:
        assert "were they ever set?" in read_volume(path).warnings[0]
        affine[1, 3] += 7.3
        assert read_volume(write(path, VOXELS, affine)).warnings == ()
