"""What reruns: each key of the configuration, each module, a case, a method, another clone.

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

ROOT = Path(__file__).parents[1]
BASE = yaml.safe_load((ROOT / "tests" / "tiny.yaml").read_text(encoding="utf-8"))
*MATRIX, EXCEPT = yaml.safe_load((ROOT / "tests" / "reruns.yaml").read_text(encoding="utf-8"))
METHODS = ("occlusion", "lime", "rise")


def ask(directory, configs, **request):
    """Plans and graphs of ``configs``; the study is taken for made from the first one."""
    done = subprocess.run(
        [sys.executable, ROOT / "tests" / "reruns.py", directory],
        input=json.dumps({"configs": configs, **request}),
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout)


def leaves(node, prefix=""):
    for key, value in node.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def changed(key, value):
    config = copy.deepcopy(BASE)
    *sections, last = key.split(".")
    node = config
    for section in sections:
        node = node.setdefault(section, {})
    node[last] = value
    if key == "data.slices.train.index":
        node["policy"] = "index"
    return config


def expected(direct, readers):
    """The jobs that read a key, and all that reads their results; always provenance.json."""
    found, waiting = {"provenance"}, []
    for word in direct:
        if word == "figures":
            waiting += [job for job in readers if job.startswith("figure")] + ["training_curves"]
        elif word.endswith("*"):
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
        (key, value, row["reruns"], "spares" in row)
        for row in MATRIX
        for key, value in row["keys"].items()
    ]


def test_every_key_of_the_configuration_stands_in_the_matrix():
    keys = [key for row in MATRIX for key in row["keys"]]
    assert len(keys) == len(set(keys))
    (others,) = EXCEPT.values()
    assert set(keys) | set(others) == set(leaves(complete(copy.deepcopy(BASE))))


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return tmp_path_factory.mktemp("a study that never ran")


@pytest.fixture(scope="module")
def answer(study):
    return ask(study, [BASE, *(changed(key, value) for key, value, *_ in rows()), BASE])


def test_nothing_reruns_where_nothing_changed(answer):
    assert answer["plans"][0] == answer["plans"][-1] == {}


@pytest.mark.parametrize("number", range(len(rows())), ids=[key for key, *_ in rows()])
def test_a_key_reruns_what_reads_it_and_no_more(answer, number):
    _, _, direct, spares = rows()[number]
    wanted = expected(direct, answer["readers"][number + 1])
    if spares:  # the batch of the figures' case is left alone; these two draw all cases
        whole = ("figure08_comparison", "figure11_lime_distributions")
        wanted = {job for job in wanted if not job.startswith("figure") or job in whole}
    assert set(answer["plans"][number + 1]) == wanted


def test_a_method_switched_off_and_on_again_keeps_its_results(study, answer):
    fewer = changed("explain.methods", ["lime", "rise"])
    both = ask(study, [fewer, BASE])
    wanted = expected(["metrics explanations"], both["readers"][1])
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


def importers(module):
    """Scripts that import a module, directly or not, told by the text of the files."""
    sources = {path: path.read_text(encoding="utf-8") for path in (ROOT / "scripts").rglob("*.py")}
    reached, waiting = set(), [module]
    while waiting:
        name = waiting.pop()
        package, _, last = name.rpartition(".")
        forms = [rf"import {re.escape(name)}\b", rf"from {re.escape(name)} import"]
        forms.append(rf"from {re.escape(package)} import [^\n]*\b{last}\b")
        for path, text in sources.items():
            if path not in reached and any(re.search(rf"^ *{form}", text, re.M) for form in forms):
                reached.add(path)
                parts = path.relative_to(ROOT / "scripts").with_suffix("").parts
                waiting.append(".".join(parts))
    return {path.stem for path in reached if path.parent.name == "scripts"}


MODULES = ["xaiclip.preprocess", "xaiclip.evaluate.schema", "xaiclip.report.tables.data"]


def test_a_module_reruns_the_rules_whose_scripts_import_it(study, answer, clone):
    text = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "rules").glob("*.smk"))
    scripts = dict(re.findall(r"rule (\w+):(?:(?!\n *rule ).)*?scripts/(\w+)\.py", text, re.S))
    scripts["figure"] = "figure"
    assert ask(study, [BASE], root=str(clone), pretend=False)["plans"] == [{}]
    for module in MODULES:
        path = clone.joinpath("scripts", *module.split(".")).with_suffix(".py")
        before = path.read_bytes()
        path.write_bytes(before + b"\n# edited\n")
        got = ask(study, [BASE], root=str(clone), pretend=False)
        path.write_bytes(before)
        (readers,), (plan,) = got["readers"], got["plans"]
        using = {rule for rule, script in scripts.items() if script in importers(module)}
        direct = [job for job in readers if job.split()[0] in using]
        if "figure" in using:
            direct.append("figures")
        assert direct, module
        assert set(plan) == expected(direct, readers), module
