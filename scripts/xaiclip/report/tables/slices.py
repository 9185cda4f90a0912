"""Of cases with several slices: what each slice's maps are worth, and what a case's are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from xaiclip.errors import Skip
from xaiclip.metrics.measure import Measure
from xaiclip.report.catalogue import makes_table
from xaiclip.report.markdown import EMPTY, bullets, join, pipe
from xaiclip.report.tables.data import Study, Table, in_order
from xaiclip.report.tables.explanations import FORWARDS, QUALITY, UNIT, guidance_words, methods_of
from xaiclip.report.tables.layout import number
from xaiclip.report.tables.left_out import left_out
from xaiclip.report.words import escape

_SEGMENTED = Measure("baseline_dice_gt", "Dice of the segmentation", "higher")
_MEASURES = (_SEGMENTED, *QUALITY)

#: What both tables read of ``explanations.parquet``.
COLUMNS = [*UNIT, "primary", "skipped", *(one.name for one in (*_MEASURES, FORWARDS))]

_MAPS = ["method", "guidance", "roi_source"]
#: Ends of the columns of a case's slices.
_LOWEST, _HIGHEST = ", lowest slice", ", highest slice"


@makes_table(
    "slices",
    ["metrics/explanations", "skipped"],
    "Of cases with several slices: each slice, method and guidance; means over its organs. The CSV "
    "holds each organ.",
    several=True,
)
def make_slices(study: Study) -> Table:
    """The slices of a study."""
    return slices_table(study.rows("explanations", COLUMNS), study.common()["skips"])


@makes_table(
    "cases",
    ["metrics/explanations", "skipped"],
    "Of cases with several slices: each case, method and guidance; means over slices, with the "
    "lowest and the highest slice. The CSV holds each organ.",
    several=True,
    beside="slices",
)
def make_cases(study: Study) -> Table:
    """The cases of a study."""
    return cases_table(study.rows("explanations", COLUMNS), study.common()["skips"])


def slices_table(explanations: pd.DataFrame, skips: Sequence[Skip] = ()) -> Table:
    """A line for each slice, organ, method and guidance; primary variants only.

    Args:
        explanations: `COLUMNS` of ``explanations.parquet``.
        skips: what was left out before the explanations.

    Returns:
        The frame has a column for each measure, and ``skipped``. The Markdown has the means over
        the organs of a slice that are explained.
    """
    rows = _sorted(explanations)
    unit = ["case", "slice", *_MAPS]
    usable = rows[rows["skipped"].isna()]
    means = _means(usable, unit)
    page = _page(
        "# Slice by slice",
        "Means over the organs of a slice; `slices.csv` holds each organ. A slice is counted from "
        "the feet, from 0.",
        means,
        {
            "case": lambda row: escape(row["case"]),
            "slice": lambda row: str(row["slice"]),
            "method": lambda row: escape(row["method"]),
            "guidance": guidance_words(explanations),
            "organs": lambda row: str(row["organs"]),
        },
        {one: lambda row, name=one.name: number(row[name]) for one in _MEASURES},
        left_out(explanations, UNIT, skips),
    )
    return Table(rows, page)


def cases_table(explanations: pd.DataFrame, skips: Sequence[Skip] = ()) -> Table:
    """A line for each case, organ, method, guidance and measure; primary variants only.

    Args:
        explanations: `COLUMNS` of ``explanations.parquet``.
        skips: what was left out before the explanations.

    Returns:
        The frame has the mean over slices, the lowest and the highest one, and ``n_slices`` that
        have the measure. The Markdown has, as the statistics of the study, the mean over the
        organs of each one's mean over slices; in brackets the slice means' lowest and highest.
    """
    rows = _sorted(explanations)
    usable = rows[rows["skipped"].isna()]
    names = [one.name for one in (*_MEASURES, FORWARDS)]
    unit = ["case", "organ", *_MAPS]
    long = usable.melt([*unit, "slice"], names, "measure").dropna(subset="value")
    frame = (
        long.groupby([*unit, "measure"], sort=False)["value"]
        .agg(n_slices="count", mean="mean", lowest="min", highest="max")
        .reset_index()
    )
    facts = {one.name: (one.unit, one.better) for one in (*_MEASURES, FORWARDS)}
    for place, column in enumerate(("unit", "better")):
        frame.insert(6 + place, column, [facts[name][place] for name in frame["measure"]])
    own = ["case", *_MAPS]
    of_slice = _means(usable, [*own, "slice"]).groupby(own, sort=False)
    of_organ = usable.groupby(unit, sort=False)[names].mean().groupby(own, sort=False)
    of_case = (
        of_organ.mean()
        .join(of_slice[names].min(), rsuffix=_LOWEST)
        .join(of_slice[names].max(), rsuffix=_HIGHEST)
        .join(of_slice["slice"].nunique().rename("explained"))
        .join(rows.groupby("case")["slice"].nunique().rename("taken"), on="case")
        .reset_index()
    )
    page = _page(
        "# Case by case",
        "Mean over organs of each one's mean over slices [lowest, highest slice]; `cases.csv` "
        "holds each organ. These means are what the study's other tables draw from: a case is one "
        "draw, however many slices it has.",
        of_case,
        {
            "case": lambda row: escape(row["case"]),
            "method": lambda row: escape(row["method"]),
            "guidance": guidance_words(explanations),
            "slices": lambda row: f"{row['explained']} of {row['taken']}",
        },
        {one: lambda row, name=one.name: _with_range(row, name) for one in _MEASURES},
        left_out(explanations, UNIT, skips),
        "The mean weighs each organ alike, a slice's value only the organs that it shows: so the "
        "mean may lie outside of the range.",
    )
    return Table(frame, page)


def _with_range(row: Mapping[str, Any], name: str) -> str:
    """A mean, and its lowest and highest slice where they differ."""
    mean, low, high = (number(row[name + part]) for part in ("", _LOWEST, _HIGHEST))
    return mean if mean == EMPTY or low == high else f"{mean} [{low}, {high}]"


def _sorted(explanations: pd.DataFrame) -> pd.DataFrame:
    """The primary rows with a slice, as plain text, in the tables' order."""
    rows = explanations[explanations["primary"].eq(True) & explanations["slice"].notna()]
    rows = rows.drop(columns="primary").astype({"slice": int, **dict.fromkeys(_text(rows), object)})
    rows["roi_source"] = rows["roi_source"].where(rows["roi_source"].notna(), "")
    organs = {name: place for place, name in enumerate(in_order(rows["organ"]))}
    methods = {name: place for place, name in enumerate(methods_of(rows))}
    ranks = {"organ": organs, "method": methods}
    return rows.sort_values(
        [*UNIT], key=lambda column: column.map(ranks.get(str(column.name), lambda name: name))
    ).reset_index(drop=True)


def _text(rows: pd.DataFrame) -> list[str]:
    return [name for name in (*UNIT, "skipped") if name != "slice" and name in rows]


def _means(usable: pd.DataFrame, unit: Sequence[str]) -> pd.DataFrame:
    """Means over organs, and how many these are."""
    groups = usable.groupby(list(unit), sort=False)
    means = groups[[one.name for one in (*_MEASURES, FORWARDS)]].mean()
    return means.assign(organs=groups["organ"].nunique()).reset_index()


def _page(
    title: str,
    about: str,
    frame: pd.DataFrame,
    names: Mapping[str, Any],
    columns: Mapping[Measure, Any],
    missing: str,
    *notes: str,
) -> str:
    lines = []
    for row in frame.to_dict("records"):
        lines.append([show(row) for show in (*names.values(), *columns.values())])
    heads = [*names, *(one.head for one in columns)]
    return join(
        [
            title,
            about,
            pipe(heads, lines, len(names)),
            bullets(
                ["An organ that a slice lacks, or that was left out there, is in no mean.", *notes]
            ),
            missing,
        ]
    )
