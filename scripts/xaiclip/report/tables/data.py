"""A table as data: the records that hold the values of its measures."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from xaiclip.files import write_text
from xaiclip.metrics.measure import Measure
from xaiclip.metrics.statistics import Comparison, Estimate
from xaiclip.organs import SIX_CLASSES
from xaiclip.report import paper
from xaiclip.report.tables.left_out import read_skips

NAN = float("nan")


@dataclass(frozen=True)
class Table:
    """One table: the tidy ``frame`` and the ``markdown``."""

    frame: pd.DataFrame
    markdown: str


@dataclass(frozen=True)
class Study:
    """What a table is made from.

    Attributes:
        files: by what its statement reads, ``"metrics/segmenter"``.
        cases: those that the tables are about.
        classes: background first.
        methods: the settings of the methods that its statement names.
        seed: of the bootstrap.
        statistics: of the bootstrap, too: ``resamples`` and ``confidence``.
    """

    files: Mapping[str, Sequence[Path]]
    cases: Sequence[str]
    classes: Sequence[str]
    methods: Mapping[str, Mapping[str, Any]]
    seed: int
    statistics: Mapping[str, Any]

    def rows(self, name: str, columns: Sequence[str]) -> pd.DataFrame:
        """Some columns of ``metrics/{name}.parquet``."""
        return read_rows(self.files[f"metrics/{name}"][0], columns)

    def common(self) -> dict[str, Any]:
        """What every table takes: ``skips`` of its cases, ``seed`` and ``statistics``."""
        skips = read_skips(self.files["skipped"][0], self.cases)
        return {"skips": skips, "seed": self.seed, **self.statistics}


def record(
    key: Mapping[str, str],
    measure: Measure,
    result: Estimate | Comparison,
    *,
    printed: str = "",
    doubts: str = "",
) -> dict[str, Any]:
    """One line of a tidy frame.

    Args:
        key: what the table's row is about; the key of a `Comparison` holds `paper.DELTA`.
        measure: what was measured.
        result: its mean over cases, or the paired difference.
        printed: what the paper prints in this place, with the marks of ``doubts``.
    """
    estimate = result.difference if isinstance(result, Comparison) else result
    return {
        **key,
        "measure": measure.name,
        "unit": measure.unit,
        "better": measure.better,
        "n_cases": estimate.n,
        "mean": estimate.mean,
        "low": estimate.low,
        "high": estimate.high,
        "relative": result.relative if isinstance(result, Comparison) else NAN,
        "p": result.p if isinstance(result, Comparison) else NAN,
        "paper": paper.number(printed),
        "paper_printed": printed,
        "paper_doubts": doubts,
    }


def tidy(records: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> pd.DataFrame:
    """Records as a frame with all its columns, however few records there are."""
    nothing = Estimate(NAN, NAN, NAN, 0)
    columns = list(record(dict.fromkeys(keys, ""), Measure("", ""), nothing))
    return pd.DataFrame(list(records), columns=columns)


def keys(frame: pd.DataFrame, names: Sequence[str]) -> list[dict[str, str]]:
    """The different keys of a tidy frame, in its order."""
    different = frame[list(names)].drop_duplicates()
    return [dict(zip(names, row, strict=True)) for row in different.itertuples(index=False)]


def in_order(names: Iterable[str]) -> list[str]:
    """Classes in the paper's order, then others by name."""
    found = set(names)
    return [name for name in SIX_CLASSES if name in found] + sorted(found - set(SIX_CLASSES))


def read_rows(path: str | os.PathLike[str], columns: Sequence[str]) -> pd.DataFrame:
    """Some columns of a metric file; text as sorted categories, as a study repeats few words."""
    kinds = pq.read_schema(path)
    text = [name for name in columns if pa.types.is_string(kinds.field(name).type)]
    rows = pd.read_parquet(path, columns=list(columns), read_dictionary=text)
    for name in text:
        words = rows[name].astype("category").cat
        rows[name] = words.reorder_categories(sorted(words.categories))
    return rows


def write(table: Table, tidy: str | os.PathLike[str], markdown: str | os.PathLike[str]) -> None:
    """Write a table's frame as CSV to ``tidy``, and its Markdown, atomically."""
    # ten digits: more would differ between machines
    write_text(tidy, table.frame.to_csv(index=False, float_format="%.10g", lineterminator="\n"))
    write_text(markdown, table.markdown)
