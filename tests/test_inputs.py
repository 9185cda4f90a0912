"""Every file that is read with a case is named, so that its change is seen."""

import os

import nibabel as nib
import numpy as np
import pytest

from xaiclip.data.inputs import input_files
from xaiclip.data.volumes import read_volume

AFFINE = np.diag([1, 2, 3, 1.0]) + np.array([[0, 0, 0, 5]] * 3 + [[0] * 4])


@pytest.fixture
def opened(monkeypatch):
    """The files that are opened for reading."""
    seen = []
    real = os.open

    def record(path, *args, **kwargs):
        seen.append(os.fspath(path))
        return real(path, *args, **kwargs)

    monkeypatch.setattr(os, "open", record)
    return seen


def save_pair(folder):
    nib.save(nib.Nifti1Pair(np.ones((3, 4, 5), np.int16), AFFINE), folder / "scan.hdr")


def save_mhd(folder):
    lines = ["NDims = 3", "DimSize = 3 4 5", "ElementType = MET_UCHAR", "Offset = 1 2 3"]
    lines += ["ElementSpacing = 1 2 3", "TransformMatrix = 1 0 0 0 1 0 0 0 1"]
    names = [f"s{k}.raw" for k in range(5)]
    for name in names:
        (folder / name).write_bytes(bytes(12))
    lines += ["ElementDataFile = LIST", *names]
    (folder / "scan.mhd").write_text("\n".join(lines))


def save_nhdr(folder):
    (folder / "deep").mkdir()
    (folder / "deep/x.raw").write_bytes(bytes(60))
    lines = ["NRRD0004", "type: uchar", "dimension: 3", "sizes: 3 4 5", "encoding: raw"]
    lines += ["space: LPS", "space directions: (1,0,0) (0,2,0) (0,0,3)", "space origin: (1,2,3)"]
    (folder / "scan.nhdr").write_text("\n".join([*lines, "data file: deep/x.raw"]))


@pytest.mark.parametrize(
    ("save", "name"),
    [(save_pair, "scan.hdr"), (save_pair, "scan.img"), (save_mhd, "scan.mhd"),
     (save_nhdr, "scan.nhdr")],
)  # fmt: skip
def test_what_is_opened_is_what_was_named(tmp_path, opened, save, name):
    save(tmp_path)
    (tmp_path / "other.raw").write_bytes(b"no part of it")
    read_volume(tmp_path / name)
    named = input_files(tmp_path / name)
    assert named[0] == tmp_path / name
    assert len(named) == len(set(named))
    assert set(opened) == {str(file) for file in named}
    assert len(named) == {"scan.mhd": 6}.get(name, 2)


def test_a_folder_is_all_its_files(tmp_path):
    (tmp_path / "deep").mkdir()
    for name in ("b.dcm", "a.nii.gz", "deep/c"):
        (tmp_path / name).touch()
    names = [str(file.relative_to(tmp_path)) for file in input_files(tmp_path)]
    assert names == ["a.nii.gz", "b.dcm", "deep/c"]


@pytest.mark.parametrize("name", ["scan.nii.gz", "scan.png", "bad.mhd", "bad.nrrd", "lost.img"])
def test_what_cannot_be_read_stands_for_itself(tmp_path, name):
    assert input_files(tmp_path / name) == [tmp_path / name]
    (tmp_path / name).write_bytes(b"damaged")
    assert input_files(str(tmp_path / name)) == [tmp_path / name]


def test_a_pipe_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "scan.mhd")
    assert input_files(tmp_path / "scan.mhd") == [tmp_path / "scan.mhd"]
