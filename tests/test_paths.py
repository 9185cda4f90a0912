"""The study's paths: each once, and the rules write nothing else."""

import re
from pathlib import Path

import pytest

from xaiclip.workflow import paths

ROOT = Path(__file__).parents[1]
PATHS = dict(paths.named())
RULES = sorted([ROOT / "Snakefile", *(ROOT / "rules").glob("*.smk")])
KINDS = r"\.(npz|parquet|tsv|json|csv|md|png|safetensors|nii\.gz|txt)\""


def test_the_layout_that_others_rely_on():
    """As README and docs promise it: written out here, apart from the module."""
    layout = {
        "METRICS": "results/{run}/metrics/{name}.parquet",
        "TABLE": "results/{run}/tables/{name}.{kind}",
        "FIGURE": "results/{run}/figures/{figure}.png",
        "MAP": "results/{run}/maps/{case}/{organ}_{method}_{guidance}.nii.gz",
        "PROVENANCE": "results/{run}/provenance.json",
        "SKIPPED": "results/{run}/skipped.tsv",
    }
    assert {name: PATHS[name] for name in layout} == layout


def test_no_two_names_for_one_path():
    assert len(PATHS) > 30
    assert len(set(PATHS.values())) == len(PATHS)


@pytest.mark.parametrize("file", RULES, ids=lambda file: file.name)
def test_rules_hold_no_path_of_a_study(file):
    """Logs and benchmarks stand with their rule, once; all others have a name."""
    text = file.read_text(encoding="utf-8")
    found = re.findall(r'"[^"\n]*results/\{\{?(?:run|RUN)[^"\n]*"', text)
    assert [one for one in found if not re.search(r"/(logs|benchmarks)/", one)] == []
    parts = "slices|roi|scores|attributions|metrics|localization|segmentation|preprocessed|raw"
    assert re.findall(rf'"(?:{parts})/[^"\n]*{KINDS}', text) == []


def test_logs_and_benchmarks_are_named_once():
    text = "\n".join(file.read_text(encoding="utf-8") for file in RULES)
    found = re.findall(r'"(results/[^"\n]*/(?:logs|benchmarks)/[^"\n]*)"', text)
    assert len(found) > 20
    assert len(set(found)) == len(found)


def test_what_names_can_drop_has_a_wildcard_of_theirs():
    assert set(paths.DROPPED) >= {paths.SCORES, paths.MAP, paths.FIGURE, paths.PHANTOM_LABEL}
    for path in paths.DROPPED:
        assert re.findall(r"\{(\w+)\}", paths.below(path)), path


def test_every_file_of_a_name_that_may_go_is_looked_for():
    names = {"batch", "case", "variant", "method", "guidance", "organ", "figure", "kind"}
    files = {
        path
        for path in PATHS.values()
        if "." in Path(path).name and names & set(re.findall(r"\{(\w+)\}", path))
    }
    assert files == {path for path in paths.DROPPED if ".snakemake" not in path}


def test_filled_and_globs():
    path = paths.filled(paths.SCORES, method="lime", guidance="roi")
    assert path == "results/{run}/scores/lime/roi/{batch}.npz"
    assert paths.below(path) == "scores/lime/roi/{batch}.npz"
    assert paths.glob_of(path) == "scores/lime/roi/*.npz"
    with pytest.raises(KeyError, match="no wildcard 'organ'"):
        paths.filled(paths.SCORES, organ="liver")
