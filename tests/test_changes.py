"""What tells that a file was replaced, and published files that lie here already."""

import os

import pytest

from xaiclip.data.changes import signature
from xaiclip.errors import ConfigError
from xaiclip.files import sha256
from xaiclip.published import checked
from xaiclip.published.checked import check_published, remember
from xaiclip.published.download import Remote


def age(path, seconds):
    times = path.stat()
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns + round(seconds * 1e9)))


def test_a_signature_tells_every_kind_of_change(tmp_path):
    folder = tmp_path / "series"
    (folder / "deeper").mkdir(parents=True)
    for name in ("1.dcm", "2.dcm", "deeper/3.dcm"):
        (folder / name).write_bytes(b"data")
    label = tmp_path / "label.nii"
    label.write_bytes(b"data")
    before = signature(folder, label)
    assert signature(folder, label) == before
    assert signature(folder) != signature(label) != before
    assert signature(folder, None) == signature(folder)

    def same():
        return signature(folder, label) == before

    for path in (folder / "1.dcm", folder / "deeper/3.dcm", label):
        age(path, -1000)  # replaced by an older one
        assert not same()
        age(path, 1000)
        assert same()
        times = path.stat()
        path.write_bytes(b"more data")
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
        assert not same()
        path.write_bytes(b"data")
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
        assert same()
    (folder / "2.dcm").rename(folder / "4.dcm")
    assert not same()


def test_a_signature_does_not_hang_on_where_files_lie(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.nii").write_bytes(b"data")
        os.utime(tmp_path / folder / "x.nii", (1, 1))
    assert signature(tmp_path / "a/x.nii") == signature(tmp_path / "b/x.nii")
    assert signature(None) is None
    assert signature(tmp_path / "gone.nii") != signature(tmp_path / "a/x.nii")


@pytest.fixture
def published(tmp_path):
    path = tmp_path / "weights.pth"
    path.write_bytes(b"published")
    return path, Remote(path.name, "https://x", f"sha256:{sha256(path)}", 9), tmp_path / "memory"


def test_a_published_file_is_read_once_and_again_when_touched(published, monkeypatch):
    path, remote, memory = published
    read = []
    verify = checked.verify
    monkeypatch.setattr(checked, "verify", lambda *given: (read.append(1), verify(*given)))
    for _ in range(3):
        check_published(path, remote, memory)
    assert len(read) == 1
    times = path.stat()
    path.write_bytes(b"tampered!")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(ConfigError, match=r"another sha256 .*it is no weights\.pth: move it away"):
        check_published(path, remote, memory)
    path.write_bytes(b"published")
    check_published(path, remote, memory)
    assert len(read) == 3


@pytest.mark.parametrize("content", [b"", b"x", b"<html>...", b"published and more"])
def test_a_file_of_the_right_name_is_not_enough(published, content):
    path, remote, memory = published
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="move it away"):
        check_published(path, remote, memory)


def test_a_note_of_another_file_or_checksum_counts_for_nothing(published):
    path, remote, memory = published
    path.write_bytes(b"tampered!")
    remember(path, "sha256:" + "0" * 64, memory)
    with pytest.raises(ConfigError):
        check_published(path, remote, memory)
    for note in memory.iterdir():
        note.write_text("{not json")
    with pytest.raises(ConfigError):
        check_published(path, remote, memory)


def test_where_nothing_can_be_remembered_it_is_read_each_time(published, tmp_path):
    path, remote, _ = published
    (tmp_path / "file").touch()
    for _ in range(2):
        check_published(path, remote, tmp_path / "file" / "memory")
    path.unlink()
    path.mkdir()
    with pytest.raises(ConfigError, match="is no file"):
        check_published(path, remote, tmp_path / "memory")
