"""Archives from outside: what is safe comes out, the rest is refused before it is written."""

import io
import lzma
import stat
import tarfile
import tracemalloc
import zipfile

import pytest

from xaiclip.errors import CaseError, ConfigError
from xaiclip.published import archive
from xaiclip.published.archive import extract

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


def tar(path, *infos, mode="w:gz", **options):
    """An archive of members with zeros in them."""
    with tarfile.open(path, mode, **options) as container:
        for info in infos:
            container.addfile(info, io.BytesIO(bytes(info.size)))
    return path


def member(name, size=0, **values):
    info = tarfile.TarInfo(name)
    info.size = size
    for key, value in values.items():
        setattr(info, key, value)
    return info


def peak(function, *arguments):
    """What a call raises, and the most memory that Python had at a time."""
    tracemalloc.start()
    try:
        with pytest.raises(ConfigError) as caught:
            function(*arguments)
        return str(caught.value), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


HEADERS = {
    "pax": tarfile.XHDTYPE,
    "pax for all": tarfile.XGLTYPE,
    "pax of solaris": tarfile.SOLARIS_XHDTYPE,
    "long name": tarfile.GNUTYPE_LONGNAME,
    "long link": tarfile.GNUTYPE_LONGLINK,
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", HEADERS)
@pytest.mark.parametrize("mode", ["w:gz", "w:bz2", "w"])
def test_headers_that_are_bombs(tmp_path, folder, kind, mode):
    size = 200 << 20 if mode != "w" else 1 << 20
    path = tmp_path / "x.tar"
    with tarfile.open(path, mode) as container:
        info = member("x", size, type=HEADERS[kind])
        container.fileobj.write(info.tobuf(tarfile.USTAR_FORMAT))
        for _ in range(size >> 20):
            container.fileobj.write(bytes(1 << 20))
    words, memory = peak(extract, path, folder)
    assert "no honest archive has" in words
    assert memory < 8 << 20
    assert written(tmp_path) == []


def test_many_small_headers_are_a_bomb_too(tmp_path, folder, monkeypatch):
    monkeypatch.setattr(archive, "SMALL", 100_000)
    path = tmp_path / "x.tar.gz"
    with tarfile.open(path, "w:gz") as container:
        for number in range(100):
            info = member("x", 60_000, type=tarfile.XGLTYPE)
            container.fileobj.write(info.tobuf(tarfile.USTAR_FORMAT))
            container.fileobj.write(f"59990 k{number}=".encode().ljust(59989) + b"\n")
            container.fileobj.write(bytes(60_416 - 59_990))
        container.fileobj.write(member("a").tobuf())
        container.fileobj.write(bytes(1024))
    with pytest.raises(ConfigError, match="do not use it"):
        extract(path, folder)


@pytest.mark.parametrize(
    "headers",
    [
        {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": str(1 << 40)},
        {"GNU.sparse.map": "0,1", "GNU.sparse.size": str(1 << 40)},
        {"GNU.sparse.size": str(1 << 40), "GNU.sparse.numblocks": "1"},
    ],
)
def test_files_with_holes(tmp_path, folder, headers):
    path = tar(tmp_path / "x.tar", member("x", 512, pax_headers=headers), mode="w")
    with pytest.raises(ConfigError, match=r"a file with holes|truncated"):
        extract(path, folder)
    assert written(tmp_path) == []


def test_a_file_with_holes_of_the_old_kind(tmp_path, folder):
    path = tar(tmp_path / "x.tar", member("x", 512, type=tarfile.GNUTYPE_SPARSE), mode="w")
    with pytest.raises(ConfigError, match="a file with holes"):
        extract(path, folder)


@pytest.mark.parametrize("mode", ["w:xz", "lzma"])
def test_xz_is_refused_with_a_cure(tmp_path, folder, mode):
    """A header of some bytes may ask for gigabytes of memory."""
    path = tmp_path / "x.tar.xz"
    tar(path, member("x", 10), mode="w:xz" if mode == "w:xz" else "w")
    if mode == "lzma":
        path.write_bytes(lzma.compress(path.read_bytes(), format=lzma.FORMAT_ALONE))
    with pytest.raises(ConfigError, match=r"with xz.*pack it again"):
        extract(path, folder)


@pytest.mark.parametrize("kind", KINDS)
def test_too_many_members(tmp_path, folder, kind, monkeypatch):
    monkeypatch.setattr(archive, "MAX_MEMBERS", 10)
    make(tmp_path / kind, {f"{i}": b"" for i in range(11)})
    with pytest.raises(ConfigError, match="more than 10 members"):
        extract(tmp_path / kind, folder)
    assert written(tmp_path) == []


def test_a_zips_table_is_looked_at_before_it_is_read(tmp_path, folder):
    path = make(tmp_path / "x.zip", {"a": b"x"})
    content = path.read_bytes()
    end = content.rindex(b"PK\5\6")
    table = archive.MAX_TABLE + 1
    # a table of zeros, as long as the end record says
    head = content[:end] + bytes(table)
    path.write_bytes(
        head + content[end : end + 12] + table.to_bytes(4, "little") + content[end + 16 :]
    )
    words, memory = peak(extract, path, folder)
    assert "no honest archive has" in words
    assert memory < 1 << 20


def test_unpacking_stops_at_the_member_that_is_too_much(tmp_path, folder, monkeypatch):
    """What lies behind a large member is not looked for: that would unpack the member."""
    monkeypatch.setattr(archive, "SMALL", 1000)
    path = tar(tmp_path / "x.tar.gz", member("zeros", 10_000_000), member("../evil"))
    with pytest.raises(ConfigError, match="claims to hold 10000000 bytes"):
        extract(path, folder)


NAMES = ["a\nb", "a\x1b[2Jb", "a\x7fb", "a\u202eb", "a" * 1001, "a\rb"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NAMES)
def test_names_that_forge_lines_or_hide(tmp_path, folder, kind, name):
    make(tmp_path / kind, {name: b"x"})
    with pytest.raises(ConfigError) as caught:
        extract(tmp_path / kind, folder)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 500 + len(str(tmp_path))
    assert written(tmp_path) == []


@pytest.mark.parametrize("names", [("a", "a"), ("a", "a/b"), ("a/b/c", "a/b")])
def test_two_files_in_one_place(tmp_path, folder, names):
    with tarfile.open(tmp_path / "x.tar", "w") as container:
        for name in names:
            container.addfile(member(name, 1), io.BytesIO(b"x"))
    with pytest.raises(ConfigError, match="two files of one name"):
        extract(tmp_path / "x.tar", folder)
    assert written(tmp_path) == []
