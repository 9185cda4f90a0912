"""Table II: how well the localizer finds each class, with and without the text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from xaiclip.errors import Skip
from xaiclip.metrics.localization import PooledAuc
from xaiclip.metrics.measure import Measure
from xaiclip.metrics.statistics import (
    DEFAULT,
    Bootstrap,
    Estimate,
    bootstrap_mean,
    case_means,
    compare,
)
from xaiclip.organs import BACKGROUND, SIX_CLASSES
from xaiclip.report import paper
from xaiclip.report.catalogue import makes_table
from xaiclip.report.markdown import bullets, join
from xaiclip.report.tables.data import NAN, Study, Table, in_order, keys, record, tidy
from xaiclip.report.tables.layout import Column, intro, lay_out, notes_on_n
from xaiclip.report.tables.left_out import left_out
from xaiclip.report.words import escape

#: What Table II reads of ``localizer.parquet``.
COLUMNS = ["case", "slice", "class", "variant", "dice", "auc_roc", "skipped"]

_KEYS = ("class", "variant")
_VARIANTS = ("text", "no_text")
_ORGANS = "mean of organs"
_DICE = Measure("dice", "Dice", "higher")
_AUC = Measure("auc_roc", "AUC-ROC", "higher")
_POOLED = Measure("auc_roc_pooled", "pooled", "higher")

Pooled = Mapping[str, Mapping[str, float]]


@makes_table(
    "table2",
    ["metrics/localizer", "localizer_pooled", "skipped"],
    "Localizer: Dice and area under the ROC curve of each class, one value per case, mean "
    "with its bootstrap interval over cases; with the text switched off beside it. The "
    "paper's Table II.",
)
def make(study: Study) -> Table:
    """The table of a study."""
    pooled: dict[str, PooledAuc] = {}
    for path in study.files["localizer_pooled"]:
        variant = "no_text" if "/no_text_" in str(path) else "text"
        one = PooledAuc.load(path)
        pooled[variant] = pooled[variant] + one if variant in pooled else one
    return table2(
        study.rows("localizer", COLUMNS),
        pooled={variant: counts.auc() for variant, counts in pooled.items()},
        **study.common(),
    )


def table2(
    localizer: pd.DataFrame,
    *,
    pooled: Pooled | None = None,
    skips: Sequence[Skip] = (),
    seed: int = 0,
    resamples: int = DEFAULT.resamples,
    confidence: float = DEFAULT.confidence,
) -> Table:
    """How well the localizer finds each class, with and without the text.

    Args:
        localizer: `COLUMNS` of ``localizer.parquet``, of the test cases.
        pooled: AUC-ROC over the pixels of all cases, by variant ("text", "no_text") and class.
        skips: what was left out before the localizer, of the cases that this table is about.
        seed, resamples, confidence: of the bootstrap.
    """
    frame = _data(localizer, pooled or {}, Bootstrap(seed, resamples, confidence))
    missing = left_out(localizer, ["case", "slice", "class", "variant"], skips)
    return Table(frame, _markdown(frame, confidence, missing))


def _data(localizer: pd.DataFrame, pooled: Pooled, settings: Bootstrap) -> pd.DataFrame:
    usable = localizer[localizer["skipped"].isna()]
    classes = in_order(usable["class"]) or list(SIX_CLASSES)
    groups = {name: [name] for name in classes}
    groups[_ORGANS] = [name for name in classes if name != BACKGROUND]
    records: list[dict[str, Any]] = []
    for label, members in groups.items():
        of_group = usable[usable["class"].isin(members)]
        parts = {variant: of_group[of_group["variant"] == variant] for variant in _VARIANTS}
        for measure in (_DICE, _AUC):
            for variant, rows in parts.items():
                key = {"class": label, "variant": variant}
                values = case_means(rows, measure.name, "class").to_numpy()
                estimate = bootstrap_mean(values, settings)
                printed = paper.printed2(label, measure.name) if variant == "text" else ""
                records.append(record(key, measure, estimate, printed=printed))
                if measure is _AUC:
                    known = pooled.get(variant, {})
                    mean = _mean([known.get(member, NAN) for member in members])
                    records.append(record(key, _POOLED, Estimate(mean, NAN, NAN, estimate.n)))
            key = {"class": label, "variant": paper.DELTA}
            gain = compare(parts["no_text"], parts["text"], measure.name, "class", settings)
            records.append(record(key, measure, gain))
    return tidy(records, _KEYS)


def _markdown(frame: pd.DataFrame, confidence: float, missing: str) -> str:
    text, without, gain = ({"variant": name} for name in (*_VARIANTS, paper.DELTA))
    rows = keys(frame, ["class"])
    names = {"class": lambda row: escape(row["class"])}
    dice = [
        Column(_DICE.head, "dice", text),
        Column("paper", "dice", text, paper=True),
        Column("without text", "dice", without),
        Column("difference; p", "dice", gain),
    ]
    auc = [
        Column(_AUC.head, "auc_roc", text),
        Column(_POOLED.head, "auc_roc_pooled", text),
        Column("paper", "auc_roc", text, paper=True),
        Column("without text", "auc_roc", without),
        Column("pooled without text", "auc_roc_pooled", without),
        Column("difference; p", "auc_roc", gain),
    ]
    return join(
        [
            "# Table II: localization of the organs",
            f"{intro(confidence)} *Without text* is the "
            "same network with the prompts switched off; the difference is paired by case.",
            "## Dice",
            lay_out(frame, rows, names, dice, gain),
            "## AUC-ROC, one class against the rest",
            lay_out(frame, rows, names, auc, gain),
            bullets(
                [
                    "Dice is that of the most probable class. A class that a case does not have "
                    "counts neither for nor against it, so n can differ between classes.",
                    "*AUC-ROC* is computed in each slice and averaged over cases; *pooled* is over "
                    "the pixels of all cases at once. The paper does not say which of the two it "
                    "prints.",
                    f"*{_ORGANS.capitalize()}* is without the background.",
                    "The paper's text names five classes, its Table II has six.",
                    *notes_on_n(),
                ]
            ),
            missing,
        ]
    )


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if math.isfinite(value)]
    return sum(known) / len(known) if known else NAN
