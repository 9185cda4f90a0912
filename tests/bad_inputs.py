"""Bad scans and sample sheets from a seed, and what reading them came to.

Each input is read in a process of its own, with little memory and a time limit. The outcome is
``refused`` (one sentence), ``read`` (checked against nibabel, and against the way back), ``wrong``
(another map than nibabel's), ``traceback`` (any other error, or a crash) or ``hang``.
"""

import gzip
import multiprocessing
import os
import resource
import shutil
import struct
import tempfile
import traceback
import warnings
import zlib
from collections import Counter
from pathlib import Path

import nibabel as nib
import numpy as np
import SimpleITK as sitk
from PIL import Image
from pydicom.uid import RLELossless

import dicom_files
from xaiclip.config.names import NAME
from xaiclip.data.geometry import display
from xaiclip.data.sheet import Case, read_sheet
from xaiclip.data.slices import take_slices
from xaiclip.data.volumes import read_volume, restore
from xaiclip.errors import CaseError, ConfigError

SHAPE = (9, 8, 7)
#: A reader may take this much more memory than the libraries have already.
MEMORY = 2**30
#: Seconds for one input; a good one takes milliseconds.
LIMIT = 20.0
NAMES = ["scan", "Schädel  Kopie", "スキャン", "a'b", "x;y", "{case}", "%s", "ü" * 60, "a#b", "-rf"]
SETTINGS = {
    "classes": ["background", "liver"],
    "labels": {1: "liver"},
    "window": {"level": 40, "width": 400},
    "percentiles": {"low": 0.5, "high": 99.5},
    "policy": "middle_labelled",
}

# Making them


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


# Reading them


def _sentence(error):
    text = str(error)
    good = "\n" not in text and "\r" not in text and text.endswith((".", "?")) and len(text) < 20000
    return "refused" if good else f"traceback: not a sentence: {text!r}"


def _as_nibabel(path):
    """Voxels of a NIfTI file, packed or not, and the affines that its header has."""
    content = path.read_bytes()
    content = gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
    kind = nib.Nifti2Image if 540 in struct.unpack("<i", content[:4]) else nib.Nifti1Image
    if content[:4] in (b"\x00\x00\x02\x1c", b"\x00\x00\x01\x5c"):
        kind = nib.Nifti2Image if content[3] == 0x1C else nib.Nifti1Image
    image = kind.from_bytes(content)
    unit = {1: 1000, 3: 0.001}.get(int(image.header["xyzt_units"]) & 7, 1)
    affines = []
    for form in (image.get_sform, image.get_qform):
        affine, code = form(coded=True)
        if code > 0:
            affines.append(np.diag([unit, unit, unit, 1]) @ affine)
    return image.get_fdata(dtype=np.float32), affines


def _as_itk(path):
    """The same of ITK's formats; None where ITK does not read the file."""
    try:
        image = sitk.ReadImage(str(path))
    except RuntimeError:
        return None
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return sitk.GetArrayFromImage(image).T, [np.diag([-1, -1, 1, 1]) @ affine]


def _same_as_others(path):
    """Whether a scan has the voxels and places that others give it, and leads back to them."""
    volume = read_volume(path)
    geometry = volume.geometry
    assert volume.array.ndim == 3
    assert sum(size > 1 for size in volume.array.shape) > 1
    assert volume.array.shape[2] > 1 or volume.array.shape == geometry.canonical_shape
    assert np.isfinite(volume.array).all()
    assert all(0.009 < size < 101 for size in geometry.spacing)
    stored = geometry.from_canonical(volume.array)
    corner = np.array(volume.array.shape) - 1
    first = np.linalg.inv(geometry.affine) @ geometry.canonical_affine @ [*corner, 1]
    i, j, k = np.rint(first[:3]).astype(int)
    assert stored[i, j, k] == volume.array[tuple(corner)]
    name = path.name.lower()
    if not path.is_dir() and name.endswith((".nii", ".nii.gz", ".mha", ".mhd", ".nrrd", ".nhdr")):
        others = (_as_nibabel if ".nii" in name else _as_itk)(path)
    else:
        others = None
    if others is not None:
        truth, affines = others
        np.testing.assert_array_equal(np.squeeze(stored), np.squeeze(truth))
        if min(stored.shape) > 1:
            assert any(
                np.allclose(geometry.affine, affine, rtol=1e-5, atol=1e-4) for affine in affines
            )
    depth = volume.array.shape[2]
    back = restore({k: display(volume.array[:, :, k]) for k in range(depth)}, geometry)
    np.testing.assert_allclose(back.affine, geometry.affine, rtol=1e-5, atol=1e-4)
    np.testing.assert_array_equal(back.get_fdata(dtype=np.float32), stored.astype(np.float32))


def read(sample):
    """Read a sample as the workflow would; the outcome."""
    try:
        if isinstance(sample, Case):
            slices, skips, _ = take_slices(sample, SETTINGS)
            assert slices or skips
            for skip in skips:
                if skip.organ is None and (bad := _sentence(skip.reason)) != "refused":
                    return bad
            assert sample.label is not None
            truth = np.squeeze(nib.Nifti1Image.from_filename(sample.label).get_fdata())
            assert not slices or set(np.unique(truth)) <= {0, 1}, "a label was misread"
            return "read" if slices else "refused"
        if sample.name.endswith(".tsv"):
            for case in read_sheet(sample):
                _, skips, _ = take_slices(case, SETTINGS)  # no cell of them is a scan
                assert [_sentence(skip.reason) for skip in skips] == ["refused"]
                assert NAME.fullmatch(case.name)
                assert ".." not in Path(case.name).parts
            return "read"
        _same_as_others(sample)
        return "read"
    except (CaseError, ConfigError) as error:
        return _sentence(error)
    except AssertionError:
        return f"wrong: {traceback.format_exc()}"
    except BaseException:
        return f"traceback: {traceback.format_exc()}"


def _reader(pipe):
    warnings.simplefilter("ignore")
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY, taken + MEMORY))
    while True:
        pipe.send(read(pipe.recv()))


class Reader:
    """A process that reads samples, started again when it died or had to be killed."""

    def __init__(self):
        self.process = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()

    def stop(self):
        if self.process is not None:
            self.process.kill()
            self.process.join()
            self.process = None

    def outcome(self, sample):
        if self.process is None:
            context = multiprocessing.get_context("fork")
            self.pipe, theirs = context.Pipe()
            self.process = context.Process(target=_reader, args=(theirs,), daemon=True)
            self.process.start()
            theirs.close()
        self.pipe.send(sample)
        try:
            if self.pipe.poll(LIMIT):
                return self.pipe.recv()
            self.stop()
            return "hang"
        except EOFError:
            self.process.join()
            code = self.process.exitcode
            self.process = None
            return f"traceback: the process died ({code})"


def fuzz(count, seed, keep=None):
    """Make and read ``count`` bad inputs.

    Args:
        count: of inputs; the kinds take turns.
        seed: of all of them.
        keep: folder for the inputs that were not treated well, or None.

    Returns:
        ``bad_inputs``, ``refused``, ``read``, ``wrong``, ``tracebacks``, ``hangs``, and
        ``failures``: (kind, seed, outcome) of the last three.
    """
    totals: Counter[str] = Counter()
    failures = []
    with Reader() as reader:
        for number in range(count):
            kind = KINDS[number % len(KINDS)]
            rng = np.random.default_rng([seed, number])
            with tempfile.TemporaryDirectory(prefix="bad ü ") as name:
                outcome = reader.outcome(kind(rng, Path(name)))
                word = outcome.split(":")[0]
                totals[word] += 1
                if word not in ("refused", "read"):
                    failures.append((kind.__name__, [seed, number], outcome))
                    if keep:
                        shutil.copytree(name, Path(keep) / f"{kind.__name__}_{seed}_{number}")
    return {
        "bad_inputs": count,
        **{word: totals[word] for word in ("refused", "read", "wrong")},
        "tracebacks": totals["traceback"],
        "hangs": totals["hang"],
        "failures": failures,
    }
