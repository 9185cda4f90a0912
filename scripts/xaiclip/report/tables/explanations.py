"""Table III: what explanations are worth and what they cost, without and with guidance."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd

from xaiclip.errors import Skip
from xaiclip.metrics import maps
from xaiclip.metrics.measure import Measure
from xaiclip.metrics.statistics import (
    DEFAULT,
    Bootstrap,
    Comparison,
    Estimate,
    bootstrap_mean,
    case_means,
    compare,
)
from xaiclip.report import paper
from xaiclip.report.catalogue import makes_table
from xaiclip.report.markdown import bullets, join
from xaiclip.report.tables.data import NAN, Study, Table, keys, record, tidy
from xaiclip.report.tables.layout import Column, Key, column, intro, lay_out, notes_on_n
from xaiclip.report.tables.left_out import left_out
from xaiclip.report.words import escape

#: What maps are worth, as far as this table shows it.
QUALITY = tuple(measure for measure in maps.MEASURES if measure.shown != "nowhere")
FORWARDS = Measure("n_forwards", "forwards", "lower")
R2 = Measure("lime_r2", "R²")
_PTFLOPS = Measure("gflops_ptflops", "GFLOPs, ptflops", "lower")
_COST = (
    FORWARDS,
    Measure("rho_union", "ρ of the slice", "lower"),
    Measure("rho", "ρ of an organ", "lower"),
    _PTFLOPS,
    Measure("gflops_total", "GFLOPs, all", "lower"),
)
#: Printed by the paper; ours are in ``explanations.parquet`` and in no table.
_MACHINES = (
    Measure("seconds_machine_a", "paper, A", "lower", "s"),
    Measure("seconds_machine_b", "paper, B", "lower", "s"),
)

#: What one row of ``explanations.parquet`` is about, variants and values apart.
UNIT = ("case", "slice", "organ", "method", "guidance", "roi_source")

#: What both tables of explanations read of ``explanations.parquet``.
COLUMNS = [
    *(*UNIT, "variant", "value", "primary", "shared_by", "skipped"),
    *(measure.name for measure in (*QUALITY, *_COST, R2)),
]

_KEYS = ("method", "guidance", "roi_source")
#: A record of this key is a paired difference.
DIFFERENCE = {"guidance": paper.DELTA}


@makes_table(
    "table3",
    ["metrics/explanations", "skipped"],
    "Explanations without (full) and with (roi) guidance: fidelity, localization, "
    "forwards and operations, with the paired difference and its Wilcoxon p-value. The "
    "paper's Table III; its values marked with a dagger cannot hold.",
)
def make(study: Study) -> Table:
    """The table of a study."""
    return table3(study.rows("explanations", COLUMNS), **study.common())


def table3(
    explanations: pd.DataFrame,
    *,
    skips: Sequence[Skip] = (),
    seed: int = 0,
    resamples: int = DEFAULT.resamples,
    confidence: float = DEFAULT.confidence,
) -> Table:
    """Quality and cost of each method under both guidances; primary variants only.

    Args:
        explanations: `COLUMNS` of ``explanations.parquet``.
        skips: what was left out before the explanations, of the cases that this table is about.
        seed, resamples, confidence: of the bootstrap.
    """
    usable = explanations[explanations["skipped"].isna() & explanations["primary"].eq(True)]
    settings = Bootstrap(seed, resamples, confidence)
    frame = _data(usable, methods_of(explanations), sources_of(explanations), settings)
    missing = left_out(explanations, UNIT, skips)
    return Table(frame, _markdown(frame, usable["shared_by"].mean(), confidence, missing))


def _data(
    usable: pd.DataFrame, methods: Sequence[str], sources: Sequence[str], settings: Bootstrap
) -> pd.DataFrame:
    measures = (*QUALITY, *_COST)
    records: list[dict[str, Any]] = []
    for method in methods:
        for source in sources:
            rows = of_source(usable[usable["method"] == method], source)
            for guidance, results in contrast(rows, measures, settings).items():
                key = {"method": method, "guidance": guidance, "roi_source": source}
                results |= {one.name: Estimate(NAN, NAN, NAN, 0) for one in _MACHINES}
                for measure in (*measures, *_MACHINES):
                    where = (method, guidance, measure.name)
                    printed, doubts = paper.printed3(*where), paper.doubts(*where)
                    result = results[measure.name]
                    records.append(record(key, measure, result, printed=printed, doubts=doubts))
    return tidy(records, _KEYS)


def _markdown(frame: pd.DataFrame, shared: float, confidence: float, missing: str) -> str:
    rows = keys(frame, _KEYS)
    names = {"method": lambda row: escape(row["method"]), "guidance": guidance_words(frame)}
    quality = []
    for measure in QUALITY:
        quality.append(column(measure))
        if paper.prints(measure.name):
            quality.append(Column("paper", measure.name, paper=True))
    cost = [column(measure, cost=True) for measure in _COST]
    cost.insert(_COST.index(_PTFLOPS) + 1, Column("paper", _PTFLOPS.name, paper=True))
    cost += [Column(f"{one.label} ({one.unit})", one.name, paper=True) for one in _MACHINES]
    marks = sorted({mark for marks in frame["paper_doubts"] for mark in marks})
    return join(
        [
            "# Table III: explanations with and without ROI guidance",
            f'{intro(confidence)} Guidance `full` is the paper\'s "traditional", '
            '`roi` is its "XAI-CLIP"; Δ rows are roi − full, paired by slice and organ, with '
            "Wilcoxon's signed-rank p over cases.",
            "## Fidelity and localization",
            lay_out(frame, rows, names, quality, DIFFERENCE),
            bullets([*_NOTES_ON_QUALITY, *notes_on_n()]),
            "## Cost of one slice",
            lay_out(frame, rows, names, cost, DIFFERENCE),
            bullets(_notes_on_cost(shared)),
            "† A printed value that cannot hold, or does not mean what it seems to:"
            if marks
            else "",
            bullets([f"†{mark} {paper.WHY[mark]}" for mark in marks]),
            missing,
        ]
    )


_NOTES_ON_QUALITY = (
    *maps.notes(),
    "The paper defines its Dice and IoU as fidelity and discusses those of LIME and RISE as "
    "localization; they stand beside fidelity.",
)


def _notes_on_cost(shared: float) -> list[str]:
    share = f" ({shared:.1f} on average)" if pd.notna(shared) else ""
    return [
        f"Forwards and GFLOPs are those of one slice, for all its organs together{share}. They go "
        "with *ρ of the slice*: the share of the full plan's perturbations that are made for any "
        "of its organs. *ρ of an organ* is the share that counts for one organ, and what it would "
        "need alone.",
        "*GFLOPs, ptflops* is ptflops' `pytorch` backend, the paper's count, which misses the "
        "matrix products of attention; *all* is its `aten` backend. 1 MAC = 2 FLOPs. The "
        "localizer's forwards are in both, wherever it gave the ROI or the box that prompts the "
        "segmenter.",
        "A gradient method perturbs nothing: it has no fidelity, and guidance saves it no forward. "
        "A backward counts in the GFLOPs as two forwards of the parts of the model that it went "
        "through.",
        "Our seconds are not shown: the jobs of a study share a machine, and a slice's forwards "
        "are shared by its variants, so they compare nothing. They are in "
        "`metrics/explanations.parquet`.",
        "The paper's Δ rows are relative changes, printed with a plus where they are savings. Its "
        'text\'s "10,000 patches" fit no grid in it (225 windows at 512 px).',
    ]


# --- what both tables of explanations share ------------------------------------------------------


def contrast(
    rows: pd.DataFrame, measures: Sequence[Measure], settings: Bootstrap
) -> dict[str, dict[str, Estimate | Comparison]]:
    """Each guidance and their paired difference, by measure."""
    sides = {name: rows[rows["guidance"] == name] for name in ("full", "roi")}
    result: dict[str, dict[str, Estimate | Comparison]] = {
        guidance: {
            measure.name: bootstrap_mean(
                case_means(side, measure.name, "organ").to_numpy(), settings
            )
            for measure in measures
        }
        for guidance, side in sides.items()
    }
    result[paper.DELTA] = {
        measure.name: compare(sides["full"], sides["roi"], measure.name, "organ", settings)
        for measure in measures
    }
    return result


def methods_of(frame: pd.DataFrame) -> list[str]:
    """The paper's methods in its order, then others; the paper's if there is none."""
    found = set(frame["method"].dropna())
    known = [name for name in paper.METHODS if name in found or not found]
    return known + sorted(found - set(paper.METHODS))


def sources_of(frame: pd.DataFrame) -> list[str]:
    """Where ROIs came from; [""] where there is none."""
    return sorted(set(frame["roi_source"].dropna())) or [""]


def of_source(frame: pd.DataFrame, source: str) -> pd.DataFrame:
    """Rows of one ROI source; a row without one (full guidance) belongs to each."""
    return frame[named(frame["roi_source"], source) | frame["roi_source"].isna()]


def named(column: pd.Series, name: str) -> pd.Series:
    """Where a column has this name; "" stands for none."""
    return column.eq(name) if name else column.isna()


def guidance_words(frame: pd.DataFrame) -> Callable[[Key], str]:
    """A row's guidance, with the ROI's source where a table has several."""
    several = frame["roi_source"].nunique() > 1

    def words(row: Mapping[str, str]) -> str:
        name = "Δ" if row["guidance"] == paper.DELTA else row["guidance"]
        return escape(f"{name} ({row['roi_source']})" if several else name)

    return words
