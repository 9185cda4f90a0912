"""Pipe tables and lists in Markdown."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from xaiclip.report.words import escape

EMPTY = "—"


def pipe_table(frame: pd.DataFrame) -> str:
    """A frame as a Markdown table; its columns of text come first, missing numbers are dashes."""
    names = sum(not pd.api.types.is_numeric_dtype(kind) for kind in frame.dtypes)
    rows = [
        [
            escape(value) if isinstance(value, str) else EMPTY if pd.isna(value) else f"{value:.4g}"
            for value in row
        ]
        for row in frame.itertuples(index=False, name=None)
    ]
    return pipe([escape(str(name)) for name in frame.columns], rows, names) + "\n"


def pipe(heads: Sequence[str], rows: Sequence[Sequence[str]], names: int) -> str:
    """A pipe table whose first ``names`` columns stand to the left, the others to the right.

    Cells are Markdown: words from data go through `words.escape` before.
    """
    widths = [max(3, *map(len, column)) for column in zip(heads, *rows, strict=True)]
    left = [index < names for index in range(len(heads))]

    def line(cells: Sequence[str]) -> str:
        padded = (
            cell.ljust(width) if to_left else cell.rjust(width)
            for cell, width, to_left in zip(cells, widths, left, strict=True)
        )
        return "| " + " | ".join(padded) + " |"

    rule = [
        ":" + "-" * (width - 1) if to_left else "-" * (width - 1) + ":"
        for width, to_left in zip(widths, left, strict=True)
    ]
    return "\n".join([line(heads), line(rule), *map(line, rows)])


def bullets(notes: Sequence[str]) -> str:
    """A list; each note is Markdown of one line."""
    return "\n".join(f"- {note}" for note in notes)


def join(parts: Sequence[str]) -> str:
    """A page of paragraphs; empty ones are left out."""
    return "\n\n".join(part for part in parts if part) + "\n"
