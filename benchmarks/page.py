"""What was measured, as a table, a picture, and a page of docs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from xaiclip.files import atomic

BEGIN, END = "<!-- numbers -->", "<!-- end of numbers -->"


def markdown(frame: pd.DataFrame, digits: Mapping[Any, int]) -> str:
    """A table for docs/benchmarks.md."""
    lines = ["| " + " | ".join(frame.columns) + " |", "|" + " --- |" * len(frame.columns)]
    for row in frame.to_dict("records"):
        cells = [
            ("" if pd.isna(value) else f"{value:.{digits[name]}f}")
            if name in digits
            else str(value)
            for name, value in row.items()
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def plot(frame: pd.DataFrame, path: Path) -> None:
    """Seconds over the floor's, by task and system; no file where no task has a floor."""
    shown = frame[~frame.task.str.startswith("scaling") & frame.ratio_to_floor.notna()]
    if shown.empty:
        return
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    groups = list(shown.groupby("task", sort=False))
    figure, axes = plt.subplots(
        len(groups),
        1,
        figsize=(7, 0.6 + 0.36 * len(shown)),
        sharex=True,
        layout="constrained",
        height_ratios=[len(group) for _, group in groups],
        squeeze=False,
    )
    for axis, (task, group) in zip(axes[:, 0], groups, strict=True):
        colours = ["#0b6e99" if name == "ours" else "#b4b4b4" for name in group.system]
        bars = axis.barh(group.system, group.ratio_to_floor, color=colours)
        axis.bar_label(bars, fmt="%.2f", padding=3)
        axis.axvline(1, color="black", linewidth=0.8)
        axis.invert_yaxis()
        axis.set_title(task, loc="left", fontsize=10)
        axis.spines[["top", "right"]].set_visible(False)
    axes[-1, 0].set_xlabel("seconds, as a multiple of the bare forwards")
    with atomic(path) as temporary:
        figure.savefig(temporary, dpi=150)


def page_with(numbers: str, page: str) -> str:
    """A page of docs with other numbers in their place."""
    before, rest = page.split(BEGIN)
    return before + BEGIN + "\n\n" + numbers + "\n" + END + rest.split(END)[1]
