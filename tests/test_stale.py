"""Stale results are listed and removed; what is configured, or not the workflow's, stays."""

import subprocess
import sys
from pathlib import Path

import pytest

from xaiclip.stale import remove_files, stale_files

ROOT = Path(__file__).parents[1]
WANTED = [
    "raw/test_ct_000.nii.gz",
    "raw/test_ct_000_labels.nii.gz",
    "slices/test-0.npz",
    "scores/lime/roi/test-0.npz",
    "metrics/parts/explanations/lime_roi_reference_test-0.parquet",
    "metrics/explanations.parquet",
    "maps/test_ct_000/right_kidney_lime_roi.nii.gz",
    "maps/test_ct_000/right_kidney_lime_roi_slic_soft_dice.nii.gz",
    "maps/.written/lime_roi_test-0.txt",
    "figures/figure02_preprocessing.png",
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
    "maps/.written/rise_roi_test-0.txt",
    "figures/figure04_rise.png",
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
