"""Table III and its variants: every cell, by key, against the same number made by hand."""

import math
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

import pandas as pd
import pytest

import table_study as study
from table_cells import (
    Rows,
    items,
    make3,
    make_variants,
    same_cell,
    same_record,
    tables,
)
from table_study import gain_of, mean_of
from test_paper import DOUBTS, PRINTED3
from xaiclip.report.tables.layout import number

# --- Table III ---

QUALITY = [
    ("fidelity Dice", "fidelity_dice"),
    ("paper", "fidelity_dice"),
    ("fidelity IoU", "fidelity_iou"),
    ("paper", "fidelity_iou"),
    ("Dice vs prediction ↑", "localization_dice_pred"),
    ("its chance level", "localization_dice_pred_chance"),
    ("IoU vs prediction ↑", "localization_iou_pred"),
    ("Dice vs reference ↑", "localization_dice_gt"),
    ("its chance level", "localization_dice_gt_chance"),
    ("IoU vs reference ↑", "localization_iou_gt"),
]
COST = [
    ("forwards ↓", "n_forwards"),
    ("ρ of the slice ↓", "rho_union"),
    ("ρ of an organ ↓", "rho"),
    ("GFLOPs, ptflops ↓", "gflops_ptflops"),
    ("paper", "gflops_ptflops"),
    ("GFLOPs, all ↓", "gflops_total"),
    ("paper, A (s)", "seconds_machine_a"),
    ("paper, B (s)", "seconds_machine_b"),
]
ORDER = ("occlusion", "lime", "rise", "gradient")
GUIDED = {"full": "full", "roi": "roi", "Δ": "delta"}


def expected3(
    rows: Rows, method: str, guidance: str, column: str, source: str = "localizer", **where: Any
) -> dict[str, float]:
    where = {"method": method, **where}
    full, roi = {"guidance": "full"}, {"guidance": "roi", "roi_source": source}
    if guidance == "delta":
        return gain_of(rows, column, "organ", full, roi, **where)
    return mean_of(rows, column, "organ", **(full if guidance == "full" else roi), **where)


def printed3(method: str, guidance: str, column: str) -> str:
    text = PRINTED3.get((method, guidance, column), "—")
    marks = DOUBTS.get((method, guidance, column), "")
    return f"{text} †{marks}" if marks else text


@pytest.mark.slow
@pytest.mark.parametrize(("number", "columns"), [(0, QUALITY), (1, COST)], ids=["quality", "cost"])
def test_table3_shows_each_number_at_its_place(
    tmp_path: Path, number: int, columns: list[tuple[str, str]]
) -> None:
    rows = study.explanation_rows()
    heads, lines = tables(make3(tmp_path, rows).markdown)[number]
    assert heads == ["method", "guidance", "n cases", *(head for head, _ in columns)]
    assert [(line[0], line[1]) for line in lines] == [*product(ORDER, GUIDED)]
    for method, words, n, *cells in lines:
        guidance = GUIDED[words]
        assert int(n) == 9
        for cell, (head, column) in zip(cells, columns, strict=True):
            if head.startswith("paper"):
                assert cell == printed3(method, guidance, column), (method, words, column)
            else:
                expected = expected3(rows, method, guidance, column, primary=True)
                same_cell(cell, expected, int(n), cost=number == 1)


@pytest.mark.slow
def test_table3_as_data(tmp_path: Path) -> None:
    rows = study.explanation_rows()
    frame = make3(tmp_path, rows).frame
    ours = dict.fromkeys(column for head, column in [*QUALITY, *COST] if head[:5] != "paper")
    for method, guidance, column in product(ORDER, GUIDED.values(), ours):
        where = {"method": method, "guidance": guidance, "measure": column}
        expected = expected3(rows, method, guidance, column, primary=True)
        same_record(frame, expected, roi_source="localizer", **where)
    printed = frame[frame["paper_printed"] != ""]
    got = {(row.method, row.guidance, row.measure): row for row in printed.itertuples()}
    assert {key: row.paper_printed for key, row in got.items()} == PRINTED3
    assert {key: row.paper_doubts for key, row in got.items() if row.paper_doubts} == DOUBTS
    assert got["lime", "roi", "gflops_ptflops"].paper == 94431
    assert pd.isna(got["rise", "roi", "fidelity_iou"].paper)


def test_which_values_are_the_better_ones(tmp_path: Path) -> None:
    frame = make3(tmp_path, study.explanation_rows()).frame
    better = dict(zip(frame["measure"], frame["better"], strict=True))
    # fidelity says how little was changed, not how good a map is
    lower = {"n_forwards", "rho", "rho_union", "gflops_ptflops", "gflops_total",
             "seconds_machine_a", "seconds_machine_b"}  # fmt: skip
    higher = {f"localization_{one}_{of}" for one in ("dice", "iou") for of in ("pred", "gt")}
    assert {name for name, way in better.items() if way == "lower"} == lower
    assert {name for name, way in better.items() if way == "higher"} == higher


def test_our_seconds_are_in_no_table(tmp_path: Path) -> None:
    table = make3(tmp_path, study.explanation_rows())
    assert "seconds_total" not in set(table.frame["measure"])
    ours = table.frame[table.frame["unit"] == "s"]
    assert set(ours["measure"]) == {"seconds_machine_a", "seconds_machine_b"}
    assert ours["mean"].isna().all()
    assert any(item.startswith("Our seconds are not shown") for item in items(table.markdown))


def test_notes_say_what_the_numbers_are(tmp_path: Path) -> None:
    table = make3(tmp_path, study.explanation_rows())
    notes = " ".join(items(table.markdown))
    shared = [row["shared_by"] for row in study.explanation_rows() if row.get("shared_by")
              and row["primary"]]  # fmt: skip
    assert f"for all its organs together ({fmean(shared):.1f} on average)" in notes
    assert "fewer than two cases, no p for fewer than 6 cases that differ" in notes
    assert "[90% bootstrap interval]" in table.markdown
    for mark in "abcdef":
        assert f"- †{mark} " in table.markdown


@pytest.mark.slow
def test_roi_sources_are_kept_apart(tmp_path: Path) -> None:
    rows = study.explanation_rows(("localizer", "reference"))
    table = make3(tmp_path, rows)
    ((_, lines), _) = tables(table.markdown)
    sources = ("localizer", "reference")
    expected = [(m, f"{g} ({s})") for m in ORDER for s in sources for g in GUIDED]
    assert [(line[0], line[1]) for line in lines] == expected
    for source, guidance in product(sources, GUIDED.values()):
        made = expected3(
            rows, "rise", guidance, "localization_dice_pred", source=source, primary=True
        )
        where = {"method": "rise", "guidance": guidance, "roi_source": source}
        same_record(table.frame, made, measure="localization_dice_pred", **where)
        line = lines[expected.index(("rise", f"{'Δ' if guidance == 'delta' else guidance} "
                                             f"({source})"))]  # fmt: skip
        same_cell(line[3 + 4], made, 9)


# --- all variants ---

VARIANTS = [
    ("fidelity Dice", "fidelity_dice"),
    ("Dice vs prediction ↑", "localization_dice_pred"),
    ("its chance level", "localization_dice_pred_chance"),
    ("Dice vs reference ↑", "localization_dice_gt"),
    ("its chance level", "localization_dice_gt_chance"),
    ("R²", "lime_r2"),
    ("forwards ↓", "n_forwards"),
]


@pytest.mark.slow
def test_variants_show_each_number_at_its_place(tmp_path: Path) -> None:
    rows = study.explanation_rows()
    table = make_variants(tmp_path, rows)
    ((heads, lines),) = tables(table.markdown)
    names = ["method", "variant", "value", "guidance", "n cases"]
    assert heads == [*names, *(head for head, _ in VARIANTS)]
    keys = [(line[0], line[1], line[2], line[3]) for line in lines]
    assert keys == [*product(ORDER, ("other", "ours"), ("hard_dice", "soft_dice"), GUIDED)]
    for method, variant, value, words, n, *cells in lines:
        where = {"variant": variant, "value": value}
        for cell, (_, column) in zip(cells, VARIANTS, strict=True):
            expected = expected3(rows, method, GUIDED[words], column, **where)
            same_cell(cell, expected, int(n), cost=column == "n_forwards")
            key = {"method": method, "guidance": GUIDED[words], "measure": column, **where}
            same_record(table.frame, expected, **key)


@pytest.mark.slow
def test_the_primary_variant_is_bold(tmp_path: Path) -> None:
    markdown = make_variants(tmp_path, study.explanation_rows()).markdown
    lines = [line.split("|") for line in markdown.splitlines() if line.startswith("|")][2:]
    bold = {(cells[2].strip(), cells[3].strip()) for cells in lines if "**" in cells[2]}
    assert bold == {("**ours**", "soft_dice")}
    assert sum("**" in cells[2] for cells in lines) == 4 * 3


@pytest.mark.parametrize(
    ("value", "plain", "cost"),
    [
        (0.0, "0.000", "0"),
        (-0.0004, "0.000", "−0.000400"),
        (0.0625, "0.062", "0.0625"),
        (-3.25, "−3.250", "−3.25"),
        (12.0, "12.000", "12"),
        (12.345, "12.345", "12.3"),
        (99.94, "99.940", "99.9"),
        (99.96, "99.960", "100"),
        (100.4, "100.400", "100"),
        (-987.6, "−987.600", "−988"),
        (1234567.8, "1234567.800", "1,234,568"),
        (float("nan"), "—", "—"),
        (float("inf"), "—", "—"),
    ],
)
def test_numbers_as_cells_show_them(value, plain, cost):
    assert number(value) == plain
    assert number(value, cost=True) == cost
    signs = {number(value, signed=True)[0], number(value, signed=True, cost=True)[0]}
    if value > 0 and math.isfinite(value):
        assert signs == {"+"}
    else:
        assert "+" not in signs
