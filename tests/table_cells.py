"""Tables made of a study's rows, and what their cells must hold."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import markdown_page
from table_study import FEW
from xaiclip.metrics.schema import EXPLANATIONS, LOCALIZER, SEGMENTER, write_table
from xaiclip.report.tables import explanations, localizer, segmenter
from xaiclip.report.tables.data import Table, read_rows
from xaiclip.report.tables.explanations import table3
from xaiclip.report.tables.localizer import table2
from xaiclip.report.tables.segmenter import segmenter_table
from xaiclip.report.tables.variants import table3_variants

Rows = list[dict[str, Any]]


def read(folder: Path, rows: Rows, schema: Any, columns: list[str]) -> pd.DataFrame:
    write_table(folder / "rows.parquet", rows, schema)
    return read_rows(folder / "rows.parquet", columns)


def make2(folder: Path, rows: Rows, **settings: Any) -> Table:
    return table2(read(folder, rows, LOCALIZER, localizer.COLUMNS), **{**FEW, **settings})


def make_segmenter(folder: Path, rows: Rows, **settings: Any) -> Table:
    frame = read(folder, rows, SEGMENTER, segmenter.COLUMNS)
    return segmenter_table(frame, **{**FEW, **settings})


def make3(folder: Path, rows: Rows, **settings: Any) -> Table:
    return table3(read(folder, rows, EXPLANATIONS, explanations.COLUMNS), **{**FEW, **settings})


def make_variants(folder: Path, rows: Rows, **settings: Any) -> Table:
    frame = read(folder, rows, EXPLANATIONS, explanations.COLUMNS)
    return table3_variants(frame, **{**FEW, **settings})


def tables(markdown: str) -> list[tuple[list[str], list[list[str]]]]:
    return markdown_page.read(markdown).tables


def items(markdown: str) -> list[str]:
    return markdown_page.read(markdown).items


def same_cell(cell: str, expected: dict[str, float], n: int, *, cost: bool = False) -> None:
    """A printed cell holds these numbers, each to its last digit, and its n if it is not n."""
    if not expected["n"]:
        assert cell == "—"
        return
    got = markdown_page.value(cell)
    assert got is not None
    tolerance: dict[str, Any] = {"abs": 0.51, "rel": 0.0051} if cost else {"abs": 0.00051}
    shown = dict(expected)
    assert got.pop("n", n) == shown.pop("n")
    p = shown.pop("p", None)
    if p is None:
        assert "p" not in got
    elif p < 0.001:
        assert got.pop("p") == "< 0.001"
    else:
        assert float(got.pop("p").removeprefix("= ")) == pytest.approx(p, abs=0.00051)
    relative = shown.pop("relative", None)
    if cost and relative is not None:
        assert got.pop("relative") == pytest.approx(relative, rel=0.0051, abs=0.051)
    if "low" not in got:  # all cases have the same value
        assert shown.get("low", shown["mean"]) == pytest.approx(shown["mean"], **tolerance)
        shown = {"mean": shown["mean"]}
    assert got == pytest.approx(shown, **tolerance)


def same_record(frame: pd.DataFrame, expected: dict[str, float], **where: Any) -> None:
    """The frame's record of this key holds these numbers."""
    chosen = frame
    for name, wanted in where.items():
        chosen = chosen[chosen[name] == wanted]
    assert len(chosen) == 1, where
    row = chosen.iloc[0]
    assert row["n_cases"] == expected["n"]
    nan = float("nan")
    names = ("mean", "low", "high", "p")
    assert [row[name] for name in names] == pytest.approx(
        [expected.get(name, nan) for name in names], nan_ok=True
    )
    relative = expected.get("relative", nan)
    assert 100 * row["relative"] == pytest.approx(relative, nan_ok=True)
