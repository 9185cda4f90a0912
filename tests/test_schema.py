"""The metric files: their columns and types, and how they are joined."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import table_study
from xaiclip.metrics.schema import (
    EXPLANATIONS,
    LOCALIZER,
    SEGMENTER,
    concat_tables,
    write_table,
)


@pytest.mark.parametrize("schema", [LOCALIZER, SEGMENTER, EXPLANATIONS])
def test_files_have_their_types_whatever_they_hold(tmp_path: Path, schema: pa.Schema) -> None:
    for rows in ([], [{"case": "a"}], [{"case": "a", "skipped": "empty"}, {"case": "b"}]):
        write_table(tmp_path / "x.parquet", rows, schema)
        assert pq.read_schema(tmp_path / "x.parquet").equals(schema)
        assert pq.read_table(tmp_path / "x.parquet").num_rows == len(rows)


def test_contract_columns_are_there() -> None:
    design = """case organ method guidance variant modality seed n_forwards n_forwards_full n_patch
        rho gflops_ptflops gflops_total seconds_total seconds_roi seconds_perturb seconds_encode
        seconds_decode seconds_aggregate device precision baseline_dice_gt fidelity_dice
        fidelity_iou localization_dice_pred localization_iou_pred localization_dice_gt
        localization_iou_gt skipped"""
    assert set(design.split()) <= set(EXPLANATIONS.names)
    assert {"case", "organ", "prompt", "dice", "iou"} <= set(SEGMENTER.names)
    assert {"case", "class", "dice", "auc_roc"} <= set(LOCALIZER.names)


def test_nan_and_numpy_values_are_stored_plainly(tmp_path: Path) -> None:
    row = {"case": "a", "slice": np.int32(3), "primary": np.True_, "rho": np.float32(0.5)}
    write_table(tmp_path / "x.parquet", [{**row, "lime_r2": math.nan}], EXPLANATIONS)
    stored = pq.read_table(tmp_path / "x.parquet").to_pylist()[0]
    assert (stored["slice"], stored["primary"], stored["rho"]) == (3, True, 0.5)
    assert stored["lime_r2"] is None


def test_unknown_columns_are_refused_and_leave_no_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no column 'dise'"):
        write_table(tmp_path / "x.parquet", [{"case": "a", "dise": 1.0}], LOCALIZER)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("most", [1, 40, 10**6], ids=["a case", "some cases", "all"])
def test_concat_is_sorted_whatever_the_batches(tmp_path: Path, monkeypatch: Any, most: int) -> None:
    for name, value in {"_ROW_GROUP": 7, "_RANGE": most, "_DEALT": 30}.items():
        monkeypatch.setattr(f"xaiclip.metrics.schema.{name}", value)
    some = [row for row in table_study.explanation_rows() if row["case"] in ("abe", "kim")]
    some = [row for row in some if row["method"] == "lime"]
    rows = [*some, {"case": "zed", "skipped": "no organ"}]
    rows += [{"case": "\U0001f600 Größe", "organ": "Ω"}, {"case": None, "skipped": "nobody"}]
    rows += [{"case": "abe", "slice": None, "skipped": f"twin {k}"} for k in range(3)]
    paths = [tmp_path / f"{k}.parquet" for k in range(3)]
    for k, path in enumerate(paths):
        write_table(path, rows[k::3], EXPLANATIONS)
    concat_tables(paths[::-1], tmp_path / "joined.parquet", EXPLANATIONS)
    # rows of one key keep the order of their files
    write_table(tmp_path / "all.parquet", [*rows[::3], *rows[1::3], *rows[2::3]], EXPLANATIONS)
    assert pq.read_table(tmp_path / "joined.parquet").equals(
        pq.read_table(tmp_path / "all.parquet")
    )
    assert {path.suffix for path in tmp_path.iterdir()} == {".parquet"}
    assert len(list(tmp_path.iterdir())) == 5


def test_concat_of_nothing_and_of_a_stranger(tmp_path: Path) -> None:
    concat_tables([], tmp_path / "none.parquet", LOCALIZER)
    assert pq.read_schema(tmp_path / "none.parquet").equals(LOCALIZER)
    write_table(tmp_path / "old.parquet", [{"case": "a"}], SEGMENTER)
    with pytest.raises(ValueError, match=r"old\.parquet"):
        concat_tables([tmp_path / "old.parquet"], tmp_path / "x.parquet", LOCALIZER)
