"""Whether a finished study still is what its provenance says, and comes out the same again."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from xaiclip.data.footprint import checksum
from xaiclip.errors import ConfigError
from xaiclip.files import files_sha256, load_arrays, sha256
from xaiclip.privacy import PRIVATE, STUDY, private_files
from xaiclip.workflow import paths

ROOT = Path(__file__).parents[3]
#: What is made without a model: it can be made again in minutes. Patterns below the run's folder.
AGAIN = tuple(
    paths.glob_of(path)
    for path in (
        *(paths.SLICES, paths.CHECKSUMS, paths.filled(paths.PREPROCESSED, batch="test-*")),
        *(paths.ROI, paths.ATTRIBUTIONS, paths.MAP, paths.VARIANT),
        *(paths.LOCALIZER_ROWS, paths.LOCALIZER_POOLED, paths.SEGMENTER_ROWS),
        *(paths.EXPLANATIONS_ROWS, paths.METRICS),
        *(paths.SKIPPED, paths.WARNINGS, paths.filled(paths.TABLE, kind="csv")),
    )
)
_MISSING = "is missing"
_UNKNOWN = f"cannot be found: the run's folder '{PRIVATE}', which tells where it is, is not here"
#: What takes a model, or is somebody's: taken as it is.
GIVEN = tuple(
    paths.below(path).partition("/")[0]
    for path in (
        *(paths.RAW, paths.LOCALIZER, paths.LOCALIZATION),
        *(paths.SEGMENTATION, paths.SCORES, paths.COST),
    )
)


def study_of(folder: Path) -> dict[str, Any]:
    """The configuration and the files of weights that the run keeps to itself.

    Empty where the private folder is not there, as in a published run.
    """
    path = folder / PRIVATE / STUDY
    study: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return study


def checked_sums(folder: Path, provenance: Mapping[str, Any]) -> Iterator[tuple[str, str | None]]:
    """Inputs, weights and tables against the checksums in the provenance.

    Args:
        folder: of the run; its private files tell where the inputs lie.
        provenance: what its ``provenance.json`` holds.

    Yields:
        What was compared, and what is wrong with it; None if nothing is.
    """
    study, cases = study_of(folder), private_files(folder)
    for case, roles in provenance["data"].items():
        for role, wanted in roles.items():
            file = cases.get(case, {}).get(role)
            # what could not be read then has no checksum
            found = _scan(file) if file else _UNKNOWN
            yield f"data {case}/{role}", _difference(found, wanted)
    for name, wanted in provenance["weights"].items():
        if name.startswith("resources/"):
            files = [str(ROOT / name)]
        else:
            files = study.get("weights", {}).get(name, [])
        yield f"weights {name}", _difference(_weights(files) if files else _UNKNOWN, wanted)
    for name, wanted in provenance["tables"].items():
        path = folder / "tables" / name
        yield f"table {name}", _difference(_weights([str(path)]), wanted)


def _difference(found: str | None, wanted: str | None) -> str | None:
    """What is wrong, if anything: ``found`` is a checksum, or words that stand for none."""
    if found == wanted:
        return None
    if found is None:
        return "cannot be read"
    if len(found) != 64:
        return found
    return f"has SHA-256 {found[:12]}…, not {str(wanted)[:12]}…"


def _scan(file: str) -> str | None:
    return checksum(file) if os.path.exists(file) else _MISSING


def _weights(files: list[str]) -> str | None:
    if not all(os.path.exists(file) for file in files):
        return _MISSING
    try:
        return (
            sha256(files[0]) if len(files) == 1 else files_sha256(files, os.path.commonpath(files))
        )
    except (OSError, ConfigError):
        return "is no file that can be read"


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
    if path.suffix == ".gz":
        return hashlib.sha256(gzip.decompress(path.read_bytes())).digest()
    return path.read_text(encoding="utf-8").replace(own, "")


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _timeless(v) for k, v in value.items() if not str(k).startswith("seconds")}
    return [_timeless(item) for item in value] if isinstance(value, list) else value
