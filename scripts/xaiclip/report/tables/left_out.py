"""What a table lacks, and why."""

from __future__ import annotations

import csv
import os
from collections import Counter
from collections.abc import Sequence

import pandas as pd

from xaiclip.errors import Skip
from xaiclip.report.markdown import bullets
from xaiclip.report.words import escape

_REASONS = 20  # as many are listed


def read_skips(path: str | os.PathLike[str], cases: Sequence[str]) -> list[Skip]:
    """What ``skipped.tsv`` says of ``cases``."""
    chosen = set(cases)
    with open(path, encoding="utf-8", newline="") as stream:
        return [
            Skip(
                case=row["case"],
                stage=row["stage"],
                reason=row["reason"],
                slice=int(row["slice"]) if row["slice"] else None,
                organ=row["organ"] or None,
            )
            for row in csv.DictReader(stream, delimiter="\t")
            if row["case"] in chosen
        ]


def left_out(frame: pd.DataFrame, unit: Sequence[str], skips: Sequence[Skip]) -> str:
    """How many rows and cases are missing, and why, as Markdown.

    Args:
        frame: rows with ``case``, ``skipped`` and the columns of ``unit``.
        unit: what one row of the table's source is about.
        skips: what was left out before those rows.
    """
    every = frame[[*unit, "skipped"]].drop_duplicates([*unit, "skipped"])
    bad = every[every["skipped"].notna()]
    total, lost = len(every.drop_duplicates(list(unit))), len(bad.drop_duplicates(list(unit)))
    reached, used = set(frame["case"]), set(frame.loc[frame["skipped"].isna(), "case"])
    # the widest reason for a case comes last and stays
    widest = sorted(skips, key=lambda skip: (skip.slice is None, skip.organ is None))
    before = {skip.case: skip.reason for skip in widest if skip.case not in reached}
    cases = reached | set(before)
    summary = (
        f"**Left out:** {lost} of {total} rows (one row: {' × '.join(unit)}) and "
        f"{len(cases - used)} of {len(cases)} cases."
    )
    counts = Counter(map(str, bad["skipped"]))
    reasons = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    notes = [f"{count} rows: {escape(reason)}" for reason, count in reasons[:_REASONS]]
    if rest := sum(count for _, count in reasons[_REASONS:]):
        notes.append(f"{rest} rows: {len(reasons) - _REASONS} other reasons")
    notes += [f"case {escape(case)}: {escape(reason)}" for case, reason in sorted(before.items())]
    return summary + ("\n\n" + bullets(notes) if notes else "")
