"""Which organ each organ's mask hangs on: Shapley values of the units of the image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from xaiclip.errors import Skip
from xaiclip.explain.attribution import open_attributions
from xaiclip.masks.roi import SOURCES_OF_GUIDANCE
from xaiclip.metrics.measure import Measure
from xaiclip.metrics.statistics import DEFAULT, Bootstrap, bootstrap_mean, case_means
from xaiclip.organs import OUTSIDE, REST, organs_of
from xaiclip.report.catalogue import makes_table
from xaiclip.report.markdown import bullets, join
from xaiclip.report.tables.data import Study, Table, keys, record, tidy
from xaiclip.report.tables.explanations import UNIT
from xaiclip.report.tables.layout import Column, intro, lay_out, notes_on_n
from xaiclip.report.tables.left_out import left_out
from xaiclip.report.words import escape

METHOD = "shapley"
#: In the place of a unit: all of them together.
TOTAL = "total drop"
#: What the table reads of ``explanations.parquet``: what was left out.
COLUMNS = [*UNIT, "skipped"]
_MEASURE = Measure("shapley_value", "Shapley value")
#: ``region``: a unit of the image, or `TOTAL`.
_KEYS = ("value", "guidance", "organ", "region")
#: Whose organs the units are, in words.
_REGIONS = {
    "prediction": "in the segmentation that is explained",
    "label": "in the label",
    "localizer": "in the localizer's map",
}


@makes_table(
    "shapley_units",
    ["attributions/shapley", "metrics/explanations", "skipped"],
    "Which organ each organ's mask hangs on: the Shapley value of each unit of the image "
    "(organs, the rest of the body, what is outside it) for each organ's score; means "
    "over cases with bootstrap intervals.",
    methods={"shapley": {"units": "organs"}},
)
def make(study: Study) -> Table:
    """The table of a study."""
    return shapley_units(
        study.files["attributions/shapley"],
        study.rows("explanations", COLUMNS),
        classes=study.classes,
        settings=study.methods[METHOD],
        **study.common(),
    )


def shapley_units(
    attributions: Sequence[Path],
    explanations: pd.DataFrame,
    *,
    classes: Sequence[str],
    settings: Mapping[str, Any],
    skips: Sequence[Skip] = (),
    seed: int = 0,
    resamples: int = DEFAULT.resamples,
    confidence: float = DEFAULT.confidence,
) -> Table:
    """The mean Shapley value of each unit for each organ's score: organ × unit, over cases.

    Args:
        attributions: the method's files, ``…/{guidance}/{batch}.npz``.
        explanations: `COLUMNS` of ``explanations.parquet``.
        classes: background first.
        settings: of the method.
        skips: what was left out before the explanations, of the cases that this table is about.
        seed, resamples, confidence: of the bootstrap.

    Returns:
        The frame of `data.tidy` with a column ``sd``, the standard deviation over cases.
    """
    bootstrap = Bootstrap(seed, resamples, confidence)
    frame = _data(attributions, organs_of(classes), bootstrap)
    missing = left_out(explanations[explanations["method"] == METHOD], UNIT, skips)
    return Table(frame, _markdown(frame, settings["regions"], confidence, missing))


def _data(paths: Sequence[Path], organs: Sequence[str], bootstrap: Bootstrap) -> pd.DataFrame:
    rows = pd.DataFrame(
        [
            {**row, "guidance": path.parent.name, "region": unit, _MEASURE.name: number}
            for path in paths
            for row in _maps(path)
            for unit, number in {**row["units"], TOTAL: sum(row["units"].values())}.items()
        ],
        columns=["case", "slice", *_KEYS, _MEASURE.name],
    )
    records, spread = [], []
    # the value function that the tables show stands first in each file
    for value in rows["value"].drop_duplicates():
        for guidance in (one for one in SOURCES_OF_GUIDANCE if (rows["guidance"] == one).any()):
            part = rows[(rows["value"] == value) & (rows["guidance"] == guidance)]
            for organ in organs:
                for unit in (*organs, REST, OUTSIDE, TOTAL):
                    cell = part[(part["organ"] == organ) & (part["region"] == unit)]
                    of_cases = case_means(cell, _MEASURE.name, "organ")
                    key = dict(zip(_KEYS, (value, guidance, organ, unit), strict=True))
                    records.append(record(key, _MEASURE, bootstrap_mean(of_cases, bootstrap)))
                    spread.append(float(of_cases.std()))
    frame = tidy(records, _KEYS)
    frame.insert(list(frame).index("mean") + 1, "sd", spread)
    return frame


def _maps(path: Path) -> list[dict[str, Any]]:
    """The facts of the maps that hold the values of named units; no map is read."""
    with open_attributions(path) as stored:
        names = ("case", "slice", "organ", "value", "units")
        return [{name: row[name] for name in names} for _, row in stored.find() if row["units"]]


def _markdown(frame: pd.DataFrame, regions: str, confidence: float, missing: str) -> str:
    names = {
        "guidance": lambda row: escape(row["guidance"]),
        "organ": lambda row: escape(row["organ"]),
    }
    columns = [
        Column(escape(unit), _MEASURE.name, {"region": unit})
        for unit in frame["region"].drop_duplicates()
    ]
    parts = []
    for value, own in frame.groupby("value", sort=False):
        matrix = lay_out(
            own,
            keys(own, ["guidance", "organ"]),
            names,
            columns,
            {"measure": _MEASURE.name},  # each with its sign
        )
        parts += [f"## {escape(str(value))}", matrix]
    return join(
        [
            "# Which organ each organ's mask hangs on",
            f"{intro(confidence)} A row is the organ whose mask is explained, a column a unit of "
            f"the image: each organ's region {_REGIONS[regions]}, the rest of the body, and what "
            "is outside the body. A cell is the unit's Shapley value: its part of what the score "
            "loses when all units are hidden.",
            *parts,
            bullets([*_NOTES, *notes_on_n()]),
            missing,
        ]
    )


_NOTES = (
    "Positive: seeing the unit supports the organ's mask. Negative: the mask comes out better "
    "without it.",
    "The units of a slice add up to the total drop. Means over other cases need not: a case "
    "without an organ has no such unit, and n says how many have one.",
    "Under guidance, units that meet no ROI stay visible and have no value.",
    "The values are those of whole units, not divided by their areas. Hidden units are filled "
    "(`explain.fill`), which no scan looks like: read them beside docs/shapley.md.",
)
