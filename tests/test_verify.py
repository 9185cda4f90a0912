"""A finished run against its provenance, and against what comes out again."""

import gzip
import json
import os

import numpy as np
import pandas as pd
import pytest

from xaiclip.data.footprint import checksum
from xaiclip.files import save_arrays, sha256
from xaiclip.workflow.verify import AGAIN, checked_sums, compared


def make(folder):
    for name in ("tables", "metrics", "roi", "raw"):
        (folder / name).mkdir(parents=True)
    (folder / "raw/a.nii").write_bytes(b"scan")
    rows = {"unit": ["", "s"], "value": [1.5, folder.name == "demo"]}
    pd.DataFrame(rows).to_csv(folder / "tables/t.csv", index=False)
    seconds = 1.0 if folder.name == "demo" else 2.0
    pd.DataFrame({"dice": [0.1], "seconds_total": [seconds]}).to_parquet(
        folder / "metrics/m.parquet"
    )
    meta = {"seconds": seconds, "path": f"results/{folder.name}/raw/a.nii"}
    save_arrays(folder / "roi/test-0.npz", {"x": np.arange(3.0)}, meta)
    (folder / "skipped.tsv").write_text(f"results/{folder.name}/raw/a.nii: bad\n")


@pytest.fixture
def runs(tmp_path):
    both = tmp_path / "results/demo", tmp_path / "results/verify-demo"
    for folder in both:
        make(folder)
    return both


def wrong(items):
    return {item.split()[-1]: problem for item, problem in items if problem}


def test_times_and_the_name_of_the_run_do_not_count(runs):
    items = list(compared(*runs))
    assert len(items) == 4
    assert wrong(items) == {}


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("tables/t.csv", b"unit,value\n,1.6\n", "differs from what comes out now"),
        ("skipped.tsv", b"", "differs"),
        ("roi/test-0.npz", b"PK", "cannot be read"),
        ("metrics/m.parquet", None, "is missing"),
    ],
)
def test_one_tampered_file_is_named(runs, name, content, words):
    path = runs[0] / name
    path.unlink() if content is None else path.write_bytes(content)
    found = wrong(compared(*runs))
    assert list(found) == [name]
    assert words in found[name]


@pytest.fixture
def sealed(runs, tmp_path):
    """A run with its provenance, and the private files that say where its inputs lie."""
    folder = runs[0]
    (tmp_path / "series").mkdir()
    for name in ("1.dcm", "2.dcm"):
        (tmp_path / "series" / name).write_text(name)
    (tmp_path / "model.bin").write_bytes(b"weights")
    files = {"image": tmp_path / "series", "label": folder / "raw/a.nii"}
    (folder / "private").mkdir()
    for name, content in {
        "test-0": {"c1": {role: str(file) for role, file in files.items()}},
        "study": {"config": {}, "weights": {"segmenter": [str(tmp_path / "model.bin")]}},
    }.items():
        (folder / f"private/{name}.json").write_text(json.dumps(content))
    provenance = {
        "data": {"c1": {role: checksum(file) for role, file in files.items()}},
        "weights": {"segmenter": sha256(tmp_path / "model.bin")},
        "tables": {"t.csv": sha256(folder / "tables/t.csv")},
    }
    return folder, json.loads(json.dumps(provenance))


def problems(sealed):
    return {item: problem for item, problem in checked_sums(*sealed) if problem}


def test_an_untouched_run_agrees_with_its_provenance(sealed):
    assert len(list(checked_sums(*sealed))) == 4
    assert problems(sealed) == {}


@pytest.mark.parametrize(
    ("file", "content", "item"),
    [
        ("series/2.dcm", b"3.dcm", "data c1/image"),
        ("series/3.dcm", b"one more", "data c1/image"),
        ("series/2.dcm", None, "data c1/image"),
        ("results/demo/raw/a.nii", b"scam", "data c1/label"),
        ("results/demo/raw/a.nii", None, "data c1/label"),
        ("model.bin", b"other", "weights segmenter"),
        ("results/demo/tables/t.csv", b"", "table t.csv"),
    ],
)
def test_what_differs_from_the_provenance_is_named(sealed, tmp_path, file, content, item):
    path = tmp_path / file
    path.unlink() if content is None else path.write_bytes(content)
    assert set(problems(sealed)) == {item}


def test_what_cannot_be_read_is_told_and_does_not_hang(sealed, tmp_path):
    folder, provenance = sealed
    (folder / "raw/a.nii").unlink()
    os.mkfifo(folder / "raw/a.nii")
    (tmp_path / "model.bin").unlink()
    (tmp_path / "model.bin").symlink_to("/dev/zero")
    assert set(problems(sealed)) == {"data c1/label", "weights segmenter"}
    # as it was when the run was made: it was left out then, too
    provenance["data"]["c1"]["label"] = None
    assert set(problems((folder, provenance))) == {"weights segmenter"}


def test_a_published_run_says_that_its_inputs_cannot_be_found(sealed):
    folder, provenance = sealed
    for path in (folder / "private").iterdir():
        path.unlink()
    found = problems((folder, provenance))
    assert set(found) == {"data c1/image", "data c1/label", "weights segmenter"}
    assert all("private" in words for words in found.values())


#: A file of each kind that is made again, by pattern; how a reader would see that it changed.
KINDS = {
    "slices/*.npz": "slices/test-0.npz",
    "slices/*.json": "slices/test-0.json",
    "preprocessed/test-*.npz": "preprocessed/test-0.npz",
    "roi/*.npz": "roi/test-0.npz",
    "attributions/*/*/*.npz": "attributions/lime/roi/test-0.npz",
    "metrics/parts/localizer/*_*.parquet": "metrics/parts/localizer/text_test-0.parquet",
    "metrics/parts/localizer/*_*.npz": "metrics/parts/localizer/text_test-0.npz",
    "metrics/parts/segmenter/*.parquet": "metrics/parts/segmenter/test-0.parquet",
    "metrics/parts/explanations/*_*_*.parquet": (
        "metrics/parts/explanations/lime_roi_test-0.parquet"
    ),
    "metrics/*.parquet": "metrics/explanations.parquet",
    "maps/*/*_*_*.nii.gz": "maps/a/liver_lime_roi.nii.gz",
    "maps/*/variants/*_*_*_*.nii.gz": "maps/a/variants/liver_lime_roi_slic_soft_dice.nii.gz",
    "skipped.tsv": "skipped.tsv",
    "warnings.tsv": "warnings.tsv",
    "tables/*.csv": "tables/table3.csv",
}


def put(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npz":
        save_arrays(path, {"x": np.array([value, 2.0])}, {"n": 1})
    elif path.suffix == ".parquet":
        pd.DataFrame({"dice": [value]}).to_parquet(path)
    elif path.suffix == ".gz":
        path.write_bytes(gzip.compress(str(value).encode()))
    else:
        path.write_text(f"unit,value\n,{value}\n")


def test_every_kind_is_compared(tmp_path):
    assert set(AGAIN) == set(KINDS)
    one, two = tmp_path / "results/a", tmp_path / "results/b"
    for name in KINDS.values():
        put(one / name, 0.25)
        put(two / name, 0.25)
    assert dict(compared(one, two)) == {f"again {name}": None for name in KINDS.values()}
    for name in KINDS.values():
        put(two / name, 0.25 + 1e-12)
        assert list(wrong(compared(one, two))) == [name]
        (two / name).unlink()
        assert wrong(compared(one, two)) == {name: "was not made again"}
        put(two / name, 0.25)


@pytest.mark.parametrize(
    ("array", "meta", "same"),
    [
        (np.arange(6.0), {"n": 1}, True),
        (np.arange(6.0).astype(np.float32), {"n": 1}, False),
        (np.arange(6.0).reshape(2, 3), {"n": 1}, False),
        (np.arange(6.0), {"n": 2}, False),
        (np.arange(6.0), {"n": 1, "seconds_total": 9, "of": [{"seconds": 8}]}, False),
    ],
)
def test_arrays_and_what_is_said_of_them(tmp_path, array, meta, same):
    for name, x, about in (("a", np.arange(6.0), {"n": 1}), ("b", array, meta)):
        save_arrays_at = tmp_path / name / "roi" / "test-0.npz"
        save_arrays_at.parent.mkdir(parents=True)
        save_arrays(save_arrays_at, {"x": x}, about)
    assert (wrong(compared(tmp_path / "a", tmp_path / "b")) == {}) == same


def test_seconds_do_not_count_at_any_depth(tmp_path):
    for name, seconds in (("a", 1.0), ("b", 2.0)):
        path = tmp_path / name / "roi" / "test-0.npz"
        path.parent.mkdir(parents=True)
        save_arrays(path, {}, {"rows": [{"seconds_total": seconds, "n": 1}], "seconds": seconds})
    assert wrong(compared(tmp_path / "a", tmp_path / "b")) == {}


@pytest.mark.parametrize(
    ("column", "counts"), [("seconds_roi", False), ("dice", True), ("assd_mm", True)]
)
def test_which_columns_count(tmp_path, column, counts):
    for name, value in (("a", 0.5), ("b", 0.75)):
        path = tmp_path / name / "metrics" / "m.parquet"
        path.parent.mkdir(parents=True)
        pd.DataFrame({"case": ["x"], column: [value]}).to_parquet(path)
    assert bool(wrong(compared(tmp_path / "a", tmp_path / "b"))) == counts


@pytest.mark.parametrize(
    ("unit", "counts"), [("s", False), ("", True), ("mm", True), ("GFLOPs", True)]
)
def test_which_rows_of_a_table_count(tmp_path, unit, counts):
    for name, value in (("a", 0.5), ("b", 0.75)):
        path = tmp_path / name / "tables" / "t.csv"
        path.parent.mkdir(parents=True)
        pd.DataFrame({"unit": [unit], "value": [value]}).to_csv(path, index=False)
    assert bool(wrong(compared(tmp_path / "a", tmp_path / "b"))) == counts
