"""Files: whole or not at all, reproducible, and never a pickle."""

import numpy as np
import pytest

from xaiclip import files


def test_arrays_come_back_with_names_types_and_meta(tmp_path):
    arrays = {"a/0": np.arange(6, dtype=np.uint8).reshape(2, 3), "b c": np.array([np.nan, 1.5])}
    files.save_arrays(tmp_path / "x.npz", arrays, {"k": [1, "ü"]})
    back, meta = files.load_arrays(tmp_path / "x.npz")
    assert meta == {"k": [1, "ü"]}
    assert back.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(back[name], array)
        assert back[name].dtype == array.dtype


def test_same_content_gives_same_bytes(tmp_path):
    for name in ("x.npz", "y.npz"):
        files.save_arrays(tmp_path / name, {"a": np.ones(3)}, {})
    assert files.sha256(tmp_path / "x.npz") == files.sha256(tmp_path / "y.npz")


def test_objects_are_refused(tmp_path):
    with pytest.raises(TypeError, match="'a'"):
        files.save_arrays(tmp_path / "x.npz", {"a": np.array([{}])})
    assert list(tmp_path.iterdir()) == []


def test_pickles_are_not_read(tmp_path):
    np.savez(tmp_path / "x.npz", a=np.array([{}], dtype=object))
    with pytest.raises(ValueError, match="allow_pickle"):
        files.load_arrays(tmp_path / "x.npz")


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "x.txt"
    files.write_text(path, "old")

    def fail():
        with files.atomic(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_temporary_name_keeps_the_suffixes(tmp_path):
    with files.atomic(tmp_path / "x.nii.gz") as temporary:
        assert temporary.name.endswith(".nii.gz")
        temporary.write_bytes(b"1")
    assert (tmp_path / "x.nii.gz").read_bytes() == b"1"
