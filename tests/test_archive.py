"""Archives from outside: what is safe comes out, the rest is refused before it is written."""

import io
import stat
import tarfile
import zipfile

import pytest

from xaiclip import archive
from xaiclip.archive import extract
from xaiclip.errors import CaseError, ConfigError

FILES = {"a.txt": b"first", "folder/b c ü.txt": b"second" * 1000}


def make(path, files=FILES):
    """A zip or tar archive, by the suffix."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as container:
            container.mkdir("folder")
            for name, content in files.items():
                container.writestr(name, content)
    else:
        with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as container:
            for name, content in files.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                container.addfile(info, io.BytesIO(content))
    return path


KINDS = ["x.zip", "x.tar", "x.tar.gz"]


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "out"


def written(tmp_path):
    """Every file but the archive itself."""
    return [p for p in tmp_path.rglob("*") if p.is_file() and p.parent != tmp_path]


@pytest.mark.parametrize("kind", KINDS)
def test_members_come_out(tmp_path, folder, kind):
    files = extract(make(tmp_path / kind), folder)
    assert {str(p.relative_to(folder)): p.read_bytes() for p in files} == FILES
    picked = extract(
        tmp_path / kind, folder / "two", lambda name: "new/name" if name == "a.txt" else None
    )
    assert [p.relative_to(folder / "two").as_posix() for p in picked] == ["new/name"]
    assert picked[0].read_bytes() == b"first"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "name", ["../evil", "a/../../evil", "/evil", "C:/evil", "C:evil", "..\\evil", "a\\b"]
)
def test_a_member_that_would_leave_the_folder_spoils_the_archive(tmp_path, folder, kind, name):
    make(tmp_path / kind, {**FILES, name: b"x"})
    with pytest.raises(ConfigError, match="could leave the folder"):
        # refused although it is not wanted
        extract(tmp_path / kind, folder, lambda name: name if name == "a.txt" else None)
    assert written(tmp_path) == []
    assert not (tmp_path.parent / "evil").exists()


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_in_tar(tmp_path, folder, kind):
    with tarfile.open(tmp_path / "x.tar", "w") as container:
        info = tarfile.TarInfo("link")
        info.type, info.linkname = kind, "/etc/passwd"
        container.addfile(info)
    with pytest.raises(ConfigError, match="'link', a link or device"):
        extract(tmp_path / "x.tar", folder)
    assert written(tmp_path) == []


def test_links_in_zip(tmp_path, folder):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as container:
        info = zipfile.ZipInfo("link")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        container.writestr(info, "/etc/passwd")
    with pytest.raises(ConfigError, match="'link', a link or device"):
        extract(tmp_path / "x.zip", folder)


@pytest.mark.parametrize("kind", ["x.zip", "x.tar.gz"])
def test_bombs(tmp_path, folder, kind, monkeypatch):
    monkeypatch.setattr(archive, "SMALL", 1000)
    make(tmp_path / kind, {"zeros": bytes(10_000_000)})
    with pytest.raises(ConfigError, match="claims to hold 10000000 bytes"):
        extract(tmp_path / kind, folder)
    assert written(tmp_path) == []


def test_a_header_that_lies_about_the_size(tmp_path, folder):
    path = make(tmp_path / "x.zip", {"zeros": bytes(5_000_000)})
    raw = path.read_bytes()
    size = (5_000_000).to_bytes(4, "little")
    assert raw.count(size) >= 2
    path.write_bytes(raw.replace(size, (100).to_bytes(4, "little")))
    with pytest.raises(CaseError, match="'zeros' is damaged"):
        extract(path, folder)
    assert written(tmp_path) == []


def test_a_damaged_member_is_the_cases_fault_alone(tmp_path, folder):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as container:  # stored: the bytes are findable
        container.writestr("good", b"good content")
        container.writestr("bad", b"bad content")
    raw = (tmp_path / "x.zip").read_bytes()
    (tmp_path / "x.zip").write_bytes(raw.replace(b"bad content", b"bad cOntent"))
    with pytest.raises(CaseError, match="'bad' is damaged"):
        extract(tmp_path / "x.zip", folder)
    only = extract(tmp_path / "x.zip", folder, lambda name: name if name == "good" else None)
    assert only[0].read_bytes() == b"good content"
    assert [p.name for p in written(tmp_path)] == ["good"]


def test_encrypted(tmp_path, folder):
    path = make(tmp_path / "x.zip", {"a": b"x"})
    raw = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        start = -1
        while (start := raw.find(signature, start + 1)) >= 0:
            raw[start + offset] |= 1
    path.write_bytes(raw)
    with pytest.raises(ConfigError, match="encrypted"):
        extract(path, folder)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"<html>", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1", "Git LFS"),
        (b"PK\x03\x04" + bytes(100), "truncated or no zip"),
        (b"hello" * 1000, "truncated or no zip"),
    ],
)
def test_what_is_no_archive(tmp_path, folder, content, words):
    (tmp_path / "x.zip").write_bytes(content)
    with pytest.raises(ConfigError, match=words):
        extract(tmp_path / "x.zip", folder)


@pytest.mark.parametrize("kind", ["x.zip", "x.tar.gz"])
def test_truncated(tmp_path, folder, kind):
    path = make(tmp_path / kind, {f"{i}": bytes([i]) * 5000 for i in range(50)})
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ConfigError, match="truncated"):
        extract(path, folder)


def test_missing(tmp_path):
    with pytest.raises(ConfigError, match="does not exist"):
        extract(tmp_path / "x.zip", tmp_path / "out")
