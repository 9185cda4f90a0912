"""What a scan is on disk: its checksum, and the memory that reading it takes."""

import gzip
import hashlib
import os
import struct

import nibabel as nib
import numpy as np
import pytest

from xaiclip.data import footprint
from xaiclip.data.footprint import checksum, reading_mb


@pytest.fixture
def scans(tmp_path):
    """One scan of each kind, by name."""
    (tmp_path / "one.nii").write_bytes(b"scan")
    (tmp_path / "series").mkdir()
    for name in ("1.dcm", "2.dcm"):
        (tmp_path / "series" / name).write_bytes(name.encode())
    header = "ObjectType = Image\nNDims = 3\nDimSize = 2 2 2\nElementType = MET_UCHAR\n"
    (tmp_path / "pair.mhd").write_text(f"{header}ElementDataFile = pair.raw\n")
    (tmp_path / "pair.raw").write_bytes(bytes(8))
    nrrd = "NRRD0004\ntype: uchar\ndimension: 3\nsizes: 2 2 2\nencoding: raw\n"
    (tmp_path / "pair.nhdr").write_text(f"{nrrd}data file: other.raw\n\n")
    (tmp_path / "other.raw").write_bytes(bytes(8))
    return tmp_path


#: A file that is read with the scan, and the scan.
READ = [
    ("one.nii", "one.nii"),
    ("series/2.dcm", "series"),
    ("pair.mhd", "pair.mhd"),
    ("pair.raw", "pair.mhd"),
    ("pair.nhdr", "pair.nhdr"),
    ("other.raw", "pair.nhdr"),
]


def test_the_checksum_of_one_file_is_its_own(scans):
    assert checksum(scans / "one.nii") == hashlib.sha256(b"scan").hexdigest()


@pytest.mark.parametrize(("file", "scan"), READ)
def test_every_file_that_is_read_is_in_the_checksum(scans, file, scan):
    before = checksum(scans / scan)
    content = (scans / file).read_bytes()
    (scans / file).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert checksum(scans / scan) not in (before, None)
    (scans / file).write_bytes(content)
    assert checksum(scans / scan) == before


def test_names_and_places_in_a_folder_count_and_the_folders_own_does_not(scans):
    before = checksum(scans / "series")
    (scans / "series").rename(scans / "moved")
    assert checksum(scans / "moved") == before
    (scans / "moved/1.dcm").rename(scans / "moved/0.dcm")
    assert checksum(scans / "moved") != before
    (scans / "moved/0.dcm").rename(scans / "moved/1.dcm")
    (scans / "moved/3.dcm").write_bytes(b"")
    assert checksum(scans / "moved") != before


@pytest.mark.parametrize("kind", ["missing", "pipe", "device"])
def test_what_is_no_file_has_no_checksum_and_hangs_nobody(tmp_path, kind):
    path = tmp_path / "scan.nii"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    assert checksum(path) is None


def header(shape, order="<", version=1):
    """The start of a NIfTI file of a shape; no voxel follows."""
    rank = [len(shape), *shape, *[1] * (7 - len(shape))]
    head = bytearray(540 if version == 2 else 352)
    if version == 1:
        struct.pack_into(f"{order}i", head, 0, 348)
        struct.pack_into(f"{order}8h", head, 40, *rank)
    else:
        struct.pack_into(f"{order}i", head, 0, 540)
        struct.pack_into(f"{order}8q", head, 16, *rank)
    return bytes(head)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("order", "<>")
def test_memory_follows_the_header_of_a_nifti_file(tmp_path, packed, version, order):
    path = tmp_path / ("a.nii.gz" if packed else "a.nii")
    content = header((512, 512, 300), order, version)
    path.write_bytes(gzip.compress(content) if packed else content)
    voxels = 512 * 512 * 300
    wanted = footprint.BASE_MB + footprint.BYTES_A_VOXEL * voxels / 1e6
    assert reading_mb([path]) == int(wanted)


def test_nibabels_files_are_understood(tmp_path):
    for kind, name in ((nib.Nifti1Image, "a.nii.gz"), (nib.Nifti2Image, "b.nii")):
        nib.save(kind(np.zeros((100, 50, 20), np.int16), np.eye(4)), tmp_path / name)
        assert footprint._voxels(tmp_path / name) == 100_000


def test_memory_is_the_largest_scans_and_what_is_kept_of_all(tmp_path):
    for name, depth in (("a", 100), ("b", 300), ("c", 200)):
        (tmp_path / f"{name}.nii").write_bytes(header((512, 512, depth)))
    images = [tmp_path / f"{name}.nii" for name in "abc"]
    assert reading_mb(images) == reading_mb([tmp_path / "b.nii"])
    kept = reading_mb(images, {"policy": "all", "every": 5}) - reading_mb(images)
    assert kept == pytest.approx(2 * 512 * 512 * 600 / 5 / 1e6, abs=1)
    assert reading_mb(images, {"policy": "middle", "every": 5}) == reading_mb(images)


def test_other_formats_count_by_their_bytes(tmp_path):
    (tmp_path / "series").mkdir()
    for k in range(3):
        (tmp_path / f"series/{k}.dcm").write_bytes(bytes(10**6))
    assert reading_mb([tmp_path / "series"]) == footprint.BASE_MB + 3 * footprint.BYTES_A_VOXEL


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"x",
        bytes(400),
        gzip.compress(header((9, 9, 9)), mtime=0)[:20],
        header((-5, 32767, 32767, 32767)),
    ],
)
def test_a_header_that_lies_or_is_none_asks_for_no_more_than_there_is(tmp_path, content):
    (tmp_path / "a.nii.gz").write_bytes(content)
    assert footprint.BASE_MB <= reading_mb([tmp_path / "a.nii.gz"]) <= footprint.MOST_MB
    assert reading_mb([tmp_path / "none.nii.gz"]) == footprint.BASE_MB
