"""The checks of the house: what they see, that pre-commit runs the same, what a catalog reads."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

import conftest

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
SCRIPTS = sorted(path.name for path in (ROOT / "scripts").glob("*.py"))


def recipe(target):
    """The commands of a target of the Makefile, as `make --dry-run` tells them."""
    done = subprocess.run(
        ["make", "--dry-run", target, "VENV=.venv"],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if not name.startswith("MAKE")},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.replace("\\\n", "").splitlines()


def yaml_of(name):
    return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))


# --- the entry scripts are under the checkers ----------------------------------------------------


@pytest.mark.parametrize("script", SCRIPTS)
def test_an_undefined_name_in_a_script_is_seen(script):
    text = (ROOT / "scripts" / script).read_text(encoding="utf-8") + "\nprint(nobody_knows_me)\n"
    done = subprocess.run(
        [BIN / "ruff", "check", "--output-format", "concise", "--stdin-filename", script, "-"],
        cwd=ROOT / "scripts",
        input=text,
        capture_output=True,
        text=True,
    )
    assert re.findall(r"F821 Undefined name `(\w+)`", done.stdout) == ["nobody_knows_me"]


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_imports_snakemake_for_the_checkers_alone(script):
    text = (ROOT / "scripts" / script).read_text(encoding="utf-8")
    assert not re.search(r"^ *(from|import) snakemake\b", text, re.M)
    if re.search(r"^ *with job\(snakemake\)", text, re.M):
        assert "\nif TYPE_CHECKING:\n    from _job import snakemake\n" in text


def test_the_type_checker_reads_all_that_is_no_test():
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["mypy"]
    assert {"scripts", "envs", "benchmarks", "tests"} <= set(config["files"])
    assert config["exclude"] == "^tests/test_"
    assert recipe("types") == [".venv/bin/mypy"]
    strict = next(one for one in config["overrides"] if one.get("disallow_untyped_defs"))
    assert {"xaiclip.*", "compact.*"} <= set(strict["module"])


# --- make quick and pre-commit -------------------------------------------------------------------


def test_pre_commit_runs_the_makefile_s_checks():
    hooks = [hook for repo in yaml_of(".pre-commit-config.yaml")["repos"] for hook in repo["hooks"]]
    assert {repo["repo"] for repo in yaml_of(".pre-commit-config.yaml")["repos"]} == {"local"}
    assert [hook["entry"] for hook in hooks] == [*recipe("lint"), *recipe("types")]
    assert len({hook["id"] for hook in hooks}) == len(hooks)
    for hook in hooks:
        # whole trees, by the project's own programs: what a commit meets is what `make` meets
        assert hook["language"] == "system"
        assert hook["pass_filenames"] is False
        assert (BIN / Path(hook["entry"].split()[0]).name).exists()


def test_quick_is_every_check_but_the_slow_tests():
    quick = recipe("quick")
    (tests,) = [line for line in quick if "pytest" in line]
    checks = [line for line in quick if "pytest" not in line and "--jobs" not in line]
    for target in ("lint", "types", "workflow-lint"):
        assert set(recipe(target)) <= set(checks), target
    (unit,) = [line for line in recipe("unit") if "-n auto" in line]
    without_coverage = re.sub(r" --cov\S*", "", unit)
    assert tests.split() == [*without_coverage.split(), "-m", '"not', 'slow"']


def test_files_with_slow_tests_come_first_and_stay_whole():
    def item(file, name, slow=False):
        return SimpleNamespace(path=file, name=name, get_closest_marker=lambda _: slow or None)

    items = [item("a", "1"), item("a", "2"), item("b", "1"), item("b", "2", True), item("c", "1")]
    conftest.pytest_collection_modifyitems(items)
    assert [one.path + one.name for one in items] == ["b1", "b2", "a1", "a2", "c1"]


# --- the workflow catalog ------------------------------------------------------------------------


def test_the_catalog_s_file_says_what_the_workflow_can():
    usage = yaml_of(".snakemake-workflow-catalog.yml")["usage"]
    assert set(usage) <= {"mandatory-flags", "software-stack-deployment", "report"}
    deployment = usage["software-stack-deployment"]
    assert set(deployment) == {"conda", "apptainer", "apptainer+conda"}
    assert all(isinstance(one, bool) for one in (*deployment.values(), usage["report"]))
    rules = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "rules").glob("*.smk"))
    snakefile = (ROOT / "Snakefile").read_text(encoding="utf-8")
    assert deployment["conda"] == ("\n    conda:\n" in rules)
    assert deployment["apptainer"] == ("container:" in rules + snakefile)
    assert usage["report"] == ("report(" in rules and "\nreport:" in snakefile)


def test_the_catalog_finds_what_it_looks_for():
    readme = (ROOT / "README.md").read_text(encoding="utf-8").lower()
    assert re.search(r"\bsnakemake\b", readme)
    assert re.search(r"\bworkflow\b", readme)
    assert "--sdm conda" in readme
    assert (ROOT / "Snakefile").exists()
    assert not (ROOT / "workflow").exists()  # else the catalog looks there
    assert list((ROOT / "rules").glob("*.smk"))
    assert (ROOT / "config" / "README.md").exists()


# --- pages ---------------------------------------------------------------------------------------

PAGES = ["README.md", "CONTRIBUTING.md", "config/README.md", "resources/compact/README.md"]
PAGES += sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").glob("*.md"))


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#\s]+)", text) if "://" not in link]
    assert [link for link in links if not (ROOT / page).parent.joinpath(link).exists()] == []
    modules = re.findall(r"`(xaiclip(?:\.\w+)+)", text)
    assert [name for name in modules if not is_module(name)] == []


def is_module(name):
    """A dotted name whose first two parts are a module, or a name that the package offers."""
    first = name.split(".")[1]
    return (
        (ROOT / "scripts/xaiclip" / f"{first}.py").exists()
        or (ROOT / "scripts/xaiclip" / first).is_dir()
        or f'"{first}"' in (ROOT / "scripts/xaiclip/__init__.py").read_text(encoding="utf-8")
        or first in ("methods", "models")  # entry-point groups
    )
