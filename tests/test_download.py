"""Fetching: broken connections resume, everything that is not the file is refused by name."""

import os
import runpy
import shutil
import threading
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from types import SimpleNamespace

import pytest

from file_server import CONTENT, SHA, SIZE, Server
from xaiclip.errors import ConfigError
from xaiclip.published import download, parts
from xaiclip.published.download import Remote, fetch
from xaiclip.workflow.provenance import SCRIPTS


@pytest.fixture(scope="module")
def server():
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.closing.set()
    server.shutdown()
    thread.join()
    server.server_close()


Place = namedtuple("Place", "target part")


@pytest.fixture
def place(tmp_path):
    folder = tmp_path / "downloads with spaces"
    return Place(folder / "file.bin", folder / ".file.bin.part")


def get(server, place, size=SIZE):
    remote = Remote("file.bin", server.url, SHA, size)
    fetch(remote, place.target, attempts=3, wait=0.001, timeout=5)


@pytest.mark.parametrize("size", [SIZE, None], ids=["size known", "size unknown"])
@pytest.mark.parametrize(
    ("script", "asked"),
    [
        (["good"], [0]),
        (["breaks", "good"], [0, 60_000]),
        # each brings something, so none counts as a failure
        (["breaks"] * 4, [0, 60_000, 120_000, 180_000]),
        (["breaks", "no_range"], [0, 60_000]),
        (["breaks", "elsewhere", "good"], [0, 60_000, 0]),
        (["breaks", "beyond", "good"], [0, 60_000, 0]),
        (["silent", "error_500", "good"], [0, 0, 0]),
        (["breaks", "error_500", "silent", "good"], [0, 60_000, 60_000, 60_000]),
        # what was resumed had changed meanwhile: once more from the start
        (["breaks", "lies", "good"], [0, 60_000, 0]),
    ],
    ids=lambda value: "+".join(value) if isinstance(value[0], str) else "",
)
def test_the_file_arrives_whole(server, place, script, asked, size):
    server.behave(*script)
    get(server, place, size)
    assert place.target.read_bytes() == CONTENT
    assert server.asked == asked
    assert [path.name for path in place.target.parent.iterdir()] == ["file.bin"]


@pytest.mark.parametrize(
    ("script", "words", "tries"),
    [
        (["error_404"], ["is not there (HTTP 404)", "by hand"], 1),
        (["error_403"], ["refuses access (HTTP 403)", "by hand"], 1),
        (["error_500"], ["in 3 tries (the server answers 500)", "run again"], 3),
        (["silent"], ["in 3 tries", "connection"], 3),
        (["page"], ["is a web page", "browser"], 1),
        (["disguised"], ["is a web page", "browser"], 1),
        (["lies"], ["has sha256", "damaged or another"], 1),
        (["longer"], ["200004 bytes instead of 200000"], 1),
        (["endless"], ["more than 200000 bytes"], 1),
        (["empty"], ["broke after 0 of 200000"], 3),
        (["to_a_file"], ["cannot be had (HTTP 302)"], 1),
        (["to_ftp"], ["in 3 tries", "unknown url type: ftp"], 3),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, list) else str(value),
)
def test_one_sentence_and_no_file_then_the_second_try_succeeds(server, place, script, words, tries):
    server.behave(*script)
    with pytest.raises(ConfigError) as caught:
        get(server, place)
    text = str(caught.value)
    assert server.url in text
    assert all(word in text for word in words), text
    assert "\n" not in text
    assert len(server.asked) == tries
    assert not place.target.exists()
    assert not place.part.exists() or not place.part.stat().st_size
    server.behave("good")
    get(server, place)
    assert place.target.read_bytes() == CONTENT


def test_what_arrived_is_kept_and_resumed_by_the_next_call(server, place):
    server.behave("breaks", "error_500")
    with pytest.raises(ConfigError, match="60 kB of it are kept"):
        get(server, place)
    assert not place.target.exists()
    assert place.part.read_bytes() == CONTENT[:60_000]
    server.behave("good")
    get(server, place)
    assert server.asked == [60_000]
    assert place.target.read_bytes() == CONTENT


def test_a_whole_part_is_only_checked(server, place):
    place.part.parent.mkdir()
    place.part.write_bytes(CONTENT)
    server.behave("error_404")
    get(server, place)
    assert server.asked == []
    assert place.target.read_bytes() == CONTENT


def test_a_file_that_is_there_is_checked_and_kept_or_replaced(server, place):
    place.target.parent.mkdir()
    place.target.write_bytes(CONTENT)
    server.behave("error_404")
    get(server, place)
    assert server.asked == []
    place.target.write_bytes(CONTENT[:-1])
    server.behave("good")
    get(server, place)
    assert place.target.read_bytes() == CONTENT


@pytest.mark.parametrize("size", [SIZE, None])
def test_a_full_disk_is_seen_before_anything_is_stored(server, place, size, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(9, 9, download.SPARE + 100_000))
    server.behave("good")
    with pytest.raises(ConfigError, match=r"file\.bin needs 200 kB, but only 67\.2 MB are free"):
        get(server, place, size)
    assert not place.target.exists()
    assert not place.part.exists()


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://x/y", "nonsense"])
def test_only_http(url, tmp_path):
    with pytest.raises(ConfigError, match="must begin with https"):
        fetch(Remote("x", url, SHA), tmp_path / "x")


def test_the_script_ends_with_the_sentence(server, place, tmp_path, capsys):
    def run():
        job = SimpleNamespace(
            params=SimpleNamespace(cfg=asdict(Remote("file.bin", server.url, SHA, SIZE))),
            output=[str(place.target)],
            log=[str(tmp_path / "log")],
            threads=1,
            resources=SimpleNamespace(),
            rule="download",
        )
        runpy.run_path(str(SCRIPTS / "download.py"), {"snakemake": job})

    server.behave("error_404")
    with pytest.raises(SystemExit):
        run()
    assert "is not there (HTTP 404)" in (tmp_path / "log").read_text()
    assert "Traceback" not in capsys.readouterr().err
    server.behave("good")
    run()
    assert place.target.read_bytes() == CONTENT


def test_sizes_in_words():
    assert Remote("x", "", SHA, 890_771_694).volume == "891 MB"
    assert Remote("x", "", SHA, 2_564_550_879).volume == "2.56 GB"
    assert Remote("x", "", SHA, about="1 GB or so").volume == "1 GB or so"


@pytest.mark.parametrize("behaviour", ["drips", "dripping_head"])
@pytest.mark.parametrize("size", [SIZE, None])
def test_a_server_that_drips_is_given_up(server, place, behaviour, size):
    """Each byte is in time, so that only the rate, and the time until an answer, can tell."""
    server.behave(behaviour)
    remote = Remote("file.bin", server.url, SHA, size)
    with pytest.raises(ConfigError, match="could not be fetched in 2 tries"):
        fetch(remote, place.target, attempts=2, wait=0.001, timeout=0.3)
    assert len(server.asked) == 2
    assert not place.target.exists()


def test_a_file_without_end_and_without_a_size(server, place, monkeypatch):
    monkeypatch.setattr(download, "MAX_UNKNOWN", 150_000)
    server.behave("endless")
    with pytest.raises(ConfigError, match="more than 150000 bytes"):
        get(server, place, None)
    assert list(place.target.parent.iterdir()) == []


def test_several_fetch_one_file_once(server, place):
    """Threads, with a file opened by each, lock as processes do."""
    server.behave("breaks", "good")
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: get(server, place), range(4)))
    assert place.target.read_bytes() == CONTENT
    assert server.asked == [0, 60_000]
    assert [path.name for path in place.target.parent.iterdir()] == ["file.bin"]


def test_a_part_that_another_process_moved_away_is_not_written_to(server, place):
    """Who waits for the lock may wake up with the finished file in hand."""
    place.target.parent.mkdir()
    with parts.held_part(place.target) as first:
        first.write(CONTENT)
        with ThreadPoolExecutor(1) as pool:
            second = pool.submit(get, server, place)
            with pytest.raises(TimeoutError):
                second.result(0.2)
            first.move(place.target)
            server.behave("error_404")
            parts.fcntl.flock(first.stream, parts.fcntl.LOCK_UN)
            second.result(10)
    assert server.asked == []
    assert place.target.read_bytes() == CONTENT


@pytest.mark.parametrize("kind", ["link", "hard link", "dangling", "pipe", "folder", "full folder"])
def test_what_others_put_in_the_parts_place_is_not_touched(server, place, tmp_path, kind):
    victim = tmp_path / "victim"
    place.target.parent.mkdir()
    match kind:
        case "link":
            victim.write_bytes(b"mine")
            place.part.symlink_to(victim)
        case "hard link":
            victim.write_bytes(b"mine")
            os.link(victim, place.part)
        case "dangling":
            place.part.symlink_to(victim)
        case "pipe":
            os.mkfifo(place.part)
        case "folder":
            place.part.mkdir()
        case "full folder":
            (place.part / "x").mkdir(parents=True)
    server.behave("breaks", "good")
    get(server, place)
    assert place.target.read_bytes() == CONTENT
    assert not place.target.is_symlink()
    if kind in ("link", "hard link"):
        assert victim.read_bytes() == b"mine"
    else:
        assert not victim.exists()


def test_where_files_cannot_be_locked_each_has_its_own(server, place, monkeypatch):
    def refuses(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(parts.fcntl, "flock", refuses)
    server.behave("good")
    get(server, place)
    assert place.target.read_bytes() == CONTENT
    assert place.target.stat().st_mode & 0o777 == 0o666 & ~_umask()


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_something_else_in_the_files_place(server, place):
    place.target.mkdir(parents=True)
    with pytest.raises(ConfigError, match="is no file"):
        get(server, place)
