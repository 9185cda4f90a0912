"""What reruns: each key of the configuration, each file, each module, a method, another clone.

The study is made of empty files that Snakemake takes for results (tests/reruns.py), so that a row
of the matrix costs a dry run.
"""

import copy
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from xaiclip.config import complete

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
BASE = yaml.safe_load((ROOT / "tests" / "tiny.yaml").read_text(encoding="utf-8"))
*ROWS, EXCEPT = yaml.safe_load((ROOT / "tests" / "reruns.yaml").read_text(encoding="utf-8"))
MATRIX = [row for row in ROWS if "keys" in row]
METHODS = ("occlusion", "lime", "rise")


def ask(directory, configs, **request):
    """Plans and graphs of ``configs``; the study is taken for made from the first one."""
    done = subprocess.run(
        [sys.executable, ROOT / "tests" / "reruns.py", directory],
        input=json.dumps({"configs": configs, **request}),
        capture_output=True,
        text=True,
        cwd=ROOT,
        # another copy of the library is refused
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": ""},
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout)


def leaves(node, prefix=""):
    for key, value in node.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def changed(changes, base=BASE):
    """The base with some keys changed."""
    config = copy.deepcopy(base)
    for key, value in changes.items():
        *sections, last = key.split(".")
        node = config
        for section in sections:
            node = node.setdefault(section, {})
        node[last] = value
    return config


def expected(direct, readers):
    """The jobs that read a key, and all that reads their results; always provenance.json."""
    found, waiting = {"provenance"}, []
    for word in direct:
        if word.endswith("*"):
            waiting += [word.replace("*", method) for method in METHODS]
        else:
            waiting.append(word)
    while waiting:
        job = waiting.pop()
        if job in readers and job not in found:
            found.add(job)
            waiting += readers[job]
    return found


def rows():
    return [
        (key, value, row["reruns"], row.get("with", {}))
        for row in MATRIX
        for key, value in row["keys"].items()
    ]


def test_every_key_of_the_configuration_stands_in_the_matrix():
    keys = [(key, json.dumps(row.get("with"))) for row in MATRIX for key in row["keys"]]
    assert len(keys) == len(set(keys))
    keys = [key for key, _ in keys]
    (others,) = EXCEPT.values()
    assert set(keys) | set(others) == set(leaves(complete(copy.deepcopy(BASE))))


OWN = """
import helper
def make(level=1):
    return helper.HELP
"""


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return tmp_path_factory.mktemp("a study that never ran")


@pytest.fixture(scope="module")
def answers(study):
    """Key → its plan and the graph, of all keys that change the same base; None → of the base."""
    found = {}
    for own in map(json.dumps, [row[-1] for row in rows()]):
        if own in found:
            continue
        folder = study if own == "{}" else study / f"base {len(found)}"
        folder.mkdir(exist_ok=True)
        (folder / "own.py").write_text(OWN)
        (folder / "helper.py").write_text("HELP = 'a'")
        base = changed(json.loads(own))
        same = {key: value for key, value, *_, other in rows() if json.dumps(other) == own}
        configs = [changed({key: value}, base) for key, value in same.items()]
        answer = ask(folder, [base, *configs, base])
        plans = zip(answer["plans"], answer["readers"], strict=True)
        found[own] = dict(zip([None, *same, "again"], plans, strict=True))
    return found


def test_nothing_reruns_where_nothing_changed(answers):
    for plans in answers.values():
        assert plans[None][0] == plans["again"][0] == {}


@pytest.mark.parametrize("number", range(len(rows())), ids=[key for key, *_ in rows()])
def test_a_key_reruns_what_reads_it_and_no_more(answers, number):
    key, _, direct, own = rows()[number]
    plan, readers = answers[json.dumps(own)][key]
    wanted = expected(direct, readers)
    assert set(plan) == wanted


def test_a_deleted_map_is_made_again_and_no_other_case_s(study, answers):
    """One that the tables show, and those that they do not."""
    names = ["test_ct_000/liver_rise_roi.nii.gz", "test_mr_000/variants"]
    removed = [f"results/tiny/maps/{name}" for name in names]
    nothing, *plans = ask(study, [BASE], pretend=False, removed=removed)["plans"]
    assert nothing == {}
    report = ("skipped", "table2", "table3", "table_segmenter", "provenance")
    assert plans == [{"maps": 1, **dict.fromkeys(report, 1)}] * 2


SHEET = """case image label modality split
train scans/train.nii.gz scans/train_label.nii.gz CT train
one scans/{1}/test.nii.gz scans/label.nii CT test
two scans/series scans/masks CT test
three scans/header.mhd - CT test
four scans/nearly.nhdr - CT test
five scans/pair.hdr - CT test
"""
HEADERS = {
    "scans/header.mhd": "ObjectType = Image\nNDims = 3\nDimSize = 2 2 2\nElementType = MET_UCHAR\n"
    "ElementSpacing = 1 1 1\nTransformMatrix = 1 0 0 0 1 0 0 0 1\nElementDataFile = header.raw\n\n",
    "scans/nearly.nhdr": "NRRD0004\ntype: uchar\ndimension: 3\nsizes: 2 2 2\nencoding: raw\n"
    "space: left-posterior-superior\nspace directions: (1,0,0) (0,1,0) (0,0,1)\n"
    "space origin: (0,0,0)\ndata file: nearly.raw\n\n",
    "clip/clip.json": json.dumps({"model_cfg": {"vision_cfg": {"layers": 6}}}) + "\n\n",
    "own.py": OWN + "LEVEL = 'a'",
    "helper.py": "HELP = 'aa'",
}
FILES = [(file, row["reruns"]) for row in ROWS if "files" in row for file in row["files"]]


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """A study of files of every kind, that never ran; and one with a localizer of another study."""
    folder = tmp_path_factory.mktemp("scans of mine")
    for number, (name, _) in enumerate(FILES):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        # sizes differ, so that no scan is another one's copy
        (folder / name).write_text(HEADERS.get(name, "x" * number + "data"))
    lines = [re.sub(r"\s-\s", "  ", line).replace(" ", "\t") for line in SHEET.splitlines()]
    (folder / "sheet.tsv").write_text("\n".join(lines))
    base = {key: BASE[key] for key in ("cases_per_job", "explain", "methods")} | {
        "run": "scans",
        "cases_per_job": 10,
        "data": {"sheet": "sheet.tsv"},
        "localizer": {"backbone": "clip"},
        "segmenter": {"factory": "own.py:make", "checkpoint": "sam.pt"},
    }
    trained = {"localizer": {"backbone": "clip", "weights": "localizer.safetensors"}}
    return folder, base, base | {"run": "trained"} | trained


@pytest.fixture(scope="module")
def replaced(scans):
    """File → its plan and the graph."""
    folder, base, trained = scans
    found = {}
    for config, own in ((base, False), (trained, True)):
        names = [name for name, _ in FILES if name.startswith("localizer") == own]
        answer = ask(folder, [config], replaced=names)
        assert answer["plans"][0] == {}
        plans = zip(answer["plans"], answer["readers"], strict=True)
        found |= dict(zip([None, *names], plans, strict=True))
    return found


@pytest.mark.parametrize(("name", "direct"), FILES, ids=[name for name, _ in FILES])
def test_a_file_that_is_replaced_reruns_what_reads_it_and_no_more(replaced, name, direct):
    plan, readers = replaced[name]
    assert set(plan) == expected(direct, readers)


def test_a_file_that_joins_or_leaves_a_folder_reruns_its_batch(scans):
    folder, base, _ = scans
    assert ask(folder, [base], pretend=False)["plans"] == [{}]
    (folder / "scans/series/3.dcm").write_text("x")
    assert "slices" in ask(folder, [base], pretend=False)["plans"][0]
    (folder / "scans/series/3.dcm").unlink()
    assert ask(folder, [base], pretend=False)["plans"] == [{}]


def test_a_method_switched_off_and_on_again_keeps_its_results(study, answers):
    fewer = changed({"explain.methods": ["lime", "rise"]})
    both = ask(study, [fewer, BASE])
    wanted = expected(["metrics explanations", "maps"], both["readers"][1])
    # what only the method's own figures and tables read was left alone while it was off
    assert both["plans"][0] == {}
    assert set(both["plans"][1]) <= wanted
    assert "metrics explanations" in both["plans"][1]
    assert ask(study, [BASE])["plans"] == [{}]


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    copied = tmp_path_factory.mktemp("clone") / "project"
    for name in ("rules", "scripts", "envs", "config", "profiles", "docs", "resources"):
        shutil.copytree(ROOT / name, copied / name)  # with the times of now
    for path in (ROOT / "Snakefile", ROOT / "pyproject.toml"):
        shutil.copy(path, copied)
    for path in copied.rglob("*"):
        os.utime(path)
    return copied


EDITS = [
    (name, *edit, row["reruns"], row.get("never"))
    for row in ROWS
    for name, edit in row.get("edits", {}).items()
]


@pytest.fixture(scope="module")
def edited(study, answers, clone):
    """Name of an edit → its plan and the graph."""
    found = {}
    assert ask(study, [BASE], root=str(clone), pretend=False)["plans"] == [{}]
    for name, file, old, new, *_ in EDITS:
        path = clone / "scripts" / file
        before = path.read_text(encoding="utf-8")
        assert before.count(old) >= 1, f"{name}: {file} no longer holds {old!r}"
        path.write_text(before.replace(old, new, 1), encoding="utf-8")
        compile(path.read_text(encoding="utf-8"), path, "exec")
        answer = ask(study, [BASE], root=str(clone), pretend=False)
        path.write_text(before, encoding="utf-8")
        found[name] = answer["plans"][0], answer["readers"][0]
    return found


@pytest.mark.parametrize(("name", "direct", "never"), [(one[0], *one[4:]) for one in EDITS])
def test_an_edit_reruns_what_runs_the_code_and_no_more(edited, name, direct, never):
    plan, readers = edited[name]
    wanted = expected(direct, readers) if direct else set()
    if direct == ["figures"]:  # no number hangs on it: what made the numbers stays what it was
        wanted -= {"provenance"}
    if never is None:
        assert set(plan) == wanted
    else:
        assert set(plan) >= wanted
        assert not [job for job in plan if job.startswith(never)]
