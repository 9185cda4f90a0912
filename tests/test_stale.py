"""Stale results are listed and removed; what is configured, or not the workflow's, stays."""

import subprocess
import sys
from pathlib import Path

import pytest

from xaiclip.files import TEMPORARY
from xaiclip.workflow.stale import remove_files, stale_files

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
WANTED = [
    "raw/test_ct_000.nii.gz",
    "raw/test_ct_000_labels.nii.gz",
    "slices/test-0.npz",
    "scores/lime/roi/test-0.npz",
    "metrics/parts/explanations/lime_roi_reference_test-0.parquet",
    "metrics/explanations.parquet",
    "maps/test_ct_000/right_kidney_lime_roi.nii.gz",
    "maps/test_ct_000/variants/right_kidney_lime_roi_slic_soft_dice.nii.gz",
    "maps/test_ct_000/variants/.snakemake_timestamp",
    "maps/.skips/test_ct_000.json",
    "figures/figure02_preprocessing.png",
    "tables/table3_variants.md",
    "tables/savings.csv",  # made on demand
    "tables/notes of mine.csv",
    "provenance.json",
    "notes of mine.txt",
    "maps/my own/map.nii.gz",
    "scores/README",
]
STALE = [
    "raw/test_ct_007.nii.gz",
    "raw/test_ct_007_labels.nii.gz",
    "slices/test-9.npz",
    "scores/rise/roi/test-0.npz",
    "scores/rise/roi/test-0.parquet",
    "scores/lime/roi_body/test-0.npz",
    "metrics/parts/explanations/lime_roi_body_test-0.parquet",
    "maps/test_ct_000/right_kidney_rise_roi.nii.gz",
    "maps/test_ct_000/right_kidney_lime_roi_body.nii.gz",
    "maps/test_ct_000/gallbladder_lime_roi.nii.gz",
    "maps/test_ct_007/liver_lime_roi.nii.gz",
    "maps/test_ct_000/variants/right_kidney_two_words_roi_slic_soft_dice.nii.gz",
    "maps/test_ct_007/variants/.snakemake_timestamp",
    "maps/.skips/test_ct_007.json",
    "figures/figure04_rise.png",
    "tables/shapley_units.csv",
    "tables/shapley_units.md",
    "scores/lime/roi/.tmp-a1b2c3-test-0.npz",  # what a killed job was writing
]


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "results" / "demo"
    for name in WANTED + STALE:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return folder


def held(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_targets_list_and_remove(run):
    """As users call them; a second prune finds nothing."""
    config = run.parents[1] / "changed.yaml"
    config.write_text(
        "explain: {methods: [lime], guidances: [full, roi, roi_reference]}\n"
        "data: {phantom: {test: {CT: 1, MR: 0}}}\ncases_per_job: 1\n"
    )

    def call(target):
        command = [sys.executable, "-m", "snakemake", target, "--cores", "1", "--quiet", "all"]
        command += ["--snakefile", ROOT / "Snakefile", "--directory", run.parents[1]]
        done = subprocess.run(
            [*command, "--configfile", config], capture_output=True, text=True, cwd=ROOT
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return {line for line in done.stdout.splitlines() if line.startswith("results/demo/")}

    assert call("stale") == {f"results/demo/{name}" for name in STALE}
    assert held(run) - {"logs/stale.log"} == set(WANTED + STALE)
    call("prune")
    assert held(run) - {"logs/stale.log", "logs/prune.log"} == set(WANTED)
    assert not (run / "scores" / "rise").exists()
    assert call("stale") == set()


CONFIGURED = {
    "case": ["ct_1", "ct.2"],
    "method": ["lime", "grad_cam"],
    "guidance": ["full", "roi"],
    "batch": ["test-0", "train-a"],
    "variant": ["text"],
    "organ": ["left_kidney"],
    "figure": ["figure01"],
    "name": ["table2"],
}


@pytest.mark.parametrize(
    ("pattern", "wanted", "gone", "foreign"),
    [
        ("raw/{case}.nii.gz", "raw/ct.2.nii.gz", "raw/ctx2.nii.gz", "raw/sub/ct_1.nii.gz"),
        ("slices/{batch}.npz", "slices/test-0.npz", "slices/test-1.npz", "slices/other-0.npz"),
        (
            "localizer/{variant}/w.st",
            "localizer/text/w.st",
            "localizer/no_text/w.st",
            "localizer/x/w.st",
        ),
        (
            "scores/{method}/{guidance}/{batch}.npz",
            "scores/lime/roi/test-0.npz",
            "scores/lime/roi_reference/test-0.npz",
            "scores/lime/somewhere/test-0.npz",
        ),
        (
            "maps/{case}/{organ}_{method}_{guidance}.nii.gz",
            "maps/ct_1/left_kidney_lime_roi.nii.gz",
            "maps/ct_1/left_kidney_lime_roi_body.nii.gz",
            "maps/ct_1/left_kidney_lime_roi.nii",
        ),
        (
            "maps/{case}/{organ}_{method}_{guidance}_{rest}.nii.gz",
            "maps/ct_1/left_kidney_lime_roi_slic.nii.gz",
            "maps/ct_1/left_kidney_rise_roi_slic.nii.gz",
            "maps/ct_1/left_kidney_lime_roi_body.nii.gz",  # a guidance, not a rest
        ),
        (
            "maps/{case}/{organ}_{method}_{guidance}.nii.gz",
            "maps/ct_1/left_kidney_grad_cam_roi.nii.gz",
            "maps/ct_1/left_kidney_grad_cam2_roi.nii.gz",
            "maps/ct_1/left_kidney_grad_cam_nowhere.nii.gz",
        ),
        ("figures/{figure}.png", "figures/figure01.png", "figures/figure09.png", "figures/a.svg"),
        ("tables/{name}.{kind}", "tables/table2.md", "tables/table3.csv", "tables/savings.csv"),
        ("tables/{name}.{kind}", "tables/table2.csv", "tables/table3.md", "tables/table3.png"),
        ("metrics/all.parquet", "metrics/all.parquet", None, "metrics/allxparquet"),
        ("a+b/{case}.txt", "a+b/ct_1.txt", "a+b/ct_9.txt", "aab/ct_9.txt"),
    ],
)
def test_a_file_of_each_kind(tmp_path, pattern, wanted, gone, foreign):
    """Wanted is kept, what no configuration asks for is listed, what is like no pattern is left."""
    for name in filter(None, (wanted, gone, foreign, f"{gone or wanted}.bak")):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    found = stale_files(tmp_path, [pattern], CONFIGURED)
    assert found == ([str(tmp_path / gone)] if gone else [])


@pytest.mark.parametrize("name", ["roi_body", "roi_reference", "roi_body_slic"])
def test_a_guidance_is_not_a_variant_of_another(tmp_path, name):
    """`roi_body` without its variant looks like `roi` with a variant called `body`."""
    (tmp_path / f"lime_{name}.nii.gz").touch()
    patterns = ["{method}_{guidance}.nii.gz", "{method}_{guidance}_{rest}.nii.gz"]
    found = stale_files(tmp_path, patterns, CONFIGURED)
    assert found == [str(tmp_path / f"lime_{name}.nii.gz")]
    both = {**CONFIGURED, "guidance": ["roi", "roi_body", "roi_reference"]}
    assert stale_files(tmp_path, patterns, both) == []


def test_what_killed_jobs_were_writing_is_listed(tmp_path):
    (tmp_path / "deep" / "er").mkdir(parents=True)
    left = tmp_path / "deep" / "er" / f"{TEMPORARY}ab12-x.npz"
    left.touch()
    (tmp_path / "deep" / ".hidden").touch()
    assert stale_files(tmp_path, ["deep/{case}"], {"case": [".hidden"]}) == [str(left)]


def test_every_value_of_a_name_must_be_configured(tmp_path):
    """One name that can be read in two ways is kept if either is wanted as a whole."""
    for name in ("a_b_c", "a_x"):
        (tmp_path / name).touch()
    both = {"case": ["a", "a_b"], "organ": ["c", "b"]}
    assert stale_files(tmp_path, ["{case}_{organ}"], both) == [str(tmp_path / "a_x")]
    assert stale_files(tmp_path, ["{case}_{organ}", "a_{free}"], both) == []


def test_the_results_folder_itself_is_never_removed(tmp_path):
    path = tmp_path / "results" / "run" / "x.txt"
    path.parent.mkdir(parents=True)
    path.touch()
    remove_files([path])
    assert (tmp_path / "results").is_dir()
    assert not (tmp_path / "results" / "run").exists()


def test_a_file_is_kept_if_any_pattern_wants_it(tmp_path):
    (tmp_path / "a_b").touch()
    assert stale_files(tmp_path, ["{case}_{x}", "{case}"], {"case": ["a_b"]}) == []
    assert stale_files(tmp_path, ["{case}"], {"case": ["a"]}) == [str(tmp_path / "a_b")]
    assert stale_files(tmp_path / "none", ["{case}"], {}) == []


def test_folders_that_hold_more_are_left(tmp_path):
    for name in ("results/run/a/b/x", "results/run/a/y"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    remove_files([tmp_path / "results/run/a/b/x", tmp_path / "results/run/gone"])
    assert held(tmp_path) == {"results/run/a/y"}
    assert not (tmp_path / "results/run/a/b").exists()
