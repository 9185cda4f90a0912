"""Bad scans and sheets end in a sentence, or are read rightly; never anything else."""

import gzip
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import bad_inputs
from xaiclip.data.sheet import MAX_NAME, read_sheet
from xaiclip.data.volumes import read_volume
from xaiclip.data.voxels import MAX_TRAILING
from xaiclip.errors import CaseError, ConfigError

PLACED = np.array([[1, 0, 0, 5], [0, 2, 0, 6], [0, 0, 3, 7], [0, 0, 0, 1.0]])
HEADER = "case\timage\tlabel\tmodality\tsplit"
REUSED = settings(
    deadline=None,
    max_examples=60,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def test_generated_bad_inputs():
    """Some of each kind; `make soak` reads hundreds."""
    counts = bad_inputs.fuzz(3 * len(bad_inputs.KINDS), seed=0)
    assert counts.pop("failures") == []
    assert counts["tracebacks"] == counts["hangs"] == counts["wrong"] == 0
    assert counts["refused"] + counts["read"] == counts["bad_inputs"]
    assert counts["refused"] > counts["bad_inputs"] / 2


@pytest.mark.slow
def test_the_fuzzer_notices_what_it_looks_for(tmp_path, monkeypatch):
    """A reader that raises, hangs, dies, or mirrors the scan is caught at it."""
    monkeypatch.setattr(bad_inputs, "LIMIT", 1.0)
    scan = tmp_path / "scan.nii"
    nib.save(nib.Nifti1Image(np.arange(24.0).reshape(2, 3, 4), PLACED), scan)

    def mirrored(path):
        volume = read_volume(path)
        object.__setattr__(volume, "array", volume.array[::-1])
        return volume

    for does, word in {
        mirrored: "wrong",
        lambda path: 1 / 0: "traceback",
        lambda path: os._exit(3): "traceback: the process died",
        lambda path: np.ones(2**32).sum(): "traceback",  # 32 GB
        lambda path: __import__("time").sleep(60): "hang",
        lambda path: (_ for _ in ()).throw(CaseError("no stop")): "traceback: not a sentence",
        read_volume: "read",
    }.items():
        monkeypatch.setattr(bad_inputs, "read_volume", does)
        with bad_inputs.Reader() as reader:
            assert reader.outcome(scan).startswith(word)


@pytest.mark.slow
@REUSED
@given(st.lists(st.lists(st.text(max_size=12), max_size=7), max_size=5), st.booleans())
def test_any_text_as_a_sheet(tmp_path, lines, headed):
    path = tmp_path / "sheet.tsv"
    text = "\n".join(["\t".join(line) for line in lines])
    path.write_text(f"{HEADER}\n{text}" if headed else text, encoding="utf-8", errors="replace")
    with pytest.raises(ConfigError) as caught:
        read_sheet(path)
    assert str(caught.value).endswith(".")


@REUSED
@given(st.text(min_size=1, max_size=MAX_NAME + 5))
def test_a_case_is_named_by_one_plain_part_of_a_path(tmp_path, name):
    (tmp_path / "a.nii").touch()
    path = tmp_path / "sheet.tsv"
    path.write_text(f"{HEADER}\n{name}\ta.nii\t\tCT\ttest", encoding="utf-8", errors="replace")
    try:
        (case,) = read_sheet(path)
    except ConfigError:
        case = None
    if case is not None:
        assert case.name == name.strip()
        assert Path(case.name).name == case.name
        assert case.name.isascii()
        assert len(case.name) <= MAX_NAME


@REUSED
@given(
    st.lists(st.floats(width=32), min_size=12, max_size=12),
    st.integers(0, 4),
    st.integers(0, 4),
)
def test_any_affine(tmp_path, numbers, sform, qform):
    """Refused, or the same places as nibabel's."""
    image = nib.Nifti1Image(np.arange(60, dtype=np.int16).reshape(3, 4, 5), np.eye(4))
    rows = np.array(numbers, np.float32).reshape(3, 4)
    for row, name in zip(rows, ("srow_x", "srow_y", "srow_z"), strict=True):
        image.header[name] = row
    image.header["sform_code"], image.header["qform_code"] = sform, qform
    path = tmp_path / "any.nii"
    path.write_bytes(
        image.header.binaryblock + bytes(4) + image.get_fdata().astype("<i2").tobytes("F")
    )
    with np.errstate(all="ignore"):
        assert bad_inputs.read(path) in ("read", "refused")


def sentence(path, **options):
    with pytest.raises(CaseError) as caught:
        read_volume(path, **options)
    return str(caught.value)


def test_a_pipe_or_a_device_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "scan.nii")
    assert "neither a file nor a folder" in sentence(tmp_path / "scan.nii")
    with pytest.raises(ConfigError, match="is not a file"):
        read_sheet(tmp_path / "scan.nii")


def test_a_stream_that_goes_on_is_not_followed(tmp_path):
    image = nib.Nifti1Image(np.ones((4, 4, 4), np.int16), PLACED).to_bytes()
    path = tmp_path / "scan.nii.gz"
    path.write_bytes(gzip.compress(image + bytes(100)))
    assert read_volume(path).array.shape == (4, 4, 4)
    path.write_bytes(gzip.compress(image + bytes(MAX_TRAILING + 2**20)))
    assert "long after its voxels" in sentence(path)
    path.write_bytes(gzip.compress(image[:-10]))  # whole as gzip, short as a scan
    assert "truncated" in sentence(path)


@pytest.mark.parametrize("largest", [2**24, 2**24 + 1, 2**32, 1e30])
def test_label_ids_that_would_be_rounded_are_refused(tmp_path, largest):
    array = np.zeros((4, 4, 4))
    array[0, 0, 0] = largest
    nib.save(nib.Nifti1Image(array, PLACED), tmp_path / "label.nii")
    assert "ids below" in sentence(tmp_path / "label.nii", label=True)


@pytest.mark.parametrize("name", ["/dev/zero", "../x.raw", "deep/../../x.raw", "LIST\n/dev/zero"])
@pytest.mark.parametrize("suffix", [".mhd", ".nhdr"])
def test_a_header_names_data_of_its_own_folder_only(tmp_path, name, suffix):
    (tmp_path / "in").mkdir()
    (tmp_path / "x.raw").write_bytes(bytes(54))
    path = tmp_path / "in" / f"scan{suffix}"
    path.write_text(
        "ObjectType = Image\nNDims = 3\nDimSize = 3 3 3\nElementType = MET_SHORT\n"
        f"ElementDataFile = {name}\n"
        if suffix == ".mhd"
        else "NRRD0004\ntype: short\ndimension: 3\nsizes: 3 3 3\nencoding: raw\nendian: little\n"
        f"data file: {name}\n"
    )
    assert "in another folder" in sentence(path)


def test_names_that_one_file_system_may_take_for_the_same(tmp_path):
    (tmp_path / "a.nii").touch()
    path = tmp_path / "sheet.tsv"
    path.write_text(f"{HEADER}\nA1\ta.nii\t\tCT\ttest\na1\ta.nii\t\tCT\ttest\n")
    with pytest.raises(ConfigError, match="row 3: 'a1' differs from 'A1' in upper case only"):
        read_sheet(path)
