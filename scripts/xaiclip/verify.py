"""Whether a finished study still is what its provenance says, and comes out the same again."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from xaiclip.files import load_arrays, tree_sha256

#: What is made without a model: it can be made again in minutes. Patterns below the run's folder.
AGAIN = (
    *("slices/*.npz", "slices/*.json", "preprocessed/test-*.npz", "roi/*.npz"),
    *("attributions/*/*/*.npz", "metrics/parts/*/*", "metrics/*.parquet"),
    *("skipped.tsv", "tables/*.csv"),
)
#: What takes a model, or is somebody's: taken as it is.
GIVEN = ("raw", "localizer", "localization", "segmentation", "scores", "cost.json")


def checked_sums(folder: Path, provenance: Mapping[str, Any]) -> Iterator[tuple[str, str | None]]:
    """Inputs, weights and tables against the checksums in the provenance.

    Args:
        folder: of the run.
        provenance: what its ``provenance.json`` holds.

    Yields:
        What was compared, and what is wrong with it; None if nothing is.
    """
    for kind, files in (
        ("data", provenance["data"]),
        ("weights", provenance["weights"]),
        ("table", {str(folder / "tables" / k): v for k, v in provenance["tables"].items()}),
    ):
        for file, wanted in files.items():
            if not os.path.exists(file):
                yield f"{kind} {file}", "is missing"
            else:
                found = tree_sha256(file)
                wrong = f"has SHA-256 {found[:12]}…, not {wanted[:12]}…"
                yield f"{kind} {file}", None if found == wanted else wrong


def compared(folder: Path, again: Path) -> Iterator[tuple[str, str | None]]:
    """Results against the same results made again; times are left out.

    Args:
        folder: of the run.
        again: of the run that was made again.

    Yields:
        As `checked_sums`.
    """
    names = {
        path.relative_to(base).as_posix()
        for base in (folder, again)
        for pattern in AGAIN
        for path in base.glob(pattern)
    }
    for name in sorted(names):
        if not (again / name).exists():
            yield f"again {name}", "was not made again"
        elif not (folder / name).exists():
            yield f"again {name}", "is missing"
        else:
            try:
                same = _content(folder / name, folder) == _content(again / name, again)
            except Exception as error:  # a damaged file raises nearly anything
                words = str(error).splitlines()
                yield f"again {name}", f"cannot be read ({words[0] if words else 'damaged'})"
            else:
                yield f"again {name}", None if same else "differs from what comes out now"


def _content(path: Path, folder: Path) -> Any:
    """What counts in a file, comparable; the run's own name and times do not."""
    own = f"results/{folder.name}/"
    if path.suffix == ".npz":
        arrays, meta = load_arrays(path)
        packed = {
            name: (str(array.dtype), array.shape, np.ascontiguousarray(array).tobytes())
            for name, array in arrays.items()
        }
        return packed, json.dumps(_timeless(meta), sort_keys=True).replace(own, "")
    if path.suffix == ".parquet":
        table = pd.read_parquet(path)
        table = table.loc[:, ~table.columns.str.startswith("seconds_")]
        return table.to_csv(index=False, float_format="%.17g").replace(own, "")
    if path.suffix == ".csv":
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
        if "unit" in table:
            table = table[table["unit"] != "s"]
        return table.to_csv(index=False).replace(own, "")
    return path.read_text(encoding="utf-8").replace(own, "")


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _timeless(v) for k, v in value.items() if not str(k).startswith("seconds")}
    return [_timeless(item) for item in value] if isinstance(value, list) else value
