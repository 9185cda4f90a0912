"""A single slice is a case like any other: NIfTI of any orientation, pictures, MedSAM's npz."""

import struct
import zlib

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from xaiclip.data import picture
from xaiclip.data.geometry import display
from xaiclip.data.sheet import Case
from xaiclip.data.slices import take_slices
from xaiclip.data.volumes import read_volume, restore
from xaiclip.errors import CaseError
from xaiclip.organs import FLARE22, SIX_CLASSES

ROWS, COLUMNS = 6, 9
PIXELS = np.random.default_rng(0).integers(0, 256, (ROWS, COLUMNS)).astype(np.uint8)
SETTINGS = {
    "classes": list(SIX_CLASSES),
    "labels": dict(FLARE22),
    "window": {"level": 40, "width": 400},
    "percentiles": {"low": 0.5, "high": 99.5},
    "policy": "middle_labelled",
}


def save(path, pixels, mode=None):
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(path)
    return path


def sentence(path, **options):
    with pytest.raises(CaseError) as caught:
        read_volume(path, **options)
    assert caught.value.reason.endswith(".")
    assert str(path) not in caught.value.reason
    return caught.value.reason


@pytest.mark.parametrize(
    ("suffix", "mode"),
    [
        *((suffix, mode) for suffix in (".png", ".TIFF") for mode in (None, "RGB", "RGBA", "LA")),
        *((".bmp", mode) for mode in (None, "RGB")),
        (".tif", None),
    ],
)
def test_a_picture_lies_as_it_is_shown(tmp_path, suffix, mode):
    volume = read_volume(save(tmp_path / f"scan{suffix}", PIXELS, mode))
    assert volume.array.shape == (COLUMNS, ROWS, 1)
    assert volume.array.dtype == np.uint8
    assert not volume.geometry.measured
    np.testing.assert_array_equal(display(volume.array[:, :, 0]), PIXELS)
    # column 0 is the patient's right: x falls to the left, y to the back
    np.testing.assert_array_equal(volume.geometry.affine, np.diag([-1, -1, 1, 1]))


def test_sixteen_bits_floats_jpeg_and_palettes(tmp_path):
    wide = PIXELS.astype(np.uint16) * 200 + 7
    for suffix in (".png", ".tif"):
        got = read_volume(save(tmp_path / f"wide{suffix}", wide))
        np.testing.assert_array_equal(display(got.array[:, :, 0]), wide)
    real = PIXELS.astype(np.float32) / 7
    got = read_volume(save(tmp_path / "real.tif", real))
    np.testing.assert_array_equal(display(got.array[:, :, 0]), real)
    flat = np.full((16, 24), 90, np.uint8)
    got = read_volume(save(tmp_path / "scan.jpg", flat))
    np.testing.assert_array_equal(display(got.array[:, :, 0]), flat)
    ids = Image.fromarray(PIXELS % 6)
    ids.putpalette([200, 0, 0] * 3 + [0, 200, 0] * 253)
    ids.save(tmp_path / "ids.png")
    label = read_volume(tmp_path / "ids.png", label=True)
    np.testing.assert_array_equal(display(label.array[:, :, 0]), PIXELS % 6)
    assert "coloured" in sentence(tmp_path / "ids.png")
    Image.fromarray(PIXELS > 99).save(tmp_path / "mask.png")
    label = read_volume(tmp_path / "mask.png", label=True)
    np.testing.assert_array_equal(display(label.array[:, :, 0]), PIXELS > 99)


def png_claiming(width, height):
    def chunk(kind, content):
        check = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", check)

    head = struct.pack(">2I5B", width, height, 8, 0, 0, 0, 0)
    data = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def test_bad_pictures(tmp_path, monkeypatch):
    path = tmp_path / "scan.png"
    coloured = np.stack([PIXELS, PIXELS, PIXELS // 2], -1)
    assert "coloured" in sentence(save(path, coloured))
    clear = np.stack([PIXELS] * 3 + [PIXELS], -1)
    assert "transparent" in sentence(save(path, clear))
    path.write_bytes(png_claiming(40000, 40000))
    assert "more pixels than a slice has" in sentence(path)
    path.write_bytes(png_claiming(500, 500))
    assert "damaged" in sentence(path)
    path.write_bytes(b"no picture")
    assert "not a picture" in sentence(path)
    pages = [Image.fromarray(PIXELS)] * 2
    pages[0].save(tmp_path / "pages.tif", save_all=True, append_images=pages[1:])
    assert "several pages" in sentence(tmp_path / "pages.tif")
    assert "JPEG changes the ids" in sentence(save(tmp_path / "ids.jpg", PIXELS), label=True)
    monkeypatch.setattr(picture, "MAX_PIXELS", ROWS * COLUMNS - 1)
    assert "more pixels than a slice has" in sentence(save(path, PIXELS))


def test_a_picture_goes_the_whole_way(tmp_path):
    """As it is, without windowing; its maps are NIfTI whose voxels have no size."""
    label = np.zeros_like(PIXELS)
    label[1:3, 0:4] = 1  # liver: on the patient's right, in front
    save(tmp_path / "scan.png", PIXELS)
    save(tmp_path / "label.png", label)
    case = Case("case", tmp_path / "scan.png", tmp_path / "label.png", "CT", "test")
    (one,), _, warnings = take_slices(case, SETTINGS)
    assert warnings == []
    np.testing.assert_array_equal(one.image, PIXELS)
    np.testing.assert_array_equal(one.label, label)
    assert not one.geometry.measured
    ramp = np.arange(PIXELS.size, dtype=np.float32).reshape(PIXELS.shape)
    back = restore({0: ramp}, one.geometry)
    np.testing.assert_array_equal(back.get_fdata()[:, :, 0], ramp.T)
    assert back.header.get_xyzt_units()[0] == "unknown"
    assert b"unknown" in bytes(back.header["descrip"])


def test_a_picture_has_no_place_to_compare(tmp_path):
    save(tmp_path / "scan.png", PIXELS)
    affine = np.array([[-2, 0, 0, 5], [0, -3, 0, 6], [0, 0, 1, 7], [0, 0, 0, 1.0]])
    nib.save(
        nib.Nifti1Image((PIXELS > 99).T.astype(np.uint8)[..., None], affine), tmp_path / "l.nii"
    )
    case = Case("case", tmp_path / "scan.png", tmp_path / "l.nii", "CT", "test")
    (skip,) = take_slices(case, SETTINGS).skips
    assert "the label has a geometry, the image has none" in skip.reason


PLANES = {  # rows of the affine (right, front, head) of the two axes of the slice
    "axial": (0, 1),
    "coronal": (0, 2),
    "sagittal": (1, 2),
}


@pytest.mark.parametrize("plane", PLANES)
@pytest.mark.parametrize("single", [0, 1, 2])
@pytest.mark.parametrize("signs", [(1, 1), (-1, 1), (1, -1)])
def test_one_slice_of_any_plane_stored_in_any_order(tmp_path, plane, single, signs):
    """Shown with the front or the head at the top, the patient's right or front on the left."""
    shown = np.arange(ROWS * COLUMNS, dtype=np.int16).reshape(ROWS, COLUMNS)
    across, up = PLANES[plane]
    # columns run away from right and front, rows from the front or the head
    stored = shown.T
    affine = np.zeros((4, 4))
    affine[across, 0], affine[up, 1] = -1.5, -2.5
    affine[({0, 1, 2} - {across, up}).pop(), 2] = 4
    affine[:, 3] = 11, 22, 33, 1
    for axis, sign in enumerate(signs):
        if sign < 0:
            stored = np.flip(stored, axis)
            affine[:3, 3] += affine[:3, axis] * (stored.shape[axis] - 1)
            affine[:3, axis] *= -1
    order = [axis for axis in (0, 1) for _ in (0,)]
    order.insert(single, 2)
    nifti = nib.Nifti1Image(stored[..., None].transpose(order), affine[:, [*order, 3]])
    nib.save(nifti, tmp_path / "one.nii.gz")
    volume = read_volume(tmp_path / "one.nii.gz")
    assert volume.array.shape == (COLUMNS, ROWS, 1)
    np.testing.assert_array_equal(display(volume.array[:, :, 0]), shown)
    np.testing.assert_allclose(volume.geometry.spacing, (1.5, 2.5, 4))
    case = Case("case", tmp_path / "one.nii.gz", None, "MR", "test")
    (one,) = take_slices(case, SETTINGS).slices
    assert one.spacing == (2.5, 1.5)
    back = restore({0: shown}, one.geometry)
    np.testing.assert_array_equal(back.get_fdata(), nifti.get_fdata())
    np.testing.assert_array_equal(back.affine, nifti.affine)


def test_a_nifti_of_two_dimensions(tmp_path):
    affine = np.array([[-1.5, 0, 0, 9], [0, -2.5, 0, 8], [0, 0, 3, 7], [0, 0, 0, 1.0]])
    nib.save(nib.Nifti1Image(PIXELS.T.astype(np.int16), affine), tmp_path / "two.nii")
    volume = read_volume(tmp_path / "two.nii")
    np.testing.assert_array_equal(display(volume.array[:, :, 0]), PIXELS)
    raw = bytearray((tmp_path / "two.nii").read_bytes())
    for row in range(3):  # no step to a next slice, which there is none of
        struct.pack_into("<f", raw, 280 + 16 * row + 8, 0)
    struct.pack_into("<f", raw, 88, 0)
    (tmp_path / "two.nii").write_bytes(raw)
    volume = read_volume(tmp_path / "two.nii")
    np.testing.assert_allclose(volume.geometry.affine[:3, 2], (0, 0, 1))


def test_medsams_npz(tmp_path):
    label = (PIXELS > 99).astype(np.uint8)
    path = tmp_path / "two.npz"
    for imgs in (PIXELS, np.stack([PIXELS] * 3, -1)):
        np.savez_compressed(path, imgs=imgs, gts=label)
        np.testing.assert_array_equal(display(read_volume(path).array[:, :, 0]), PIXELS)
    np.testing.assert_array_equal(display(read_volume(path, label=True).array[:, :, 0]), label)
    assert not read_volume(path).geometry.measured
    np.savez(path, imgs=PIXELS, gts=label, spacing=(1.5, 2.5))
    assert read_volume(path).geometry.spacing == (1.5, 2.5, 1)
    assert read_volume(path).geometry.measured

    volume = np.random.default_rng(1).integers(0, 256, (4, ROWS, COLUMNS)).astype(np.uint8)
    np.savez_compressed(path, imgs=volume, gts=volume % 3, spacing=np.array([1.5, 2.5, 5]))
    assert "'data.orientation'" in sentence(path)
    got = read_volume(path, orientation="LPS")
    assert got.geometry.spacing == (1.5, 2.5, 5)
    np.testing.assert_array_equal(display(got.array[:, :, 2]), volume[2])
    got = read_volume(path, label=True, orientation="RAS")
    np.testing.assert_array_equal(display(got.array[:, :, 2]), volume[2, ::-1, ::-1] % 3)


def test_bad_npz(tmp_path, monkeypatch):
    path = tmp_path / "x.npz"
    np.savez(path, images=PIXELS)
    assert "holds no array 'imgs'" in sentence(path)
    np.savez(path, imgs=np.array([{}], dtype=object))
    assert "no real numbers" in sentence(path)
    np.savez(path, imgs=np.zeros((2, 3, 4, 5, 6), np.uint8))
    assert "3D volume" in sentence(path)
    np.savez(path, imgs=PIXELS, spacing=np.ones(5))
    assert "'spacing'" in sentence(path)
    path.write_bytes(b"PK\x03\x04 no more")
    assert "npz" in sentence(path)
    monkeypatch.setattr("xaiclip.data.geometry.MAX_BYTES", 2**20)
    np.savez_compressed(path, imgs=np.zeros((2**11, 2**10), np.uint8))
    assert path.stat().st_size < 10_000
    assert "more than is read" in sentence(path)
