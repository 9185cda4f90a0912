"""Files: whole or not at all, reproducible, and never a pickle."""

import errno
import os
import resource
import signal

import nibabel as nib
import numpy as np
import pytest
from matplotlib.figure import Figure
from safetensors.numpy import save_file

from xaiclip import files
from xaiclip.errors import ConfigError, StorageError
from xaiclip.metrics.schema import EXPLANATIONS, write_table


def test_arrays_come_back_with_names_types_and_meta(tmp_path):
    arrays = {"a/0": np.arange(6, dtype=np.uint8).reshape(2, 3), "b c": np.array([np.nan, 1.5])}
    files.save_arrays(tmp_path / "x.npz", arrays, {"k": [1, "ü"]})
    back, meta = files.load_arrays(tmp_path / "x.npz")
    assert meta == {"k": [1, "ü"]}
    assert back.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(back[name], array)
        assert back[name].dtype == array.dtype
    assert files.load_meta(tmp_path / "x.npz") == meta


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


def test_a_job_killed_in_the_middle_of_a_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "x.txt"
    files.write_text(path, "old")
    if (child := os.fork()) == 0:
        with files.atomic(path) as temporary:
            temporary.write_text("ne")
            os.kill(os.getpid(), signal.SIGKILL)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert path.read_text() == "old"
    (left,) = set(tmp_path.iterdir()) - {path}
    assert left.name.startswith(files.TEMPORARY)


NOISE = np.random.default_rng(0).integers(0, 255, (60, 60, 60), dtype=np.uint8)


def _nifti(path):
    with files.atomic(path) as temporary:
        nib.save(nib.Nifti1Image(NOISE, np.eye(4)), temporary)


def _figure(path):
    figure = Figure(dpi=300)
    figure.figimage(NOISE.reshape(600, 360))
    with files.atomic(path) as temporary:
        figure.savefig(temporary)


def _weights(path):
    with files.atomic(path) as temporary:
        save_file({"x": NOISE}, temporary)


WRITERS = {
    "x.npz": lambda path: files.save_arrays(path, {"x": NOISE}),
    "x.txt": lambda path: files.write_text(path, "x" * 10**6),
    "x.parquet": lambda path: write_table(
        path, [{"case": f"{n}", "rho": n / 7} for n in range(9000)], EXPLANATIONS
    ),
    "x.nii.gz": _nifti,
    "x.png": _figure,
    "x.safetensors": _weights,
}


@pytest.mark.parametrize("name", WRITERS)
def test_each_writer_says_that_a_file_does_not_fit(tmp_path, name):
    """A limit on the size of files fails like a full disk, in the middle of a write."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        with pytest.raises(StorageError, match=rf"^'.*{name}' cannot be written: it is larger"):
            WRITERS[name](tmp_path / name)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []
    WRITERS[name](tmp_path / name)
    assert (tmp_path / name).stat().st_size > 20_000


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "the disk is full"),
        (OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)), "the disk is full"),
        (OSError(errno.EROFS, os.strerror(errno.EROFS)), "read-only"),
        (PermissionError(errno.EACCES, os.strerror(errno.EACCES)), "read-only"),
        (PermissionError(errno.EPERM, os.strerror(errno.EPERM)), "not yours"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), "the disk is full"),
    ],
)
def test_errors_of_the_disk_are_told_with_the_file_and_the_cure(tmp_path, error, words):
    with pytest.raises(StorageError, match=words) as caught, files.atomic(tmp_path / "x.txt"):
        raise error
    assert str(tmp_path / "x.txt") in str(caught.value)
    assert "what is finished is kept" in str(caught.value)


def test_errors_of_other_files_are_not_the_disks(tmp_path):
    foreign = PermissionError(errno.EACCES, os.strerror(errno.EACCES), "/elsewhere/input.txt")
    for error in (foreign, OSError(errno.EIO, "broken"), ValueError("wrong")):
        with pytest.raises(type(error)) as caught, files.atomic(tmp_path / "x.txt"):
            raise error
        assert caught.value is error


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    files.check_writable(tmp_path / "new" / "newer")
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="cannot be written"):
        files.check_writable(tmp_path / "file" / "folder")


@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
def test_only_regular_files_have_a_checksum(tmp_path, kind):
    path = tmp_path / "x"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir()
    with pytest.raises((ConfigError, IsADirectoryError)):
        files.sha256(path)


def test_a_file_larger_than_any_scan_or_model_has_no_checksum(tmp_path):
    with open(tmp_path / "x", "wb") as stream:
        stream.truncate(files.MAX_DIGEST + 1)  # holds nothing on the disk
    with pytest.raises(ConfigError, match="give a smaller file"):
        files.sha256(tmp_path / "x")


def test_a_file_dated_in_the_future_is_refused_with_the_cure(tmp_path):
    (tmp_path / "x").touch()
    files.check_date(tmp_path / "x")
    files.check_date(tmp_path / "none")
    os.utime(tmp_path / "x", (4e9, 4e9))
    with pytest.raises(ConfigError, match=r"dated in the future \(2096-10-02.*`touch` it"):
        files.check_date(tmp_path / "x")
