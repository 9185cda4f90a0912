"""The columns of the metric files, and how those files are written and joined."""

from __future__ import annotations

import os
import tempfile
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from xaiclip.files import atomic
from xaiclip.metrics import maps

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
#: and seconds are those of the slice, which ``shared_by`` organs share, the localizer's included
#: where it gave the ROI or the prompt's box; a backward counts as two forwards of the parts that it
#: went through. ``rho`` and ``n_patch`` are the organ's; ``rho_union``, the share for all organs'
#: ROIs together, is the slice's: forwards hang on it. What a map is worth are the columns of
#: `maps`.
EXPLANATIONS = _schema(
    (_TEXT, "case"),
    (_INT, "slice"),
    (_TEXT, "organ method guidance variant value"),
    (pa.bool_(), "primary"),
    (_TEXT, "roi_source modality"),
    (_INT, "seed n_forwards n_forwards_full n_backwards n_patch shared_by"),
    (_REAL, "rho rho_union gflops_ptflops gflops_total"),
    (_REAL, "seconds_total seconds_roi seconds_perturb seconds_encode seconds_decode"),
    (_REAL, "seconds_backward seconds_aggregate"),
    (_TEXT, "device precision"),
    (_REAL, "baseline_dice_gt"),
    (_REAL, " ".join(measure.name for measure in maps.MEASURES)),
    (_REAL, "lime_r2 standard_error reliability"),
    (_TEXT, "skipped"),
)

#: What rows are sorted by, as far as a schema has it.
_ORDER = (
    *("case", "slice", "organ", "class", "prompt"),
    *("method", "guidance", "roi_source", "variant", "value"),
)
_ROW_GROUP = 4096
#: Rows that are sorted at once, and rows that are dealt at once, when tables are merged.
_RANGE, _DEALT = 1 << 18, 1 << 15


def write_table(path: str | os.PathLike[str], rows: Iterable[Row], schema: pa.Schema) -> None:
    """Write rows to a Parquet file of exactly ``schema``, sorted, atomically.

    A key that a row lacks, None and NaN become null. The file has its types even when a column
    is null throughout or there are no rows.

    Raises:
        ValueError: a row has a column that the schema lacks.
    """
    stream = iter(sorted(rows, key=_sort_key(schema)))
    with atomic(path) as temporary, pq.ParquetWriter(temporary, schema) as writer:
        while chunk := list(islice(stream, _ROW_GROUP)):
            unknown = sorted({name for row in chunk for name in row} - set(schema.names))
            if unknown:
                raise ValueError(f"'{path}' has no column '{unknown[0]}': add it to its schema.")
            columns = {name: [_plain(row.get(name)) for row in chunk] for name in schema.names}
            writer.write_table(pa.Table.from_pydict(columns, schema=schema))


def concat_tables(
    paths: Iterable[str | os.PathLike[str]], out: str | os.PathLike[str], schema: pa.Schema
) -> None:
    """Merge tables into one, sorted as `write_table` sorts, atomically.

    The order of ``paths`` does not matter. Rows are dealt into ranges of cases, on the disk of
    ``out``, and each range is sorted by itself: memory does not grow with the number of rows,
    as long as one case has far fewer than a range.

    Raises:
        ValueError: a file has other columns or types than ``schema``.
    """
    ordered = sorted(str(path) for path in paths)
    keys = [(name, "ascending") for name in _ORDER if name in schema.names]
    with atomic(out) as target, ExitStack() as stack:
        starts = _ranges(ordered, schema)
        # files without a name: nothing of them is left, however the process ends
        spools = [stack.enter_context(tempfile.TemporaryFile(dir=target.parent)) for _ in starts]
        streams = [pa.ipc.new_stream(spool, schema) for spool in spools]
        for rows in _gathered(ordered):
            for number, part in _dealt(rows, starts):
                streams[number].write_table(part)
        writer = stack.enter_context(pq.ParquetWriter(target, schema))
        for stream, spool in zip(streams, spools, strict=True):
            stream.close()
            spool.seek(0)
            rows = pa.ipc.open_stream(spool).read_all()
            # stable, and null last, as the sort of write_table
            rows = rows.take(pc.sort_indices(rows, sort_keys=keys))
            writer.write_table(rows, row_group_size=_ROW_GROUP)


def _ranges(paths: Sequence[str], schema: pa.Schema) -> list[str]:
    """The first case of each range of at most `_RANGE` rows, sorted; the first one is open below.

    Raises:
        ValueError: a file has other columns or types than ``schema``.
    """
    total = 0
    for path in paths:
        with pq.ParquetFile(path) as file:
            if not file.schema_arrow.equals(schema):
                raise ValueError(f"'{path}' has other columns than this version writes: delete it.")
            total += file.metadata.num_rows
    starts = [""]
    if total <= _RANGE:
        return starts
    counts: Counter[str] = Counter()
    for path in paths:
        with pq.ParquetFile(path) as file:
            counts.update(
                file.read(columns=["case"], use_threads=False)["case"].drop_null().to_pylist()
            )
    held = 0
    for case in sorted(counts):
        if held and held + counts[case] > _RANGE:
            starts.append(case)
            held = 0
        held += counts[case]
    return starts


def _gathered(paths: Sequence[str]) -> Iterator[pa.Table]:
    """The rows of all files in turn, some row groups at a time."""
    waiting: list[pa.Table] = []
    held = 0
    for path in paths:
        with pq.ParquetFile(path) as file:
            for group in range(file.num_row_groups):
                waiting.append(file.read_row_group(group, use_threads=False))
                held += waiting[-1].num_rows
                if held >= _DEALT:
                    yield pa.concat_tables(waiting)
                    waiting, held = [], 0
    if waiting:
        yield pa.concat_tables(waiting)


def _dealt(rows: pa.Table, starts: Sequence[str]) -> Iterator[tuple[int, pa.Table]]:
    """The rows of each range, with its number; rows without a case are the last range's."""
    cases = rows["case"].combine_chunks().dictionary_encode()
    names = cases.dictionary.to_pylist()
    place = np.array([bisect_right(starts, name) - 1 for name in names], dtype=np.int64)
    codes = cases.indices.fill_null(-1).to_numpy()
    numbers = np.append(place, len(starts) - 1)[codes]
    for number in np.unique(numbers):
        yield int(number), rows.filter(pa.array(numbers == number))


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
