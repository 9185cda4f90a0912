"""The columns of the metric files, and how those files are written and joined."""

from __future__ import annotations

import heapq
import os
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from xaiclip.files import atomic

Row = Mapping[str, Any]


def _schema(*columns: tuple[pa.DataType, str]) -> pa.Schema:
    return pa.schema([pa.field(name, kind) for kind, names in columns for name in names.split()])


_TEXT, _INT, _REAL = pa.string(), pa.int64(), pa.float64()

#: One row: case × slice × class × variant ("text", or "no_text" for the ablation).
#: ``n_pixels``: pixels of the class in the reference.
LOCALIZER = _schema(
    (_TEXT, "case"),
    (_INT, "slice"),
    (_TEXT, "class variant modality"),
    (_INT, "n_pixels"),
    (_REAL, "dice auc_roc"),
    (_TEXT, "skipped"),
)

#: One row: case × slice × organ × prompt ("roi" or "reference": where the box came from).
SEGMENTER = _schema(
    (_TEXT, "case"),
    (_INT, "slice"),
    (_TEXT, "organ prompt roi_source modality"),
    (_INT, "n_pixels n_pixels_reference"),
    (_REAL, "dice iou hd95_mm assd_mm"),
    (_TEXT, "skipped"),
)

#: One row: case × slice × organ × method × guidance × variant × value function. Forwards, GFLOPs
#: and seconds are those of the slice, which ``shared_by`` organs share; ``rho`` and ``n_patch``
#: are the organ's, ``rho_union`` is the slice's.
EXPLANATIONS = _schema(
    (_TEXT, "case"),
    (_INT, "slice"),
    (_TEXT, "organ method guidance variant value"),
    (pa.bool_(), "primary"),
    (_TEXT, "roi_source modality"),
    (_INT, "seed n_forwards n_forwards_full n_patch shared_by"),
    (_REAL, "rho rho_union gflops_ptflops gflops_total"),
    (_REAL, "seconds_total seconds_roi seconds_perturb seconds_encode seconds_decode"),
    (_REAL, "seconds_aggregate"),
    (_TEXT, "device precision"),
    (_REAL, "baseline_dice_gt fidelity_dice fidelity_iou"),
    (_REAL, "localization_dice_pred localization_iou_pred localization_dice_pred_chance"),
    (_REAL, "localization_dice_gt localization_iou_gt localization_dice_gt_chance"),
    (_REAL, "pointing_pred pointing_gt lime_r2 standard_error reliability"),
    (_TEXT, "skipped"),
)

#: What rows are sorted by, as far as a schema has it.
_ORDER = (
    *("case", "slice", "organ", "class", "prompt"),
    *("method", "guidance", "roi_source", "variant", "value"),
)
_ROW_GROUP = 4096


def write_table(path: str | os.PathLike[str], rows: Iterable[Row], schema: pa.Schema) -> None:
    """Write rows to a Parquet file of exactly ``schema``, sorted, atomically.

    A key that a row lacks, None and NaN become null. The file has its types even when a column
    is null throughout or there are no rows.

    Raises:
        ValueError: a row has a column that the schema lacks.
    """
    _write(path, sorted(rows, key=_sort_key(schema)), schema)


def concat_tables(
    paths: Iterable[str | os.PathLike[str]], out: str | os.PathLike[str], schema: pa.Schema
) -> None:
    """Merge sorted tables (as `write_table` leaves them) into one sorted table, atomically.

    The order of ``paths`` does not matter. One row group of each input is in memory at a time.

    Raises:
        ValueError: a file has other columns or types than ``schema``.
    """
    parts = [_read(path, schema) for path in sorted(str(path) for path in paths)]
    _write(out, heapq.merge(*parts, key=_sort_key(schema)), schema)


def _write(path: str | os.PathLike[str], rows: Iterable[Row], schema: pa.Schema) -> None:
    stream = iter(rows)
    with atomic(path) as temporary, pq.ParquetWriter(temporary, schema) as writer:
        while chunk := list(islice(stream, _ROW_GROUP)):
            unknown = sorted({name for row in chunk for name in row} - set(schema.names))
            if unknown:
                raise ValueError(f"'{path}' has no column '{unknown[0]}': add it to its schema.")
            columns = {name: [_plain(row.get(name)) for row in chunk] for name in schema.names}
            writer.write_table(pa.Table.from_pydict(columns, schema=schema))


def _read(path: str, schema: pa.Schema) -> Iterator[Row]:
    # the file is closed between row groups, so that any number of batches can be merged
    with pq.ParquetFile(path) as file:
        groups = file.num_row_groups
        if not file.schema_arrow.equals(schema):
            raise ValueError(f"'{path}' has other columns than this version writes: delete it.")
    for group in range(groups):
        with pq.ParquetFile(path) as file:
            table = file.read_row_group(group)
        yield from table.to_pylist()


def _sort_key(schema: pa.Schema) -> Any:
    names = [name for name in _ORDER if name in schema.names]

    def key(row: Row) -> list[tuple[bool, Any]]:
        return [(row.get(name) is None, row.get(name)) for name in names]

    return key


def _plain(value: Any) -> Any:
    """NumPy scalars as builtins, NaN as None."""
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and np.isnan(value) else value
