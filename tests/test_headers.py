"""MetaImage and NRRD: read as ITK reads them, from files of the header's own folder only."""

import gzip
import os
import zlib

import numpy as np
import pytest
import SimpleITK as sitk
from scipy.spatial.transform import Rotation

from xaiclip.data import geometry
from xaiclip.data.inputs import input_files
from xaiclip.data.volumes import read_volume
from xaiclip.errors import CaseError

SHAPE = (5, 6, 7)
VOXELS = np.random.default_rng(0).integers(0, 250, SHAPE)
TURN = Rotation.from_euler("xyz", [10, 20, 30], degrees=True).as_matrix()
FLIP = np.diag([-1.0, -1.0, 1.0, 1.0])


def itk_image(kind=np.int16):
    """An oblique image with three spacings, as ITK counts it: LPS."""
    image = sitk.GetImageFromArray(VOXELS.astype(kind).T)
    image.SetSpacing((1.5, 2, 3))
    image.SetOrigin((20, -30, -40))
    image.SetDirection(TURN.ravel().tolist())
    return image


def places(image):
    """The affine to RAS, from where ITK says that four voxels lie."""
    origin = np.array(image.TransformIndexToPhysicalPoint((0, 0, 0)))
    affine = np.eye(4)
    affine[:3, 3] = origin
    for axis in range(3):
        step = [0, 0, 0]
        step[axis] = 1
        affine[:3, axis] = np.array(image.TransformIndexToPhysicalPoint(step)) - origin
    return FLIP @ affine


@pytest.mark.parametrize("kind", ["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("suffix", [".mha", ".mhd", ".nrrd", ".nhdr"])
def test_what_itk_writes_is_read_as_itk_reads_it(tmp_path, suffix, packed, kind):
    kind = np.dtype(kind)
    image = itk_image(kind)
    path = tmp_path / f"scan{suffix}"
    sitk.WriteImage(image, path, packed)
    volume = read_volume(path)
    stored = volume.geometry.from_canonical(volume.array)
    np.testing.assert_array_equal(stored, VOXELS.astype(kind))
    np.testing.assert_allclose(volume.geometry.affine, places(image), atol=1e-5)
    assert volume.array.dtype == (np.float32 if kind.kind == "f" else kind)
    assert sorted(file.name for file in input_files(path)) == sorted(os.listdir(tmp_path))


def mhd(path, *lines, shape=SHAPE, kind="MET_SHORT", data="scan.raw"):
    path.write_text(
        "\n".join(
            [
                "ObjectType = Image",
                f"NDims = {len(shape)}",
                f"DimSize = {' '.join(map(str, shape))}",
                f"ElementType = {kind}",
                *lines,
                f"ElementDataFile = {data}",
                "",
            ]
        )
    )
    return path


PLACED = ("ElementSpacing = 1.5 2 3", "TransformMatrix = 1 0 0 0 1 0 0 0 1", "Offset = 1 2 3")


def nhdr(path, *lines, shape=SHAPE, kind="short", data="scan.raw", encoding="raw"):
    path.write_text(
        "\n".join(
            [
                "NRRD0005",
                f"type: {kind}",
                f"dimension: {len(shape)}",
                f"sizes: {' '.join(map(str, shape))}",
                f"encoding: {encoding}",
                *lines,
                f"data file: {data}",
                "",
            ]
        )
    )
    return path


SPACE = (
    "space: left-posterior-superior",
    "space directions: (1.5,0,0) (0,2,0) (0,0,3)",
    "space origin: (1,2,3)",
)
RAW = VOXELS.astype("<i2").tobytes("F")
ORIGIN = FLIP @ [[1.5, 0, 0, 1], [0, 2, 0, 2], [0, 0, 3, 3], [0, 0, 0, 1]]


def check(path, voxels=VOXELS):
    volume = read_volume(path)
    np.testing.assert_array_equal(volume.geometry.from_canonical(volume.array), voxels)
    np.testing.assert_allclose(volume.geometry.affine, ORIGIN)
    return volume


def sentence(path):
    with pytest.raises(CaseError) as caught:
        read_volume(path)
    assert str(path.parent) not in caught.value.reason
    assert caught.value.reason.endswith(".")
    return caught.value.reason


def test_ways_to_store_a_metaimage(tmp_path):
    raw, scan = tmp_path / "scan.raw", tmp_path / "scan.mhd"
    raw.write_bytes(RAW)
    check(mhd(scan, *PLACED))
    check(mhd(scan, PLACED[0], "Rotation = 1 0 0 0 1 0 0 0 1", "Position = 1 2 3"))
    check(mhd(scan, *(line.upper().replace("=", ":") for line in PLACED)))
    raw.write_bytes(VOXELS.astype(">i2").tobytes("F"))
    check(mhd(scan, *PLACED, "ElementByteOrderMSB = True"))
    raw.write_bytes(b"x" * 99 + RAW)
    check(mhd(scan, *PLACED, "HeaderSize = 99"))
    check(mhd(scan, *PLACED, "HeaderSize = -1"))
    raw.write_bytes(zlib.compress(RAW))
    check(mhd(scan, *PLACED, "CompressedData = True"))
    raw.write_text(" ".join(map(str, VOXELS.ravel("F"))))
    check(mhd(scan, *PLACED, "BinaryData = False"))
    names = [f"slice {k:02}.raw" for k in range(7)]
    for k, name in enumerate(names):
        (tmp_path / name).write_bytes(VOXELS[:, :, k].astype("<i2").tobytes("F"))
    check(mhd(scan, *PLACED, data="LIST\n" + "\n".join(names)))
    assert [file.name for file in input_files(scan)] == ["scan.mhd", *names]
    for k in range(7):
        os.rename(tmp_path / names[k], tmp_path / f"s{9 - k:03}.raw")
    check(mhd(scan, *PLACED, data="s%03d.raw 9 3 -1"))
    assert len(input_files(scan)) == 8


def test_ways_to_store_a_nrrd(tmp_path):
    raw, scan = tmp_path / "scan.raw", tmp_path / "scan.nhdr"
    endian = "endian: little"
    raw.write_bytes(RAW)
    check(nhdr(scan, endian, *SPACE))
    check(nhdr(scan, endian, "# a comment", "key:=data file: x", *map(str.upper, SPACE)))
    raw.write_bytes(VOXELS.astype(">i2").tobytes("F"))
    check(nhdr(scan, "endian: big", *SPACE))
    raw.write_bytes(b"one\ntwo\n12345" + RAW)
    check(nhdr(scan, endian, *SPACE, "line skip: 2", "byteskip: 5"))
    check(nhdr(scan, endian, *SPACE, "byte skip: -1"))
    raw.write_bytes(gzip.compress(RAW[:99]) + gzip.compress(RAW[99:]))
    check(nhdr(scan, endian, *SPACE, encoding="gz"))
    raw.write_bytes(gzip.compress(b"12345" + RAW))
    check(nhdr(scan, endian, *SPACE, "byte skip: 5", encoding="GZIP"))
    raw.write_bytes(__import__("bz2").compress(RAW))
    check(nhdr(scan, endian, *SPACE, encoding="bzip2"))
    raw.write_text("\n".join(map(str, VOXELS.ravel("F"))))
    check(nhdr(scan, *SPACE, encoding="ascii"))
    names = [f"slice {k:02}.raw" for k in range(7)]
    for k, name in enumerate(names):
        (tmp_path / name).write_bytes(VOXELS[:, :, k].astype("<i2").tobytes("F"))
    check(nhdr(scan, endian, *SPACE, data="LIST\n" + "\n".join(names)))
    assert [file.name for file in input_files(scan)] == ["scan.nhdr", *names]
    signs = {"right-anterior-superior": (-1, -1, 1), "LAS": (1, -1, 1), "LPS": (1, 1, 1)}
    for space, (x, y, z) in signs.items():
        axes = f"space directions: ({1.5 * x},0,0) (0,{2 * y},0) (0,0,{3 * z})"
        origin = f"space origin: ({x},{2 * y},{3 * z})"
        raw.write_bytes(RAW)
        check(nhdr(scan, endian, f"space: {space}", axes, origin))


def test_one_channel_is_no_axis_of_space(tmp_path):
    (tmp_path / "scan.raw").write_bytes(RAW)
    axes = SPACE[1].replace(": (", ": none (")
    one = nhdr(
        tmp_path / "scan.nhdr", "endian: little", SPACE[0], axes, SPACE[2], shape=(1, *SHAPE)
    )
    check(one)
    (tmp_path / "scan.raw").write_bytes(RAW * 3)
    nhdr(one, "endian: little", SPACE[0], axes, SPACE[2], shape=(3, *SHAPE))
    assert "has 3 values in each voxel" in sentence(one)


UNPLACED = {
    "no matrix": ("mhd", ("ElementSpacing = 1.5 2 3",)),
    "letters alone": ("mhd", ("ElementSpacing = 1.5 2 3", "AnatomicalOrientation = LPI")),
    "identity": ("mhd", ("ElementSpacing = 1 1 1", PLACED[1], "Offset = 0 0 0")),
    "no space": ("nhdr", ("endian: little", "spacings: 1.5 2 3")),
    "no anatomy": ("nhdr", ("endian: little", "space: 3D-right-handed", *SPACE[1:])),
    "no name": ("nhdr", ("endian: little", "space dimension: 3", *SPACE[1:])),
    "nothing": ("nhdr", ("endian: little",)),
}


@pytest.mark.parametrize("name", UNPLACED)
def test_axes_that_nobody_told_are_refused_or_said(tmp_path, name):
    suffix, lines = UNPLACED[name]
    path = tmp_path / f"scan.{suffix}"
    (tmp_path / "scan.raw").write_bytes(RAW)
    (mhd if suffix == "mhd" else nhdr)(path, *lines)
    assert "'data.orientation'" in sentence(path)
    volume = read_volume(path, orientation="PIR")
    np.testing.assert_array_equal(volume.array, np.transpose(VOXELS, (2, 0, 1))[:, ::-1, ::-1])
    measured = name not in ("identity", "nothing")
    assert volume.geometry.measured is measured
    np.testing.assert_allclose(volume.geometry.spacing, (3, 1.5, 2) if measured else (1, 1, 1))
    (tmp_path / "told.raw").write_bytes(RAW)
    told = read_volume(mhd(tmp_path / "told.mhd", *PLACED, data="told.raw"), orientation="PIR")
    np.testing.assert_allclose(told.geometry.affine, ORIGIN)  # the file's own word counts


ELSEWHERE = {
    "tab": "ElementDataFile\t=\t../other/secret.raw",
    "colon": "ElementDataFile : ../other/secret.raw",
    "leading space": "   ElementDataFile = ../other/secret.raw",
    "no space": "ElementDataFile=../other/secret.raw",
    "case": "elementdatafile = ../other/secret.raw",
    "padding": "Comment = " + "x" * 2**17 + "\nElementDataFile = ../other/secret.raw",
    "absolute": "ElementDataFile = {other}/secret.raw",
    "list": "ElementDataFile = LIST\nscan.raw\n../other/secret.raw",
    "list of slices": "ElementDataFile = LIST 2\n../other/secret.raw",
    "pattern": "ElementDataFile = ../other/s%dcret.raw 1 1 1",
    "link": "ElementDataFile = link.raw",
    "folder link": "ElementDataFile = linked/secret.raw",
    "twice": "ElementDataFile : ../other/secret.raw\nElementDataFile = scan.raw",
    "return": "ElementDataFile = ../other/secret.raw\r",
    "device": "ElementDataFile = /dev/zero",
    "pipe": "ElementDataFile = pipe.raw",
}
ELSEWHERE_NRRD = {
    "field": "data file: ../other/secret.raw",
    "one word": "datafile: ../other/secret.raw",
    "case": "DATA FILE:../other/secret.raw",
    "spaces": "  data   file  :  ../other/secret.raw",
    "tab": "data\tfile:\t../other/secret.raw",
    "padding": "# " + "x" * 2**17 + "\ndata file: ../other/secret.raw",
    "list": "data file: LIST\n../other/secret.raw",
    "list of slices": "data file: LIST 2\nscan.raw\n../other/secret.raw",
    "pattern": "data file: ../other/s%dcret.raw 1 1 1",
    "absolute": "data file: {other}/secret.raw",
    "link": "data file: link.raw",
    "folder link": "data file: linked/secret.raw",
    "twice": "data file: scan.raw\ndatafile: ../other/secret.raw",
    "device": "data file: /dev/zero",
    "pipe": "data file: pipe.raw",
}


@pytest.mark.parametrize(
    ("suffix", "line"),
    [("mhd", line) for line in ELSEWHERE.values()]
    + [(suffix, line) for line in ELSEWHERE_NRRD.values() for suffix in ("nhdr", "nrrd")],
)
def test_data_elsewhere_are_not_read(tmp_path, suffix, line):
    own, other = tmp_path / "own", tmp_path / "other"
    own.mkdir()
    other.mkdir()
    for file in (own / "scan.raw", other / "secret.raw", other / "s1cret.raw"):
        file.write_bytes(RAW)
    (own / "link.raw").symlink_to(other / "secret.raw")
    (own / "linked").symlink_to(other)
    os.mkfifo(own / "pipe.raw")
    path = own / f"scan.{suffix}"
    if suffix == "mhd":
        mhd(path, *PLACED)
        head = path.read_text().partition("ElementDataFile")[0]
    else:
        nhdr(path, "endian: little", *SPACE)
        head = path.read_text().partition("data file")[0]
    path.write_text(head + line.format(other=other) + "\n")
    words = sentence(path)
    assert any(part in words for part in ("another folder", "no file", "twice", "names no data"))
    assert input_files(path) == [path]


def test_a_link_to_a_header_leads_to_its_data(tmp_path):
    """Folders of links to a scanner's files are common."""
    store, links = tmp_path / "store", tmp_path / "links"
    store.mkdir()
    links.mkdir()
    (store / "scan.raw").write_bytes(RAW)
    mhd(store / "scan.mhd", *PLACED)
    for name in ("scan.mhd", "scan.raw"):
        (links / name).symlink_to(store / name)
    check(links / "scan.mhd")
    assert input_files(links / "scan.mhd") == [links / "scan.mhd", links / "scan.raw"]


BOMBS = {
    "doubles.mha": (30, "more than is read"),
    "lying.mha": (10**6, "more than is read"),
    "more.mha": (3, "more than the file can hold"),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_small_file_takes_no_large_memory(tmp_path, name, monkeypatch):
    """2 MB of a compressed MetaImage can hold 3.2 GB of doubles."""
    monkeypatch.setattr(geometry, "MAX_BYTES", 4000)
    size, words = BOMBS[name]
    path = tmp_path / name
    mhd(path, *PLACED, "CompressedData = True", shape=(size, 20, 10), kind="MET_DOUBLE")
    head = path.read_text().replace("scan.raw", "LOCAL")
    content = zlib.compress(bytes(8)) if name == "more.mha" else zlib.compress(bytes(2**20))
    path.write_bytes(head.encode() + content)
    if name == "more.mha":
        monkeypatch.setattr(geometry, "MAX_BYTES", 2**31)
        monkeypatch.setattr("xaiclip.data.voxels.MAX_RATIO", 2)
    assert words in sentence(path)


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (("ElementNumberOfChannels = 3",), "3 values in each voxel"),
        (("DistanceUnits = um",), "not in mm"),
        (("ElementToIntensityFunctionSlope = 2",), "scaled"),
        (("DimSize = 5 6 7",), "twice"),
        (("HeaderSize = 3", "CompressedData = True"), "HeaderSize"),
        (("TransformMatrix = 1 0 0 0",), "damaged"),
        (("no key",), "names no data"),
    ],
)
def test_what_is_not_understood_is_refused(tmp_path, lines, words):
    (tmp_path / "scan.raw").write_bytes(RAW)
    assert words in sentence(mhd(tmp_path / "scan.mhd", *lines))


def test_a_data_file_of_another_length_is_refused(tmp_path):
    path = mhd(tmp_path / "scan.mhd", *PLACED)
    (tmp_path / "scan.raw").write_bytes(RAW[:-1])
    assert "more than the file can hold" in sentence(path)
    (tmp_path / "scan.raw").write_bytes(RAW + bytes(2**21))
    assert "long after its voxels" in sentence(path)
