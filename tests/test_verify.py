"""A finished run against its provenance, and against what comes out again."""

import json

import numpy as np
import pandas as pd
import pytest

from xaiclip.files import save_arrays, sha256, tree_sha256
from xaiclip.verify import checked_sums, compared


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


def test_checksums(runs):
    folder = runs[0]
    scan, table = folder / "raw/a.nii", folder / "tables/t.csv"
    provenance = {
        "data": {str(scan): tree_sha256(scan), str(folder / "raw"): tree_sha256(folder / "raw")},
        "weights": {str(folder / "none"): "0" * 64},
        "tables": {"t.csv": sha256(table)},
    }
    assert json.loads(json.dumps(provenance)) == provenance
    assert wrong(checked_sums(folder, provenance)) == {str(folder / "none"): "is missing"}
    scan.write_bytes(b"scam")
    table.write_bytes(b"")
    found = wrong(checked_sums(folder, provenance))
    assert set(found) == {str(scan), str(folder / "raw"), str(table), str(folder / "none")}
    assert found[str(scan)].startswith("has SHA-256")
