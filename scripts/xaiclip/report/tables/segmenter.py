"""How well the segmenter does with the reference's boxes and with the ROI's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from xaiclip.errors import Skip
from xaiclip.metrics.measure import Measure
from xaiclip.metrics.statistics import DEFAULT, Bootstrap, bootstrap_mean, case_means
from xaiclip.report.catalogue import makes_table
from xaiclip.report.markdown import bullets, join
from xaiclip.report.tables.data import Study, Table, in_order, keys, record, tidy
from xaiclip.report.tables.layout import Column, intro, lay_out, notes_on_n
from xaiclip.report.tables.left_out import left_out
from xaiclip.report.words import escape

_MEASURES = (
    Measure("dice", "Dice", "higher"),
    Measure("iou", "IoU", "higher"),
    Measure("hd95_mm", "HD95", "lower", "mm"),
)

#: What the table reads of ``segmenter.parquet``.
COLUMNS = [
    *("case", "slice", "organ", "prompt", "modality", "skipped"),
    *(measure.name for measure in _MEASURES),
]

_KEYS = ("modality", "organ", "prompt")
#: Where the box came from, in words.
_PROMPTS = {"reference": "reference box", "roi": "ROI box"}


@makes_table(
    "segmenter",
    ["metrics/segmenter", "skipped"],
    "The segmenter against the reference, prompted with the reference's box and with the "
    "box of the localizer's ROI, by modality; each row with its number of cases.",
)
def make(study: Study) -> Table:
    """The table of a study."""
    return segmenter_table(study.rows("segmenter", COLUMNS), **study.common())


def segmenter_table(
    segmenter: pd.DataFrame,
    *,
    skips: Sequence[Skip] = (),
    seed: int = 0,
    resamples: int = DEFAULT.resamples,
    confidence: float = DEFAULT.confidence,
) -> Table:
    """How well the segmenter does with the reference's boxes and with the ROI's, by modality.

    Args:
        segmenter: `COLUMNS` of ``segmenter.parquet``.
        skips: what was left out before the segmenter, of the cases that this table is about.
        seed, resamples, confidence: of the bootstrap.
    """
    frame = _data(segmenter, Bootstrap(seed, resamples, confidence))
    missing = left_out(segmenter, ["case", "slice", "organ", "prompt"], skips)
    return Table(frame, _markdown(frame, confidence, missing))


def _data(segmenter: pd.DataFrame, settings: Bootstrap) -> pd.DataFrame:
    usable = segmenter[segmenter["skipped"].isna()]
    organs = in_order(usable["organ"])
    groups = {organ: [organ] for organ in organs} | {"mean of organs": organs}
    records: list[dict[str, Any]] = []
    for modality in sorted(set(usable["modality"])) or [""]:
        for label, members in groups.items():
            rows = usable[usable["organ"].isin(members) & usable["modality"].eq(modality)]
            for prompt in _PROMPTS:
                key = {"modality": modality, "organ": label, "prompt": prompt}
                of_prompt = rows[rows["prompt"] == prompt]
                for measure in _MEASURES:
                    values = case_means(of_prompt, measure.name, "organ").to_numpy()
                    records.append(record(key, measure, bootstrap_mean(values, settings)))
    return tidy(records, _KEYS)


def _markdown(frame: pd.DataFrame, confidence: float, missing: str) -> str:
    rows = keys(frame, ["modality", "organ"])
    names = {
        "modality": lambda row: escape(row["modality"]),
        "organ": lambda row: escape(row["organ"]),
    }
    columns = [
        Column(f"{measure.head}, {words}", measure.name, {"prompt": prompt})
        for prompt, words in _PROMPTS.items()
        for measure in _MEASURES
    ]
    return join(
        [
            "# The segmenter",
            f"{intro(confidence)} Prompted with the reference's box, and with the box of the "
            "localizer's ROI.",
            lay_out(frame, rows, names, columns),
            bullets(
                [
                    "An organ that the localizer misses has Dice 0 with the ROI's box.",
                    "Surface distances are those of the slices where both masks exist.",
                    *notes_on_n(),
                ]
            ),
            missing,
        ]
    )
