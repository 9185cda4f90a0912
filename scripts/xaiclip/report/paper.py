"""What the paper prints in its Tables II and III (``paper.toml``), and what of it cannot hold."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

with Path(__file__).with_suffix(".toml").open("rb") as _stream:
    _PRINTED: Mapping[str, Any] = tomllib.load(_stream)

#: The row of a table that shows differences; a guidance in ``paper.toml``.
DELTA = "delta"

#: Table II by class, then by measure, as printed.
TABLE2: Mapping[str, Mapping[str, str]] = {row["class"]: row for row in _PRINTED["table2"]}

#: Table III by method and guidance, then by measure, as printed; Δ rows are relative changes.
TABLE3: Mapping[tuple[str, str], Mapping[str, str]] = {
    (row["method"], row["guidance"]): row for row in _PRINTED["table3"]
}

#: The methods of Table III, in its order.
METHODS = tuple(dict.fromkeys(method for method, _ in TABLE3))

#: Why values of Table III cannot hold, by mark.
WHY: Mapping[str, str] = {doubt["mark"]: doubt["why"] for doubt in _PRINTED["doubts"]}


def printed2(name: str, measure: str) -> str:
    """What Table II prints for a class; "" where it prints nothing."""
    return TABLE2.get(name, {}).get(measure, "")


def printed3(method: str, guidance: str, measure: str) -> str:
    """What Table III prints for a method under a guidance; "" where it prints nothing."""
    return TABLE3.get((method, guidance), {}).get(measure, "")


def prints(measure: str) -> bool:
    """Whether Table III has such a column."""
    return any(measure in row for row in TABLE3.values())


def doubts(method: str, guidance: str, measure: str) -> str:
    """The marks of a value of Table III, one letter each; "" where there is no doubt."""
    value = printed3(method, guidance, measure)
    return "".join(
        doubt["mark"]
        for doubt in _PRINTED["doubts"]
        if value
        and method in doubt["methods"]
        and guidance in doubt["guidances"]
        and measure in doubt["measures"]
        and value == doubt.get("printed", value)
    )


def number(printed: str) -> float:
    """A printed value as a number; NaN for "> 0.1", for Δ rows, and for nothing."""
    text = printed.replace(",", "")
    return float(text) if re.fullmatch(r"\d+(\.\d+)?", text) else float("nan")
