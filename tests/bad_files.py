"""Bad scans and sample sheets, made from a seed."""

import gzip
import os
import struct
import zlib

import nibabel as nib
import numpy as np
import SimpleITK as sitk
from PIL import Image
from pydicom.uid import RLELossless

import dicom_files
from xaiclip.data.sheet import Case

SHAPE = (9, 8, 7)
NAMES = ["scan", "Schädel  Kopie", "スキャン", "a'b", "x;y", "{case}", "%s", "ü" * 60, "a#b", "-rf"]


def _affine(rng):
    """A proper affine: axes in any order and sign, turned a little, of any usual spacing."""
    order = rng.permutation(3)
    matrix = np.zeros((3, 3))
    matrix[order, range(3)] = rng.choice([-1, 1], 3) * rng.uniform(0.5, 5, 3)
    angle = rng.uniform(-0.4, 0.4)
    turn = np.eye(3)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    affine = np.eye(4)
    affine[:3, :3] = turn @ matrix
    affine[:3, 3] = rng.uniform(-300, 300, 3)
    return affine


def _nifti(rng, array=None, affine=None):
    array = rng.integers(-1000, 1000, SHAPE).astype(np.int16) if array is None else array
    affine = _affine(rng) if affine is None else affine
    kind = nib.Nifti2Image if rng.random() < 0.2 else nib.Nifti1Image
    return bytearray(kind(array, affine).to_bytes())


def _store(rng, folder, raw):
    """Write the bytes of a NIfTI file, compressed or not, under a name that is not simple."""
    name = rng.choice(NAMES) + rng.choice([".nii", ".nii.gz", ".NII.GZ"])
    path = folder / name
    packed = path.name.lower().endswith(".gz")
    path.write_bytes(gzip.compress(bytes(raw), 1) if packed else bytes(raw))
    return path


def truncated(rng, folder):
    path = _store(rng, folder, _nifti(rng))
    content = path.read_bytes()
    path.write_bytes(content[: rng.integers(0, len(content))])
    return path


def flipped(rng, folder):
    """Some bytes of the stored file, compressed or not, are others."""
    path = _store(rng, folder, _nifti(rng))
    content = bytearray(path.read_bytes())
    for _ in range(rng.integers(1, 20)):
        content[rng.integers(len(content))] = rng.integers(256)
    path.write_bytes(content)
    return path


def header_bytes(rng, folder):
    raw = _nifti(rng)
    for _ in range(rng.integers(1, 12)):
        raw[rng.integers(0, 352)] = rng.integers(256)
    return _store(rng, folder, raw)


def header_noise(rng, folder):
    """The magic is right, all else is noise."""
    raw = bytearray(nib.Nifti1Image(np.zeros(SHAPE, np.int16), _affine(rng)).to_bytes())
    start, end = sorted(rng.integers(4, 344, 2))
    raw[start : end + 1] = rng.bytes(end + 1 - start)
    return _store(rng, folder, raw)


def dimensions(rng, folder):
    """Up to 2⁶² voxels along an axis, none, or fewer than none."""
    if rng.random() < 0.5:
        raw = bytearray(nib.Nifti1Image(np.zeros(SHAPE, np.int16), _affine(rng)).to_bytes())
        sizes = rng.choice([-32768, -1, 0, 1, 2, 7, 1000, 32767], 7)
        struct.pack_into("<8h", raw, 40, rng.integers(-1, 9), *sizes)
    else:
        raw = bytearray(nib.Nifti2Image(np.zeros(SHAPE, np.int16), _affine(rng)).to_bytes())
        sizes = rng.choice([-1, 1, 7, 10**5, 2**31, 2**62], 7)
        struct.pack_into("<8q", raw, 16, 3, *(int(size) for size in sizes))
    return _store(rng, folder, raw)


def spacing(rng, folder):
    affine = _affine(rng)
    factor = rng.choice([0, np.nan, np.inf, 1e-30, 1e-4, 1e4, 1e30, -1])
    affine[:, rng.integers(3)] *= factor
    raw = bytearray(nib.Nifti1Image(np.ones(SHAPE, np.int16), np.eye(4)).to_bytes())
    with np.errstate(over="ignore", invalid="ignore"):
        struct.pack_into("<12f", raw, 280, *affine[:3].astype(np.float32).ravel())
    struct.pack_into("<3f", raw, 80, *[float(np.float32(factor))] * 3)  # and pixdim
    struct.pack_into("<2h", raw, 252, *rng.integers(0, 3, 2))
    return _store(rng, folder, raw)


def quaternion(rng, folder):
    """A qform alone, of any numbers."""
    raw = bytearray(nib.Nifti1Image(np.ones(SHAPE, np.int16), np.eye(4)).to_bytes())
    values = rng.choice([0, 0.5, 0.99, 1, 1.01, 3, np.nan, np.inf, -1e30], 6)
    struct.pack_into("<2h6f", raw, 252, 1, 0, *values)
    struct.pack_into("<4f", raw, 76, *rng.choice([-1, 0, 1, 3, np.nan], 4))
    return _store(rng, folder, raw)


def sheared(rng, folder):
    affine = _affine(rng)
    shear = np.triu(rng.normal(0, rng.choice([0.2, 2, 50]), (3, 3)), 1)
    affine[:3, :3] = affine[:3, :3] @ (np.eye(3) + shear)
    array = rng.integers(-1000, 1000, SHAPE).astype(np.int16)
    return _store(rng, folder, nib.Nifti1Image(array, affine).to_bytes())


def scaling(rng, folder):
    raw = bytearray(nib.Nifti1Image(np.ones(SHAPE, np.int16), _affine(rng)).to_bytes())
    struct.pack_into("<2f", raw, 112, *rng.choice([0, 1e38, -1e38, np.nan, np.inf, 1e-40, 2], 2))
    return _store(rng, folder, raw)


def values(rng, folder):
    """NaN, infinity, the largest and the smallest numbers among the voxels."""
    array = rng.normal(0, 1000, SHAPE).astype(rng.choice([np.float32, np.float64]))
    with np.errstate(over="ignore"):
        array.ravel()[rng.integers(array.size)] = rng.choice(
            [np.nan, np.inf, -np.inf, 3e38, 1e-45, 1e300]
        )
    return _store(rng, folder, _nifti(rng, array))


def voxel_type(rng, folder):
    raw = _nifti(rng)
    struct.pack_into("<2h", raw, 70, rng.choice([0, 1, 2, 8, 16, 32, 64, 128, 1536, 2304, -4]), 16)
    return _store(rng, folder, raw)


def extension(rng, folder):
    """An extension of the header that claims to be long."""
    raw = bytearray(nib.Nifti1Image(np.ones(SHAPE, np.int16), _affine(rng)).to_bytes())
    struct.pack_into("<f", raw, 108, float(rng.choice([352, 368, 1e9, 2e9, -1, np.nan])))
    raw[348:352] = b"\1\0\0\0"
    struct.pack_into("<2i", raw, 352, int(rng.choice([0, 16, 2**31 - 1, -8])), 6)
    return _store(rng, folder, raw)


def bomb(rng, folder):
    """A small scan, and after it 2,000 times as much nothing, in some kilobytes of gzip."""
    path = folder / "bomb.nii.gz"
    press = zlib.compressobj(9, zlib.DEFLATED, 31)
    with path.open("wb") as stream:
        stream.write(press.compress(bytes(_nifti(rng))))
        block = bytes(2**24)
        for _ in range(rng.integers(2, 6)):
            stream.write(press.compress(block))
        stream.write(press.flush())
    return path


def one_slice(rng, folder):
    """Of any plane, with or without the axis that it lacks; some bytes of the header changed."""
    shape = list(SHAPE)
    lacks = rng.integers(3)
    shape[lacks] = 1
    if lacks == 2 and rng.random() < 0.5:
        shape = shape[:2]
    array = rng.integers(-1000, 1000, shape).astype(np.int16)
    raw = bytearray(nib.Nifti1Image(array, _affine(rng)).to_bytes())
    for _ in range(rng.integers(0, 4)):
        raw[rng.integers(40, 352)] = rng.integers(256)
    return _store(rng, folder, raw)


def misnamed(rng, folder):
    """Packed, but called .nii, or the reverse."""
    raw = _nifti(rng)
    packed = rng.random() < 0.5
    path = folder / f"{rng.choice(NAMES)}{'.nii' if packed else '.nii.gz'}"
    path.write_bytes(gzip.compress(bytes(raw), 1) if packed else bytes(raw))
    return path


def picture(rng, folder):
    """A PNG, TIFF or npz with bytes changed, or cut off."""
    path = folder / f"scan{rng.choice(['.png', '.tif', '.jpg', '.npz'])}"
    pixels = rng.integers(0, 256, SHAPE[:2]).astype(np.uint8)
    if path.suffix == ".npz":
        np.savez_compressed(path, imgs=pixels)
    else:
        Image.fromarray(pixels).save(path)
    content = bytearray(path.read_bytes())
    if rng.random() < 0.3:
        content = content[: rng.integers(len(content))]
    for _ in range(rng.integers(0, 6)):
        if content:
            content[rng.integers(len(content))] = rng.integers(256)
    path.write_bytes(content)
    return path


def other_format(rng, folder):
    path = folder / f"other{rng.choice(['.nii', '.nii.gz', '.mha', '.nrrd', '.mhd', '.dcm', ''])}"
    path.write_bytes(rng.choice([b"", b"\x1f\x8b", b"<html>", b"NRRD0005\n", rng.bytes(500)]))
    return path


def itk(rng, folder):
    """MHA, MHD or NRRD with some bytes changed, or cut off."""
    image = sitk.GetImageFromArray(rng.integers(-1000, 1000, SHAPE).astype(np.int16))
    image.SetSpacing(rng.uniform(0.5, 5, 3).tolist())
    image.SetOrigin(rng.uniform(-300, 300, 3).tolist())
    path = folder / f"scan{rng.choice(['.mha', '.mhd', '.nrrd', '.nhdr'])}"
    sitk.WriteImage(image, str(path), bool(rng.integers(2)))
    content = bytearray(path.read_bytes())
    if rng.random() < 0.2:
        path.write_bytes(content[: rng.integers(len(content))])
        return path
    for _ in range(rng.integers(1, 6)):
        content[rng.integers(min(len(content), 400))] = rng.integers(32, 127)
    path.write_bytes(content)
    return path


def itk_header(rng, folder):
    """Dimensions, spacing and data files that no scan has."""
    size = " ".join(map(str, rng.choice([0, -1, 7, 8, 10**5, 2**31, 2**62], 3)))
    space = " ".join(map(str, rng.choice(["nan", "inf", "0", "-1", "1", "1e300", "x"], 3)))
    data = str(rng.choice(["LOCAL", "../../x", "/dev/zero", "LIST", "s%03d.raw 1 9 1", "none"]))
    mha = (
        f"ObjectType = Image\nNDims = 3\nDimSize = {size}\nElementSpacing = {space}\n"
        f"ElementType = MET_SHORT\nElementDataFile = {data}\n"
    )
    steps = " ".join(f"({','.join([step] * 3)})" for step in space.split())
    data = "" if data == "LOCAL" else f"data file: {data}\n"
    nrrd = (
        f"NRRD0005\ntype: short\ndimension: 3\nspace: LPS\nsizes: {size}\n"
        f"space directions: {steps}\nencoding: raw\nendian: little\n{data}\n"
    )
    suffix, text = [(".mha", mha), (".mhd", mha), (".nrrd", nrrd), (".nhdr", nrrd)][rng.integers(4)]
    path = folder / f"scan{suffix}"
    path.write_bytes(text.encode() + rng.bytes(1000))
    return path


def dicom(rng, folder):
    """A series, or a file of several frames, with bytes changed, files cut off or foreign."""
    places = ["0\\0\\{k}", "0\\0\\{k}", "0\\0\\{k}", "0\\0\\0", "0\\{k}\\{k}", "1\\0"]

    def one(k):
        place = str(rng.choice(places)).replace("{k}", str(3 * k))
        file = dicom_files.plane(k, ImagePositionPatient=place.split("\\"))
        if rng.random() < 0.2:
            file.compress(RLELossless)
        return file

    series = folder / "Serie ü 1"
    if rng.random() < 0.3:
        dicom_files.save(dicom_files.enhanced(), series / "IM0")
    else:
        dicom_files.series(series, one, name="IM{}")
    for file in sorted(series.iterdir()):
        content = bytearray(file.read_bytes())
        what = rng.integers(4)
        if what == 0:
            for _ in range(rng.integers(1, 8)):
                content[rng.integers(128, len(content))] = rng.integers(256)
        elif what == 1 and rng.random() < 0.3:
            content = content[: rng.integers(len(content))]
        file.write_bytes(content)
    return series


def label(rng, folder):
    """A good scan whose label is bad: a sample for `take_slices`."""
    affine = _affine(rng)
    image = folder / "scan.nii"
    nib.save(nib.Nifti1Image(rng.integers(-200, 200, SHAPE).astype(np.int16), affine), image)
    array = rng.integers(0, 2, SHAPE).astype(np.float64)
    array.ravel()[rng.integers(array.size)] = rng.choice(
        [-1, 0.5, 2, 255, 2**16, 2**24 + 1, 2**31, 2**32, 1e30, np.nan]
    )
    shift = rng.choice([0, 0, 1e-3, 5])
    affine[:3, 3] += shift
    path = folder / "label.nii"
    nib.save(nib.Nifti1Image(array, affine), path)
    return Case("case", image, path, "MR" if rng.random() < 0.5 else "CT", "test")


def rows(rng, folder):
    """A sample sheet with a bad cell, line, column or encoding."""
    for name in ("a ü.nii", "c0.nii", "c1.nii", "c2.nii"):
        (folder / name).write_bytes(b"x")
    os.mkfifo(folder / "pipe.nii")
    words = [
        *("../../x", "..", ".", "", "a/b", "a\\b", "~", "$HOME", "`id`", "<script>", "{run}", "*"),
        *("ü", "名", "a b", "a\tb", "\x00", "\x1b[31m", "\u202e", "\ufeff", "x" * 5000, "CON", "-"),
        *("nan", "1e9", "NULL", "=1+1", "a ü.nii", "/dev/zero", "/etc", "a ü.nii/", "pipe.nii"),
    ]
    lines = [["case", "image", "label", "modality", "split", "batch"]]
    lines += [[f"c{k}", f"c{k}.nii", "", "CT", "test", ""] for k in range(3)]
    for _ in range(rng.integers(1, 4)):
        line = lines[rng.integers(len(lines))]
        line[rng.integers(len(line))] = words[rng.integers(len(words))]
    if rng.random() < 0.2:
        lines[rng.integers(len(lines))] *= 2
    text = rng.choice(["\n", "\r\n", "\r"]).join("\t".join(line) for line in lines)
    path = folder / "sheet ü.tsv"
    content = text.encode(rng.choice(["utf-8", "utf-8", "utf-16", "utf-8-sig"]))
    if rng.random() < 0.2:
        content = bytearray(content)
        content[rng.integers(len(content))] = rng.integers(256)
    path.write_bytes(content)
    return path


SCANS = [
    *(truncated, flipped, header_bytes, header_noise, dimensions, spacing, quaternion, sheared),
    *(scaling, values, voxel_type, extension, bomb, other_format, itk, itk_header, dicom),
    *(one_slice, misnamed, picture),
]
KINDS = [*SCANS, label, rows]
