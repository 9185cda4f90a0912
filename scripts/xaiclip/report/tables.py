"""Tables II and III: ours over cases, with the values that the paper prints beside them.

A table has two forms. The tidy frame (CSV) holds one measure of one row per line and one value per
cell. The Markdown is for reading. Any number of cases gives a table: where a value or an interval
cannot be had, its cell is empty, and what was left out stands below.
"""

from __future__ import annotations

import csv
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from xaiclip.errors import Skip
from xaiclip.evaluate.statistics import (
    MIN_DIFFERENCES,
    Bootstrap,
    Comparison,
    Estimate,
    bootstrap_mean,
    case_means,
    compare,
)
from xaiclip.files import write_text
from xaiclip.organs import BACKGROUND, SIX_CLASSES

_NAN = float("nan")
_EMPTY = "—"
_REASONS = 20  # as many are listed


@dataclass(frozen=True)
class Table:
    """One table: the tidy ``frame`` and the ``markdown``."""

    frame: pd.DataFrame
    markdown: str


def write(table: Table, tidy: str | os.PathLike[str], markdown: str | os.PathLike[str]) -> None:
    """Write a table's frame as CSV to ``tidy``, and its Markdown, atomically."""
    # ten digits: more would differ between machines
    write_text(tidy, table.frame.to_csv(index=False, float_format="%.10g", lineterminator="\n"))
    write_text(markdown, table.markdown)


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


# --- what the paper prints -----------------------------------------------------------------------

#: Table II: Dice and AUC-ROC by class.
PAPER_TABLE2: Mapping[str, Mapping[str, str]] = {
    "background": {"dice": "0.88", "auc_roc": "0.86"},
    "liver": {"dice": "0.64", "auc_roc": "0.97"},
    "right kidney": {"dice": "0.44", "auc_roc": "0.97"},
    "left kidney": {"dice": "0.57", "auc_roc": "0.99"},
    "spleen": {"dice": "0.24", "auc_roc": "0.98"},
    "pancreas": {"dice": "0.16", "auc_roc": "0.97"},
}

_PAPER_MEASURES = (
    "fidelity_dice",
    "fidelity_iou",
    "gflops_ptflops",
    "seconds_machine_a",
    "seconds_machine_b",
)
_DELTA = "delta"

#: Table III by method and guidance, then by measure; its Δ rows ("delta") are relative changes.
PAPER_TABLE3: Mapping[tuple[str, str], Mapping[str, str]] = {
    key: dict(zip(_PAPER_MEASURES, cells.split("|"), strict=True))
    for key, cells in {
        ("occlusion", "full"): "0.6825|0.4956|168,780|401|308.5",
        ("occlusion", "roi"): "0.9871|0.9748|146,432|151|94.4",
        ("occlusion", _DELTA): "+44.6%|+96.7%|+13.2%|+62.3%|+69.4%",
        ("lime", "full"): "> 0.1|> 0.1|131,921|420|283.7",
        ("lime", "roi"): "0.412|0.297|94,431|311|223.7",
        ("lime", _DELTA): "—|—|+28.4%|+26.0%|+21.1%",
        ("rise", "full"): "> 0.1|> 0.1|181,010|1,040|533.3",
        ("rise", "roi"): "> 0.1|> 0.1|169,932|753|803",
        ("rise", _DELTA): "—|—|+6.1%|+27.6%|+33.6%",
    }.items()
}

#: Why a printed value cannot hold; the (method, guidance, measure) it concerns, None = all.
_DOUBTS: Mapping[str, tuple[str, Sequence[tuple[str | None, str | None, str]]]] = {
    "a": (
        "A mean Dice of 0.6825 rules out a mean IoU of 0.4956: as IoU = D/(2 − D) is convex, the "
        "mean IoU cannot be below 0.518.",
        [
            ("occlusion", guidance, f"fidelity_{name}")
            for guidance in ("full", _DELTA)
            for name in ("dice", "iou")
        ],
    ),
    "b": (
        'The table prints "> 0.1" where the text says "below 0.1".',
        [
            ("lime", "full", "fidelity_dice"),
            ("lime", "full", "fidelity_iou"),
            ("rise", None, "fidelity_dice"),
            ("rise", None, "fidelity_iou"),
        ],
    ),
    "c": (
        "At 742 GFLOPs a forward the GFLOPs mean 227 and 197 forwards (ρ = 0.87), the times mean "
        "ρ ≈ 0.31–0.38, and the text says 0.05–0.25: at most one of the three holds.",
        [("occlusion", None, measure) for measure in _PAPER_MEASURES[2:]],
    ),
    "d": (
        "RISE with N = 2000 costs 1.48 million GFLOPs at 742 a forward, not 181,010.",
        [("rise", None, "gflops_ptflops")],
    ),
    "e": (
        "The two RISE times on machine B are swapped: only then does their Δ of 33.6% follow.",
        [("rise", guidance, "seconds_machine_b") for guidance in ("full", "roi")],
    ),
    "f": (
        "A time of 308.5 s is about 1.4 s a forward on an RTX 4070, or roughly 0.5 TFLOP/s: it is "
        "not the model's time.",
        [("occlusion", "full", "seconds_machine_b")],
    ),
}


# --- measures ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Measure:
    """A column of a metric file as a column of a table."""

    name: str
    label: str
    better: Literal["higher", "lower", ""] = ""
    unit: str = ""

    @property
    def head(self) -> str:
        arrow = {"higher": " ↑", "lower": " ↓", "": ""}[self.better]
        return f"{self.label}{f' ({self.unit})' if self.unit else ''}{arrow}"


_DICE = Measure("dice", "Dice", "higher")
_AUC = Measure("auc_roc", "AUC-ROC", "higher")

_QUALITY = (
    Measure("fidelity_dice", "fidelity Dice", "higher"),
    Measure("fidelity_iou", "fidelity IoU", "higher"),
    Measure("localization_dice_pred", "Dice vs prediction", "higher"),
    Measure("localization_dice_pred_chance", "its chance level"),
    Measure("localization_iou_pred", "IoU vs prediction", "higher"),
    Measure("localization_dice_gt", "Dice vs reference", "higher"),
    Measure("localization_dice_gt_chance", "its chance level"),
    Measure("localization_iou_gt", "IoU vs reference", "higher"),
)
_COST = (
    Measure("n_forwards", "forwards", "lower"),
    Measure("rho", "ρ", "lower"),
    Measure("gflops_ptflops", "GFLOPs, ptflops", "lower"),
    Measure("gflops_total", "GFLOPs, all", "lower"),
    Measure("seconds_total", "time", "lower", "s"),
)
_VARIANTS = (*(m for m in _QUALITY if "_iou" not in m.name), Measure("lime_r2", "R²"), _COST[0])

_SEGMENTER = (
    _DICE,
    Measure("iou", "IoU", "higher"),
    Measure("hd95_mm", "HD95", "lower", "mm"),
)

_MACHINES = (
    Measure("seconds_machine_a", "time on machine A", "lower", "s"),
    Measure("seconds_machine_b", "time on machine B", "lower", "s"),
)


# --- columns that are read -----------------------------------------------------------------------

_EXPLANATION = ("case", "slice", "organ", "method", "guidance", "roi_source")

#: Of the metric files; a study of thousands of cases has tens of columns that no table shows.
LOCALIZER_COLUMNS = ["case", "slice", "class", "variant", "dice", "auc_roc", "skipped"]
SEGMENTER_COLUMNS = [
    *("case", "slice", "organ", "prompt", "modality", "skipped"),
    *(measure.name for measure in _SEGMENTER),
]
EXPLANATION_COLUMNS = [
    *(*_EXPLANATION, "variant", "value", "primary", "shared_by", "skipped"),
    *dict.fromkeys(measure.name for measure in (*_QUALITY, *_COST, *_VARIANTS)),
]


def read_rows(path: str | os.PathLike[str], columns: Sequence[str]) -> pd.DataFrame:
    """Some columns of a metric file; text as sorted categories, as a study repeats few words."""
    kinds = pq.read_schema(path)
    text = [name for name in columns if pa.types.is_string(kinds.field(name).type)]
    rows = pd.read_parquet(path, columns=list(columns), read_dictionary=text)
    for name in text:
        words = rows[name].astype("category").cat
        rows[name] = words.reorder_categories(sorted(words.categories))
    return rows


# --- Table II ------------------------------------------------------------------------------------


def table2(
    localizer: pd.DataFrame,
    *,
    pooled: Mapping[str, Mapping[str, float]] | None = None,
    skips: Sequence[Skip] = (),
    seed: int = 0,
    resamples: int = 9999,
    confidence: float = 0.95,
) -> Table:
    """How well the localizer finds each class, with and without the text.

    Args:
        localizer: `LOCALIZER_COLUMNS` of ``localizer.parquet``, of the test cases.
        pooled: AUC-ROC over the pixels of all cases, by variant ("text", "no_text") and class.
        skips: what was left out before the localizer, of the cases that this table is about.
    """
    settings = Bootstrap(seed, resamples, confidence)
    usable = localizer[localizer["skipped"].isna()]
    variants = {name: usable[usable["variant"] == name] for name in ("text", "no_text")}
    found = set(usable["class"])
    classes = [name for name in SIX_CLASSES if name in found or not found]
    classes += sorted(found - set(classes))
    groups = {name: [name] for name in classes}
    groups["mean of organs"] = [name for name in classes if name != BACKGROUND]

    records: list[dict[str, Any]] = []
    shown: dict[str, list[list[str]]] = {"dice": [], "auc_roc": []}
    for label, members in groups.items():
        for measure in (_DICE, _AUC):
            printed = PAPER_TABLE2.get(label, {}).get(measure.name, "")
            parts = {name: rows[rows["class"].isin(members)] for name, rows in variants.items()}
            estimates = {
                name: bootstrap_mean(case_means(rows, measure.name, "class").to_numpy(), settings)
                for name, rows in parts.items()
            }
            gain = compare(parts["no_text"], parts["text"], measure.name, "class", settings)
            pools = {
                name: _mean([(pooled or {}).get(name, {}).get(member, _NAN) for member in members])
                for name in variants
            }
            for name, estimate in estimates.items():
                key = {"class": label, "variant": name}
                paper = printed if name == "text" else ""
                records.append(_record(key, measure, estimate, paper=paper))
                if measure is _AUC:
                    pool = Estimate(pools[name], _NAN, _NAN, estimate.n)
                    records.append(_record(key, Measure("auc_roc_pooled", "", "higher"), pool))
            records.append(_record({"class": label, "variant": _DELTA}, measure, gain))

            n = estimates["text"].n
            cells = [label, str(n), _estimate(estimates["text"])]
            cells += [printed or _EMPTY, _cell(estimates["no_text"], n), _cell(gain, n)]
            if measure is _AUC:
                cells[3:3] = [_number(pools["text"])]
                cells[6:6] = [_number(pools["no_text"])]
            shown[measure.name].append(cells)

    text = [
        "# Table II: localization of the organs",
        f"{_intro(confidence)} *Without text* is the "
        "same network with the prompts switched off; the difference is paired by case.",
        "## Dice",
        _pipe(
            ["class", "n cases", "Dice ↑", "paper", "without text", "difference; p"],
            shown["dice"],
            names=1,
        ),
        "## AUC-ROC, one class against the rest",
        _pipe(
            ["class", "n cases", "AUC-ROC ↑", "pooled ↑", "paper", "without text",
             "pooled without text", "difference; p"],
            shown["auc_roc"],
            names=1,
        ),
        _bullets(
            [
                "Dice is that of the most probable class. A class that a case does not have counts "
                "neither for nor against it, so n can differ between classes.",
                "*AUC-ROC* is computed in each slice and averaged over cases; *pooled* is over the "
                "pixels of all cases at once. The paper does not say which of the two it prints.",
                "The paper's text names five classes, its Table II has six.",
                _p_note(),
            ]
        ),
        _left_out(localizer, ["case", "slice", "class", "variant"], skips),
    ]  # fmt: skip
    return Table(_tidy(records, ["class", "variant"]), "\n\n".join(text) + "\n")


# --- the segmenter --------------------------------------------------------------------------------


def segmenter_table(
    segmenter: pd.DataFrame,
    *,
    skips: Sequence[Skip] = (),
    seed: int = 0,
    resamples: int = 9999,
    confidence: float = 0.95,
) -> Table:
    """How well the segmenter does with the reference's boxes and with the ROI's, by modality.

    Args:
        segmenter: `SEGMENTER_COLUMNS` of ``segmenter.parquet``.
        skips: what was left out before the segmenter, of the cases that this table is about.
    """
    settings = Bootstrap(seed, resamples, confidence)
    usable = segmenter[segmenter["skipped"].isna()]
    organs = [organ for organ in SIX_CLASSES if organ in set(usable["organ"])]
    organs += sorted(set(usable["organ"]) - set(organs))
    groups = {organ: [organ] for organ in organs} | {"mean of organs": organs}
    records: list[dict[str, Any]] = []
    shown: list[list[str]] = []
    for modality in sorted(set(usable["modality"])) or [""]:
        for label, members in groups.items():
            rows = usable[usable["organ"].isin(members) & usable["modality"].eq(modality)]
            cells = [modality, label]
            for prompt in ("reference", "roi"):
                of_prompt = rows[rows["prompt"] == prompt]
                estimates = [
                    bootstrap_mean(case_means(of_prompt, one.name, "organ").to_numpy(), settings)
                    for one in _SEGMENTER
                ]
                key = {"modality": modality, "organ": label, "prompt": prompt}
                for measure, estimate in zip(_SEGMENTER, estimates, strict=True):
                    records.append(_record(key, measure, estimate))
                if prompt == "reference":
                    cells.append(str(estimates[0].n))
                cells += [_estimate(estimate) for estimate in estimates]
            shown.append(cells)
    heads = [
        f"{one.head}, {prompt}" for prompt in ("reference box", "ROI box") for one in _SEGMENTER
    ]
    text = [
        "# The segmenter",
        f"{_intro(confidence)} Prompted with the reference's box, and with the box of the "
        "localizer's ROI.",
        _pipe(["modality", "organ", "n cases", *heads], shown, names=2),
        _bullets(
            [
                "An organ that the localizer misses has Dice 0 with the ROI's box.",
                "Surface distances are those of the slices where both masks exist.",
            ]
        ),
        _left_out(segmenter, ["case", "slice", "organ", "prompt"], skips),
    ]
    return Table(pd.DataFrame(records), "\n\n".join(text) + "\n")


# --- Table III -----------------------------------------------------------------------------------


def table3(
    explanations: pd.DataFrame,
    *,
    skips: Sequence[Skip] = (),
    seed: int = 0,
    resamples: int = 9999,
    confidence: float = 0.95,
) -> Table:
    """Quality and cost of each method under both guidances; primary variants only.

    Args:
        explanations: `EXPLANATION_COLUMNS` of ``explanations.parquet``.
        skips: what was left out before the explanations, of the cases that this table is about.
    """
    settings = Bootstrap(seed, resamples, confidence)
    usable = explanations[explanations["skipped"].isna() & explanations["primary"].eq(True)]
    methods = _methods(explanations)
    sources = _sources(explanations)
    records: list[dict[str, Any]] = []
    quality: list[list[str]] = []
    cost: list[list[str]] = []
    marks: set[str] = set()
    for method in methods:
        for source in sources:
            rows = _of_source(usable[usable["method"] == method], source)
            for guidance, results in _contrast(rows, (*_QUALITY, *_COST), settings).items():
                key = {"method": method, "guidance": guidance, "roi_source": source}
                printed = PAPER_TABLE3.get((method, guidance), {})
                paper = {}
                for measure in (*_QUALITY, *_COST, *_MACHINES):
                    value = printed.get(measure.name, "")
                    doubts = (
                        _doubts(method, guidance, measure.name) if value not in ("", "—") else ""
                    )
                    result = results.get(measure.name, Estimate(_NAN, _NAN, _NAN, 0))
                    records.append(_record(key, measure, result, paper=value, doubts=doubts))
                    marks |= set(doubts)
                    paper[measure.name] = (value or _EMPTY) + (f" †{doubts}" if doubts else "")
                n = max(_n(result) for result in results.values())
                head = [method, _label(guidance, source, sources), str(n)]
                cells = [_cell(results[m.name], n) for m in _QUALITY]
                dice, iou = paper["fidelity_dice"], paper["fidelity_iou"]
                quality.append([*head, cells[0], dice, cells[1], iou, *cells[2:]])
                cells = [_cell(results[m.name], n, cost=True) for m in _COST]
                flops, times = paper["gflops_ptflops"], [paper[m.name] for m in _MACHINES]
                cost.append([*head, *cells[:3], flops, *cells[3:], *times])

    fidelity, overlap = [m.head for m in _QUALITY[:2]], [m.head for m in _QUALITY[2:]]
    shares = usable["shared_by"].dropna()
    text = [
        "# Table III: explanations with and without ROI guidance",
        f"{_intro(confidence)} Guidance `full` is the paper's \"traditional\", "
        "`roi` is its \"XAI-CLIP\"; Δ rows are roi − full, paired by slice and organ, with "
        "Wilcoxon's signed-rank p over cases.",
        "## Fidelity and localization",
        _pipe(
            ["method", "guidance", "n cases", fidelity[0], "paper", fidelity[1], "paper", *overlap],
            quality,
            names=2,
        ),
        _bullets(
            [
                "*Fidelity* (paper, section IV-C) is the overlap of the baseline mask with the "
                "masks under perturbation, averaged over the forwards. It is 1 for perturbations "
                "that never touch the organ.",
                "*vs prediction* and *vs reference* are the localization of the map: its highest "
                "pixels, as many as the target has, against the baseline mask and against the "
                "reference.",
                "*Chance level* is the expected Dice of a random ranking of the pixels where the "
                "map is defined. Under `roi` these are few: a gain no larger than chance's is "
                "the ROI's, not the explanation's.",
                "The paper defines its Dice and IoU as fidelity and discusses those of LIME and "
                "RISE as localization; they stand beside fidelity.",
                _p_note(),
            ]
        ),
        "## Cost of one slice",
        _pipe(
            ["method", "guidance", "n cases", *(m.head for m in _COST[:3]), "paper",
             *(m.head for m in _COST[3:]), "paper, A (s)", "paper, B (s)"],
            cost,
            names=2,
        ),
        _bullets(
            [
                "Forwards, GFLOPs and time are those of one slice, for all its organs together"
                + (f" ({shares.mean():.1f} on average)" if len(shares) else "")
                + "; ρ is the share of the full plan's forwards that count for an organ.",
                "*GFLOPs, ptflops* is ptflops' `pytorch` backend, the paper's count, which misses "
                "the matrix products of attention; *all* is its `aten` backend. 1 MAC = 2 FLOPs.",
                "The paper's Δ rows are relative changes, printed with a plus where they are "
                "savings. Its text's \"10,000 patches\" fit no grid in it (225 windows at 512 px).",
            ]
        ),
        "† A printed value that cannot hold, or does not mean what it seems to:" if marks else "",
        _bullets([f"†{mark} {_DOUBTS[mark][0]}" for mark in sorted(marks)]),
        _left_out(explanations, _EXPLANATION, skips),
    ]  # fmt: skip
    frame = _tidy(records, ["method", "guidance", "roi_source"])
    return Table(frame, "\n\n".join(part for part in text if part) + "\n")


def table3_variants(
    explanations: pd.DataFrame,
    *,
    skips: Sequence[Skip] = (),
    seed: int = 0,
    resamples: int = 9999,
    confidence: float = 0.95,
) -> Table:
    """Every variant and value function of every method; the arguments of `table3`."""
    settings = Bootstrap(seed, resamples, confidence)
    usable = explanations[explanations["skipped"].isna()]
    sources = _sources(explanations)
    records: list[dict[str, Any]] = []
    shown: list[list[str]] = []
    for method in _methods(explanations):
        of_method = usable[usable["method"] == method]
        names = of_method[["variant", "value"]].drop_duplicates().astype(object).fillna("")
        for variant, value in sorted(names.itertuples(index=False, name=None)):
            chosen = of_method[_is(of_method["variant"], variant) & _is(of_method["value"], value)]
            primary = bool(chosen["primary"].eq(True).any())
            for source in sources:
                contrast = _contrast(_of_source(chosen, source), _VARIANTS, settings)
                for guidance, results in contrast.items():
                    key = {"method": method, "variant": variant, "value": value}
                    key |= {"guidance": guidance, "roi_source": source}
                    for measure in _VARIANTS:
                        records.append(_record(key, measure, results[measure.name]))
                    n = max(_n(result) for result in results.values())
                    cells = [_cell(results[m.name], n, cost=m in _COST) for m in _VARIANTS]
                    name = f"**{variant}**" if primary else variant
                    head = [method, name or _EMPTY, value or _EMPTY]
                    shown.append([*head, _label(guidance, source, sources), str(n), *cells])
    text = [
        "# Table III, all variants",
        f"{_intro(confidence)} As in Table III, whose rows are the variants in bold here.",
        _pipe(
            ["method", "variant", "value", "guidance", "n cases", *(m.head for m in _VARIANTS)],
            shown,
            names=4,
        ),
        _left_out(explanations, _EXPLANATION, skips),
    ]
    frame = _tidy(records, ["method", "variant", "value", "guidance", "roi_source"])
    return Table(frame, "\n\n".join(text) + "\n")


def _contrast(
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
    result[_DELTA] = {
        measure.name: compare(sides["full"], sides["roi"], measure.name, "organ", settings)
        for measure in measures
    }
    return result


def _methods(frame: pd.DataFrame) -> list[str]:
    """The paper's methods in its order, then others; the paper's if there is none."""
    found = set(frame["method"].dropna())
    papers = list(dict.fromkeys(method for method, _ in PAPER_TABLE3))
    return [name for name in papers if name in found or not found] + sorted(found - set(papers))


def _sources(frame: pd.DataFrame) -> list[str]:
    return sorted(set(frame["roi_source"].dropna())) or [""]


def _of_source(frame: pd.DataFrame, source: str) -> pd.DataFrame:
    """Rows of one ROI source; a row without one (full guidance) belongs to each."""
    return frame[_is(frame["roi_source"], source) | frame["roi_source"].isna()]


def _is(column: pd.Series, name: str) -> pd.Series:
    """Where it has this name; "" stands for none."""
    return column.eq(name) if name else column.isna()


def _label(guidance: str, source: str, sources: Sequence[str]) -> str:
    name = "Δ" if guidance == _DELTA else guidance
    return f"{name} ({source})" if len(sources) > 1 else name


def _doubts(method: str, guidance: str, measure: str) -> str:
    return "".join(
        mark
        for mark, (_, where) in _DOUBTS.items()
        if any(m in (None, method) and g in (None, guidance) and n == measure for m, g, n in where)
    )


# --- the tidy frame ------------------------------------------------------------------------------


def _record(
    key: Mapping[str, str],
    measure: Measure,
    result: Estimate | Comparison,
    *,
    paper: str = "",
    doubts: str = "",
) -> dict[str, Any]:
    estimate = result.difference if isinstance(result, Comparison) else result
    return {
        **key,
        "measure": measure.name,
        "unit": measure.unit,
        "better": measure.better,
        "n_cases": estimate.n,
        "mean": estimate.mean,
        "low": estimate.low,
        "high": estimate.high,
        "relative": result.relative if isinstance(result, Comparison) else _NAN,
        "p": result.p if isinstance(result, Comparison) else _NAN,
        "paper": _parse(paper),
        "paper_printed": paper,
        "paper_doubts": doubts,
    }


def _tidy(records: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> pd.DataFrame:
    blank = _record(dict.fromkeys(keys, ""), _DICE, Estimate(_NAN, _NAN, _NAN, 0))
    return pd.DataFrame(list(records), columns=list(blank))


def _parse(printed: str) -> float:
    """A printed value as a number; NaN for "> 0.1" and for the relative changes of Δ rows."""
    text = printed.replace(",", "")
    return float(text) if re.fullmatch(r"\d+(\.\d+)?", text) else _NAN


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if math.isfinite(value)]
    return sum(known) / len(known) if known else _NAN


# --- Markdown ------------------------------------------------------------------------------------


def pipe_table(frame: pd.DataFrame) -> str:
    """A frame as a Markdown table; its columns of text come first, missing numbers are dashes."""
    names = sum(not pd.api.types.is_numeric_dtype(kind) for kind in frame.dtypes)
    rows = [
        [
            value if isinstance(value, str) else _EMPTY if pd.isna(value) else f"{value:.4g}"
            for value in row
        ]
        for row in frame.itertuples(index=False, name=None)
    ]
    return _pipe(list(frame.columns), rows, names) + "\n"


def _pipe(heads: Sequence[str], rows: Sequence[Sequence[str]], names: int) -> str:
    """A pipe table whose first ``names`` columns stand to the left, the others to the right."""
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


def _bullets(notes: Sequence[str]) -> str:
    return "\n".join(f"- {note}" for note in notes)


def _number(value: float, *, signed: bool = False, cost: bool = False) -> str:
    if not math.isfinite(value):
        return _EMPTY
    size = abs(value)
    if not cost:
        text = f"{size:.3f}"
    elif size >= 100 or size == round(size):
        text = f"{size:,.0f}"
    else:
        text = f"{size:#.3g}"
    nonzero = any(digit in "123456789" for digit in text)
    sign = "−" if value < 0 and nonzero else "+" if signed and nonzero else ""
    return sign + text


def _estimate(estimate: Estimate, *, signed: bool = False, cost: bool = False) -> str:
    mean, low, high = (
        _number(value, signed=signed, cost=cost)
        for value in (estimate.mean, estimate.low, estimate.high)
    )
    return mean if low == _EMPTY or low == mean == high else f"{mean} [{low}, {high}]"


def _comparison(result: Comparison, *, cost: bool = False) -> str:
    text = _estimate(result.difference, signed=True, cost=cost)
    if cost and math.isfinite(result.relative):
        text += f" ({_number(100 * result.relative, signed=True, cost=True)}%)"
    if math.isfinite(result.p):
        text += f"; p {'< 0.001' if result.p < 0.001 else f'= {result.p:.3f}'}"
    return text


def _cell(result: Estimate | Comparison, n: int, *, cost: bool = False) -> str:
    """A result, with its n where that differs from the row's."""
    if isinstance(result, Comparison):
        text = _comparison(result, cost=cost)
    else:
        text = _estimate(result, cost=cost)
    return text if _n(result) in (0, n) else f"{text} (n = {_n(result)})"


def _n(result: Estimate | Comparison) -> int:
    return (result.difference if isinstance(result, Comparison) else result).n


def _intro(confidence: float) -> str:
    return f"Mean over cases [{100 * confidence:g}% bootstrap interval]."


def _p_note() -> str:
    return (
        "No interval is given for fewer than two cases, no p for fewer than "
        f"{MIN_DIFFERENCES} cases that differ."
    )


def _left_out(frame: pd.DataFrame, unit: Sequence[str], skips: Sequence[Skip]) -> str:
    """How many rows and cases are missing, and why."""
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
    reasons = sorted(bad["skipped"].value_counts().items(), key=lambda item: (-item[1], item[0]))
    notes = [f"{count} rows: {reason}" for reason, count in reasons[:_REASONS]]
    if rest := sum(count for _, count in reasons[_REASONS:]):
        notes.append(f"{rest} rows: {len(reasons) - _REASONS} other reasons")
    notes += [f"case {case}: {reason}" for case, reason in sorted(before.items())]
    return summary + ("\n\n" + _bullets(notes) if notes else "")
