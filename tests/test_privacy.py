"""Words for publishing name a case and a role; never a path or an identifier."""

import json
import logging
import os
import stat

import pytest

from xaiclip import files, privacy
from xaiclip.errors import CaseError, printable

NAMES = ("DOE_JANE", "19700101", "Doe^Jane", "1.2.840.113619")


@pytest.fixture
def scans(tmp_path):
    """A DICOM folder, a file, and a label, whose paths hold a patient's name."""
    folder = tmp_path / "DOE_JANE_19700101" / "study 1"
    (folder / "series").mkdir(parents=True)
    (folder / "series" / "IM DOE_JANE 0001.dcm").touch()
    (folder / "series" / "1.2.840.113619.2.55.3.dcm").touch()
    (folder / "DOE_JANE.nii.gz").touch()
    (folder / "label.nii.gz").touch()
    return {
        "c1": {"image": folder / "series", "label": folder / "label.nii.gz"},
        "c2": {"image": folder / "DOE_JANE.nii.gz", "label": None},
    }


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("{c1}: no series", "<c1/image>: no series"),
        ("'{c1}/IM DOE_JANE 0001.dcm' is cut off", "'<c1/image>' is cut off"),
        ("cannot open IM DOE_JANE 0001.dcm", "cannot open <c1/image>"),
        ("cannot open DOE_JANE.nii.gz.", "cannot open <c2/image>."),
        ("[Errno 2] No such file: '{c2}'", "[Errno 2] No such file: '<c2/image>'"),
        ("series 1.2.840.113619.2.55.3 twice", "series <UID> twice"),
        ("{c1}/new/other.dcm, {c2}", "<c1/image>, <c2/image>"),
        ("folder DOE_JANE_19700101 is locked", "folder <c1/image> is locked"),
        ("DOE_JANE", "<c2/image>"),
        ("version 1.2.3 of 2026.11.25, 0.5 mm", "version 1.2.3 of 2026.11.25, 0.5 mm"),
        ("its label holds image 17 of the series", "its label holds image 17 of the series"),
        ("c1 and c2 are cases", "c1 and c2 are cases"),
    ],
)
def test_a_files_path_becomes_its_case_and_role(scans, text, wanted):
    paths = {case: roles["image"] for case, roles in scans.items()}
    assert privacy.Redactor(scans)(text.format(**paths)) == wanted


def test_every_spelling_of_a_path_is_known(scans, tmp_path, monkeypatch):
    link = tmp_path / "a link"
    link.symlink_to(scans["c1"]["image"])
    monkeypatch.chdir(tmp_path / "DOE_JANE_19700101")
    redact = privacy.Redactor({"c1": {"image": "study 1/series"}, "c3": {"image": link}})
    for spelling in ("study 1/series", os.path.abspath("study 1/series")):
        assert redact(f"see {spelling}!") == "see <c1/image>!"
    assert redact(f"see {link}!") == "see <c3/image>!"


def test_paths_of_results_stay():
    redact = privacy.Redactor(
        {"c1": {"image": "results/My_Run/raw/c1.nii.gz"}}, keep=["results/My_Run/slices/0.npz"]
    )
    assert (
        redact("'results/My_Run/slices/0.npz' is full") == "'results/My_Run/slices/0.npz' is full"
    )
    assert redact("results/My_Run/raw/c1.nii.gz: cut off") == "<c1/image>: cut off"


@pytest.fixture
def log(scans):
    """A logger as a job has it, and its lines."""
    lines = []
    handler = logging.Handler()
    handler.setFormatter(privacy.LogFormatter(privacy.Redactor(scans)))
    handler.emit = lambda record: lines.append(handler.format(record))
    logger = logging.Logger("job")
    logger.addHandler(handler)
    return logger, lines


@pytest.mark.parametrize("evil", ["\n", "\r", "\x1b[2J", "\x00", "\x85", "\u2028", "\u202e"])
def test_a_record_is_one_line_whatever_is_in_it(log, evil):
    logger, lines = log
    logger.warning("%s: damaged", f"scan{evil}00:00:00 INFO all is well")
    assert len(lines[0].splitlines()) == 1
    assert evil not in lines[0]
    assert repr(evil)[1:-1] in lines[0]


def test_a_traceback_keeps_its_lines_and_nothing_of_the_patient(log, scans):
    logger, lines = log
    try:
        try:
            (scans["c1"]["image"] / "IM DOE_JANE 0002.dcm").read_bytes()
        except OSError as error:
            error.add_note(f"note on {scans['c2']['image']}\nforged")
            raise ValueError(f"two\nlines\n\n of {scans['c1']['image']}\x1b") from error
    except ValueError:
        logger.exception("c1: unexpected")
    (text,) = lines
    assert "\nThe above exception was the direct cause of the following exception:\n" in text
    assert f'File "{__file__}"' in text
    last = text.splitlines()[-1]
    assert last == r"ValueError: two\nlines\n\n of <c1/image>\x1b"
    assert r"note on <c2/image>\nforged" in text
    errors = [line for line in text.splitlines() if not line.startswith("  ")]
    assert not any(name in line for name in NAMES for line in errors)


def test_reasons_are_one_line_and_name_no_file(tmp_path):
    error = CaseError("bad\nvalue \x1b[31m.", tmp_path / "DOE_JANE\n.nii")
    assert error.reason == r"bad\nvalue \x1b[31m."
    assert str(error) == rf"{tmp_path}/DOE_JANE\n.nii: bad\nvalue \x1b[31m."
    assert printable("Größe 3 × 4 µm: 肝") == "Größe 3 × 4 µm: 肝"


def test_the_published_configuration_holds_no_path_of_the_user(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "DOE_JANE.tsv").touch()
    (tmp_path / "clip").mkdir()
    config = {
        "run": "x",
        "data": {"source": "sheet", "sheet": "DOE_JANE.tsv", "cases": ["a*"]},
        "downloads": "/home/jane/downloads",
        "localizer": {"weights": "results/y/l.safetensors", "backbone": "clip", "pretrained": None},
        "segmenter": {
            "model": "compact",
            "checkpoint": "../DOE_JANE/medsam.pth",
            "factory": "own.py:make",
            "options": {"folder": r"C:\DOE_JANE", "n": 3, "list": ["/DOE_JANE", "b"]},
        },
        "device": "cuda:1",
    }
    before = json.dumps(config)
    shown = privacy.public(config)
    assert json.dumps(config) == before
    assert "DOE_JANE" not in json.dumps(shown)
    assert shown["data"] == {"source": "sheet", "sheet": "(private)", "cases": ["a*"]}
    assert shown["localizer"]["backbone"] == shown["downloads"] == "(private)"
    assert shown["segmenter"]["options"] == {
        "folder": "(private)",
        "n": 3,
        "list": ["(private)", "b"],
    }
    assert shown["device"] == "cuda:1"
    for name in ("hf-hub:microsoft/BiomedCLIP", "ViT-L-14", "compact", "openai"):
        assert privacy.public({"localizer": {"backbone": name}}) == {
            "localizer": {"backbone": name}
        }


def test_a_private_file_is_for_its_owner_alone(tmp_path):
    before = os.umask(0o022)
    try:
        files.write_json(tmp_path / "private/a.json", {"x": "\udcff"}, private=True)
        files.write_json(tmp_path / "public/a.json", {})
    finally:
        os.umask(before)

    def mode(name):
        return stat.S_IMODE((tmp_path / name).stat().st_mode)

    assert (mode("private"), mode("private/a.json")) == (0o700, 0o600)
    assert (mode("public"), mode("public/a.json")) == (0o755, 0o644)
    assert json.loads((tmp_path / "private/a.json").read_text()) == {"x": "\udcff"}


@pytest.mark.parametrize(("mask", "wanted"), [(0o027, 0o640), (0o077, 0o600), (0o002, 0o664)])
def test_results_are_for_whom_the_umask_says(tmp_path, mask, wanted):
    before = os.umask(mask)
    try:
        files.write_text(tmp_path / "x.txt", "x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "x.txt").stat().st_mode) == wanted
