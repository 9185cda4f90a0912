"""DICOM made to cost memory, time or the process: one case is lost, nothing else."""

import shutil
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.uid import JPEG2000Lossless, JPEGLosslessSV1, JPEGLSLossless, RLELossless

import dicom_files as make
from dicom_files import HU, enhanced, plane, save, series
from test_dicom_refused import ODD, refused, run_length
from xaiclip.data.dicom import files, pixels, read_slices
from xaiclip.errors import CaseError

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("syntax", [None, RLELossless, JPEG2000Lossless, JPEGLSLossless])
def test_a_small_file_that_claims_a_large_image(tmp_path, syntax):
    file = save(plane(0), tmp_path / "x.dcm")
    if syntax == RLELossless:
        make.repack(file, [run_length(b"\x81\0" * 20)], syntax)
    elif syntax:
        make.compress(file, syntax)
    bomb = pydicom.dcmread(file)
    bomb.Rows = bomb.Columns = 32000
    save(bomb, file)
    reason, named = refused(file)
    assert "claims 32000 × 32000" in reason
    assert named == file


def test_run_lengths_that_are_too_short(tmp_path, caplog):
    file = save(plane(0), tmp_path / "x.dcm")
    make.repack(file, [run_length(b"\x00\x01")], RLELossless)
    reason, named = refused(file)
    assert "cannot be decoded" in reason
    assert named == file
    assert caplog.text == ""


def test_planes_that_no_scanner_makes(tmp_path, monkeypatch):
    monkeypatch.setattr(pixels, "MAX_PLANE", 29)
    assert "planes of 6 × 5" in refused(series(tmp_path / "s"))[0]


def test_run_lengths_that_explode(tmp_path):
    """60 pixels that decode to 16 million."""
    file = save(plane(0), tmp_path / "x.dcm")
    make.repack(file, [run_length(b"\x81\0" * 130_000)], RLELossless)
    assert "longer than their pixels" in refused(file)[0]


@pytest.mark.parametrize("undefined", [False, True])
def test_headers_that_never_end(tmp_path, monkeypatch, undefined):
    monkeypatch.setattr(files, "MAX_READS", 20_000)
    monkeypatch.setattr(files, "MAX_ITEMS", 5_000)
    empty = b"\xfe\xff\x00\xe0\0\0\0\0" * 30_000
    length = b"\xff\xff\xff\xff" if undefined else struct.pack("<L", len(empty))
    end = b"\xfe\xff\xdd\xe0\0\0\0\0" if undefined else b""
    file = save(enhanced(), tmp_path / "x.dcm")
    raw = file.read_bytes()
    at = raw.index(b"\x00\x52\x30\x92SQ")
    end_of_it = raw.index(b"\xe0\x7f\x10\x00O")
    tag = raw[at : at + 8]
    file.write_bytes(raw[:at] + tag + length + empty + end + raw[end_of_it:])
    assert "not a readable" in refused(file)[0]


def test_sequences_within_sequences(tmp_path):
    deep = b"\x08\x00\x40\x11SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff" * 50_000
    file = save(plane(0), tmp_path / "x.dcm")
    raw = file.read_bytes()
    at = raw.index(b"\x10\x00\x10\x00PN")
    file.write_bytes(raw[:at] + deep + raw[at:])
    refused(file)


@pytest.mark.slow
@pytest.mark.parametrize("syntax", [JPEGLosslessSV1, JPEGLSLossless, JPEG2000Lossless])
def test_damaged_compressed_pixels_cost_one_case(tmp_path, syntax):
    """Decoders in C may die of them; this process does not, and takes no foreign memory."""
    file = save(enhanced(), tmp_path / "good.dcm")
    make.compress(file, syntax)
    frames = make.fragments(file)
    marker = frames[0].index(b"\xff\x51" if syntax == JPEG2000Lossless else b"\xff\xd8\xff")
    assert marker < 8
    bad = {
        "empty": [*frames[:3], b"\0\0", *frames[4:]],
        "short": [*frames[:3], frames[3][:20], *frames[4:]],
        "zeros": [*frames[:3], bytes(len(frames[3])), *frames[4:]],
        "fewer": frames[:-1],
    }
    for name, spoilt_frames in bad.items():
        copy = tmp_path / f"{name}.dcm"
        shutil.copy(file, copy)
        make.repack(copy, spoilt_frames, syntax)
        reason, named = refused(copy)
        assert "decoded" in reason or "fewer frames" in reason
        assert named == copy
    taller = pydicom.dcmread(file)
    taller.Rows = 2 * taller.Rows
    save(taller, file)
    assert "decoded" in refused(file)[0]


def test_slices_that_cannot_be_read_are_named(tmp_path):
    folder = series(tmp_path / "s")
    paths = sorted(folder.iterdir())
    (folder / ODD).write_bytes((folder / ODD).read_bytes()[:-3])
    with pytest.raises(CaseError, match="cut off") as caught:
        read_slices(paths)
    assert caught.value.file == folder / ODD
    with pytest.raises(CaseError, match="no DICOM files"):
        read_slices([])


@pytest.mark.slow
def test_memory_is_that_of_the_scan(tmp_path):
    """The peak of a process that reads it: no second copy, no float."""
    script = (
        "import resource, sys; sys.path.insert(0, 'scripts')\n"
        "from pathlib import Path\n"
        "from xaiclip.data.dicom import read_dicom\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024\n"
        "before = peak(); array, _ = read_dicom(Path(sys.argv[1]))\n"
        "print(array.nbytes, peak() - before)"
    )
    big = np.resize(HU[:, :, 0], (512, 512, 1))

    def one(k):
        return plane(0, big, ImagePositionPatient=make.decimals(make.position(k)))

    folder = series(tmp_path / "s", one, range(150))
    result = subprocess.run(
        [sys.executable, "-c", script, folder], cwd=ROOT, stdout=subprocess.PIPE, check=True
    )
    size, peak = map(int, result.stdout.split())
    assert size == 2 * 512 * 512 * 150
    assert peak < 1.6 * size
