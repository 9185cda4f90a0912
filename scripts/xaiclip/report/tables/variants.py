"""Table III for every variant and value function of every method."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from xaiclip.errors import Skip
from xaiclip.metrics.statistics import DEFAULT, Bootstrap
from xaiclip.report.catalogue import makes_table
from xaiclip.report.markdown import EMPTY, join
from xaiclip.report.tables.data import Study, Table, keys, record, tidy
from xaiclip.report.tables.explanations import (
    COLUMNS,
    DIFFERENCE,
    FORWARDS,
    QUALITY,
    R2,
    UNIT,
    contrast,
    guidance_words,
    methods_of,
    named,
    of_source,
    sources_of,
)
from xaiclip.report.tables.layout import Key, column, intro, lay_out
from xaiclip.report.tables.left_out import left_out
from xaiclip.report.words import escape

_MEASURES = (
    *(measure for measure in QUALITY if measure.shown == "everywhere"),
    R2,
    FORWARDS,
)
_KEYS = ("method", "variant", "value", "guidance", "roi_source")


@makes_table(
    "table3_variants",
    ["metrics/explanations", "skipped"],
    "As Table III, for every variant: superpixel algorithms of LIME, estimators and value "
    "functions of RISE.",
    beside="table3",
)
def make(study: Study) -> Table:
    """The table of a study."""
    return table3_variants(study.rows("explanations", COLUMNS), **study.common())


def table3_variants(
    explanations: pd.DataFrame,
    *,
    skips: Sequence[Skip] = (),
    seed: int = 0,
    resamples: int = DEFAULT.resamples,
    confidence: float = DEFAULT.confidence,
) -> Table:
    """Every variant and value function of every method; the arguments of `table3`."""
    usable = explanations[explanations["skipped"].isna()]
    settings = Bootstrap(seed, resamples, confidence)
    frame = _data(usable, methods_of(explanations), sources_of(explanations), settings)
    primary = usable.loc[usable["primary"].eq(True), ["method", "variant", "value"]]
    shown = {tuple(map(str, key)) for key in _filled(primary).itertuples(index=False)}
    return Table(frame, _markdown(frame, shown, confidence, left_out(explanations, UNIT, skips)))


def _data(
    usable: pd.DataFrame, methods: Sequence[str], sources: Sequence[str], settings: Bootstrap
) -> pd.DataFrame:
    records: list[dict[str, Any]] = []
    for method in methods:
        of_method = usable[usable["method"] == method]
        names = _filled(of_method[["variant", "value"]])
        for variant, value in sorted(names.itertuples(index=False, name=None)):
            chosen = of_method[
                named(of_method["variant"], variant) & named(of_method["value"], value)
            ]
            for source in sources:
                results = contrast(of_source(chosen, source), _MEASURES, settings)
                for guidance, of_guidance in results.items():
                    words = (method, variant, value, guidance, source)
                    key = dict(zip(_KEYS, words, strict=True))
                    records += [record(key, one, of_guidance[one.name]) for one in _MEASURES]
    return tidy(records, _KEYS)


def _markdown(
    frame: pd.DataFrame, primary: set[tuple[str, ...]], confidence: float, missing: str
) -> str:
    def variant(row: Key) -> str:
        name = escape(row["variant"])
        bold = (row["method"], row["variant"], row["value"]) in primary
        return f"**{name}**" if name and bold else name or EMPTY

    names = {
        "method": lambda row: escape(row["method"]),
        "variant": variant,
        "value": lambda row: escape(row["value"]) or EMPTY,
        "guidance": guidance_words(frame),
    }
    rows = keys(frame, _KEYS)
    columns = [column(measure, cost=measure is FORWARDS) for measure in _MEASURES]
    return join(
        [
            "# Table III, all variants",
            f"{intro(confidence)} As in Table III, whose rows are the variants in bold here.",
            lay_out(frame, rows, names, columns, DIFFERENCE),
            missing,
        ]
    )


def _filled(names: pd.DataFrame) -> pd.DataFrame:
    """Different rows, with "" for none."""
    return names.drop_duplicates().astype(object).fillna("")
