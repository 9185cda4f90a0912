"""`make clean` removes no study unasked."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def project(tmp_path):
    shutil.copy(ROOT / "Makefile", tmp_path)
    for name in ("results/demo/x", "results/mine/x", ".snakemake/x", "scripts/__pycache__/x"):
        path = tmp_path / name
        path.parent.mkdir(parents=True)
        path.touch()
    for name in ("tests", "benchmarks"):
        (tmp_path / name).mkdir()
    (tmp_path / "report.html").touch()
    return tmp_path


def make(folder, *arguments):
    done = subprocess.run(["make", *arguments], cwd=folder, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def studies(folder):
    return {path.name for path in (folder / "results").iterdir()}


def test_clean_keeps_every_study(project):
    status, output = make(project, "clean")
    assert status == 0, output
    assert studies(project) == {"demo", "mine"}
    assert (project / ".snakemake/x").exists()
    assert not (project / "report.html").exists()
    assert not (project / "scripts/__pycache__").exists()


def test_a_study_is_removed_by_name_and_when_confirmed(project):
    status, output = make(project, "clean", "RUN=demo")
    assert status != 0
    assert "add CONFIRM=yes" in output
    assert studies(project) == {"demo", "mine"}
    assert make(project, "clean", "RUN=demo", "CONFIRM=yes")[0] == 0
    assert studies(project) == {"mine"}


@pytest.mark.parametrize(
    "run", ["", ".", "..", "../results", "*", "$(touch y)", 'a"; touch y; "', "gone"]
)
def test_what_is_no_study_is_refused(project, run):
    assert make(project, "clean", f"RUN={run}", "CONFIRM=yes")[0] != 0
    assert studies(project) == {"demo", "mine"}
    assert not (project / "y").exists()
