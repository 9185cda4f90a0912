"""Tables: every cell is parsed back and compared, by key, with the same number made by hand."""

import csv
from itertools import product
from pathlib import Path
from statistics import fmean

import pandas as pd
import pytest

import markdown_page
import table_study as study
from table_cells import (
    Rows,
    items,
    make2,
    make3,
    make_segmenter,
    make_variants,
    same_cell,
    same_record,
    tables,
)
from table_study import SHOWN, gain_of, mean_of
from test_paper import PRINTED2
from xaiclip.errors import Skip
from xaiclip.metrics.schema import EXPLANATIONS, LOCALIZER, SEGMENTER
from xaiclip.report.markdown import pipe_table
from xaiclip.report.tables.data import write
from xaiclip.report.tables.left_out import read_skips
from xaiclip.report.words import plain

POOLED = {
    "text": {"background": 0.111, "liver": 0.987, "right kidney": 0.876, "spleen": 0.765},
    "no_text": {"background": 0.122, "liver": 0.654, "right kidney": 0.543, "aorta": 0.432},
}
MEAN = "mean of organs"

# --- Table II ---


def classes_of(label: str) -> list[str]:
    return list(study.ORGANS) if label == MEAN else [label]


def expected2(rows: Rows, label: str, column: str, variant: str) -> dict[str, float]:
    members = classes_of(label)
    if column == "auc_roc_pooled":
        known = [POOLED[variant][name] for name in members if name in POOLED[variant]]
        n = mean_of(rows, "auc_roc", "class", variant=variant, **{"class": members})["n"]
        return {"n": n, **({"mean": fmean(known)} if known else {})}
    if variant == "delta":
        sides = {"variant": "no_text"}, {"variant": "text"}
        return gain_of(rows, column, "class", *sides, **{"class": members})
    return mean_of(rows, column, "class", variant=variant, **{"class": members})


@pytest.mark.parametrize(
    ("number", "heads", "measure"),
    [
        (0, [("Dice ↑", "dice", "text"), ("paper", "dice", "paper"),
             ("without text", "dice", "no_text"), ("difference; p", "dice", "delta")], "dice"),
        (1, [("AUC-ROC ↑", "auc_roc", "text"), ("pooled ↑", "auc_roc_pooled", "text"),
             ("paper", "auc_roc", "paper"), ("without text", "auc_roc", "no_text"),
             ("pooled without text", "auc_roc_pooled", "no_text"),
             ("difference; p", "auc_roc", "delta")], "auc_roc"),
    ],
)  # fmt: skip
def test_table2_shows_each_number_at_its_place(
    tmp_path: Path, number: int, heads: list[tuple[str, str, str]], measure: str
) -> None:
    rows = study.localizer_rows()
    found, lines = tables(make2(tmp_path, rows, pooled=POOLED).markdown)[number]
    assert found == ["class", "n cases", *(head for head, _, _ in heads)]
    assert [line[0] for line in lines] == ["background", *SHOWN, MEAN]
    for label, n, *cells in lines:
        assert int(n) == expected2(rows, label, measure, "text")["n"]
        for cell, (_, column, variant) in zip(cells, heads, strict=True):
            if variant == "paper":
                assert cell == PRINTED2.get((label, column), "—")
                continue
            expected = expected2(rows, label, column, variant)
            if "mean" not in expected:
                assert cell.startswith("—")
            else:
                same_cell(cell, expected, int(n))


def test_table2_as_data(tmp_path: Path) -> None:
    rows = study.localizer_rows()
    frame = make2(tmp_path, rows, pooled=POOLED).frame
    for label in ("background", *SHOWN, MEAN):
        for measure, variant in [
            *product(("dice", "auc_roc"), ("text", "no_text", "delta")),
            *product(("auc_roc_pooled",), ("text", "no_text")),
        ]:
            where = {"class": label, "variant": variant, "measure": measure}
            same_record(frame, expected2(rows, label, measure, variant), **where)
    assert len(frame) == 6 * 8
    assert set(frame["better"]) == {"higher"}
    printed = frame[frame["paper_printed"] != ""]
    got = {(row["class"], row["measure"]): row for _, row in printed.iterrows()}
    assert {key: row["paper_printed"] for key, row in got.items()} == {
        key: cell for key, cell in PRINTED2.items() if key[0] in ("background", *SHOWN)
    }
    assert {row["variant"] for row in got.values()} == {"text"}
    assert all(row["paper"] == float(row["paper_printed"]) for row in got.values())


def test_the_mean_of_organs_is_without_the_background(tmp_path: Path) -> None:
    rows = [
        {"case": case, "slice": 1, "class": name, "variant": "text", "dice": dice}
        for case in ("a", "b")
        for name, dice in (("background", 1.0), ("spleen", 0.2), ("liver", 0.6))
    ]
    table = make2(tmp_path, rows)
    assert tables(table.markdown)[0][1][-1][:3] == [MEAN, "2", "0.400"]
    assert "Mean of organs is without the background." in items(table.markdown)


def test_table2_has_the_classes_that_were_studied(tmp_path: Path) -> None:
    rows = [row for row in study.localizer_rows() if row["class"] in ("background", "liver")]
    assert set(make2(tmp_path, rows).frame["class"]) == {"background", "liver", MEAN}
    nothing = make2(tmp_path, [])
    names = ["background", "liver", "right kidney", "left kidney", "spleen", "pancreas", MEAN]
    assert [line[0] for line in tables(nothing.markdown)[0][1]] == names


# --- the segmenter ---


def expected_segmenter(
    rows: Rows, modality: str, label: str, prompt: str, column: str
) -> dict[str, float]:
    organs = list(SHOWN) if label == MEAN else [label]
    return mean_of(rows, column, "organ", modality=modality, prompt=prompt, organ=organs)


SEGMENTER_COLUMNS = [
    ("Dice ↑, reference box", "reference", "dice"),
    ("IoU ↑, reference box", "reference", "iou"),
    ("HD95 (mm) ↓, reference box", "reference", "hd95_mm"),
    ("Dice ↑, ROI box", "roi", "dice"),
    ("IoU ↑, ROI box", "roi", "iou"),
    ("HD95 (mm) ↓, ROI box", "roi", "hd95_mm"),
]


def test_segmenter_table_keeps_modalities_and_boxes_apart(tmp_path: Path) -> None:
    rows = study.segmenter_rows()
    table = make_segmenter(tmp_path, rows)
    ((heads, lines),) = tables(table.markdown)
    assert heads == ["modality", "organ", "n cases", *(head for head, _, _ in SEGMENTER_COLUMNS)]
    labels = [(line[0], line[1]) for line in lines]
    assert labels == [*product(("CT", "MR"), (*SHOWN, MEAN))]
    for modality, label, n, *cells in lines:
        for cell, (_, prompt, column) in zip(cells, SEGMENTER_COLUMNS, strict=True):
            expected = expected_segmenter(rows, modality, label, prompt, column)
            same_cell(cell, expected, int(n))
            where = {"modality": modality, "organ": label, "prompt": prompt, "measure": column}
            same_record(table.frame, expected, **where)
    assert [int(line[2]) for line in lines] == [6, 7, 7, 7, 7, 2, 2, 2, 2, 2]
    # one MR case has no distance for the spleen with the ROI's box
    assert lines[labels.index(("MR", "spleen"))][-1].endswith(" (n = 1)")
    units = table.frame.groupby("measure")[["unit", "better"]].first()
    assert units.loc["hd95_mm"].tolist() == ["mm", "lower"]
    assert units.loc["dice"].tolist() == units.loc["iou"].tolist() == ["", "higher"]


def test_a_segmenter_without_a_reference_has_no_rows_but_reasons(tmp_path: Path) -> None:
    rows = [
        {key: row[key] for key in ("case", "slice", "organ", "prompt", "modality")}
        | {"skipped": "the case has no reference label"}
        for row in study.segmenter_rows()
    ]
    table = make_segmenter(tmp_path, rows)
    ((_, lines),) = tables(table.markdown)
    assert [line[1:] for line in lines] == [[MEAN, "0", *["—"] * 6]]
    assert f"{len(rows)} rows: the case has no reference label" in items(table.markdown)
    assert f"**Left out:** {len(rows)} of {len(rows)} rows" in table.markdown
    assert "and 9 of 9 cases." in table.markdown


# --- what was left out ---


def test_what_was_left_out_stands_below(tmp_path: Path) -> None:
    rows = study.explanation_rows()
    skips = [
        Skip("eve", "volumes", "'x.nii.gz' is truncated"),
        Skip("zoe", "slices", "no pancreas", 4, "pancreas"),
    ]
    table = make3(tmp_path, rows, skips=skips)
    units = {(r["case"], r["slice"], r["organ"], r["method"], r["roi_source"]) for r in rows}
    lost = sum(row.get("skipped") is not None for row in rows)
    assert f"**Left out:** {lost} of {len(units)} rows" in table.markdown
    assert "and 1 of 10 cases." in table.markdown
    assert items(table.markdown)[-2:] == [
        f"{lost} rows: the ROI is empty",
        "case eve: 'x.nii.gz' is truncated",
    ]


def test_skips_are_read_for_the_wanted_cases(tmp_path: Path) -> None:
    path = tmp_path / "skipped.tsv"
    path.write_text(
        "case\tslice\torgan\tstage\treason\n"
        "NA\t\t\tvolumes\ttruncated\n"
        "07\t3\tliver\troi\tempty\n"
        "train1\t\t\tvolumes\ttruncated\n"
    )
    assert read_skips(path, ["NA", "07", "08"]) == [
        Skip("NA", "volumes", "truncated"),
        Skip("07", "roi", "empty", 3, "liver"),
    ]


def test_the_widest_reason_is_named(tmp_path: Path) -> None:
    skips = [Skip("a", "slices", "all of it"), Skip("a", "slices", "an organ", 3, "liver")]
    for order in (skips, skips[::-1]):
        assert items(make3(tmp_path, [], skips=order).markdown)[-1] == "case a: all of it"


def test_long_lists_of_reasons_are_cut_and_the_most_frequent_come_first(tmp_path: Path) -> None:
    rows = [
        {"case": f"c{k}", "organ": organ, "skipped": f"reason {k:02d}"}
        for k in range(30)
        for organ in ("liver", "spleen")[: 1 + (k == 17)]
    ]
    markdown = make3(tmp_path, rows).markdown
    assert "**Left out:** 31 of 31 rows" in markdown
    assert "and 30 of 30 cases." in markdown
    named = [f"1 rows: reason {k:02d}" for k in range(19)]
    assert items(markdown)[-21:] == [
        "2 rows: reason 17", *(one for one in [*named, "1 rows: reason 19"] if "17" not in one),
        "10 rows: 10 other reasons",
    ]  # fmt: skip


# --- any study ---

MAKE = {
    "table2": (make2, study.localizer_rows),
    "segmenter": (make_segmenter, study.segmenter_rows),
    "table3": (make3, study.explanation_rows),
    "variants": (make_variants, study.explanation_rows),
}


@pytest.mark.slow
@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize("cases", [[], ["abe"]])
@pytest.mark.parametrize("name", MAKE)
def test_any_number_of_cases_gives_a_table(tmp_path: Path, name: str, cases: list[str]) -> None:
    make, rows = MAKE[name]
    table = make(tmp_path, [row for row in rows() if row["case"] in cases])
    assert table.frame["low"].isna().all()
    assert table.frame["p"].isna().all()
    assert set(table.frame["n_cases"]) <= {0, len(cases)}
    assert "nan" not in table.markdown
    for heads, lines in tables(table.markdown):
        assert all(len(line) == len(heads) for line in lines)


@pytest.mark.slow
@pytest.mark.parametrize("name", MAKE)
def test_tables_are_the_same_in_any_order(tmp_path: Path, name: str) -> None:
    make, rows = MAKE[name]
    one, two = make(tmp_path, rows()), make(tmp_path, rows()[::-1])
    assert one.markdown == two.markdown
    pd.testing.assert_frame_equal(one.frame, two.frame)


@pytest.mark.slow
@pytest.mark.parametrize("name", MAKE)
def test_files_hold_what_the_table_holds(tmp_path: Path, name: str) -> None:
    make, rows = MAKE[name]
    table = make(tmp_path, rows())
    write(table, tmp_path / "t.csv", tmp_path / "t.md")
    assert (tmp_path / "t.md").read_text(encoding="utf-8") == table.markdown
    with open(tmp_path / "t.csv", encoding="utf-8", newline="") as stream:
        stored = list(csv.DictReader(stream))
    assert list(stored[0]) == list(table.frame.columns)
    assert [row["measure"] for row in stored] == table.frame["measure"].tolist()
    means = [float(row["mean"] or "nan") for row in stored]
    assert means == pytest.approx(table.frame["mean"].tolist(), nan_ok=True)


def test_only_skipped_rows_give_a_table(tmp_path: Path) -> None:
    row = {"case": "a", "organ": "liver", "method": "lime", "guidance": "roi", "skipped": "empty"}
    table = make3(tmp_path, [row])
    assert [line[0] for line in tables(table.markdown)[0][1]] == ["lime"] * 3
    assert "**Left out:** 1 of 1 rows" in table.markdown


# --- names and reasons that hold anything ---

NASTY = ["<script>alert(1)</script>", "a|b", "two\nlines", "`code` *bold* _so_", "[x](http://y)",
         "![i](z)", "back\\slash|", "&lt;b&gt; & ~~s~~", "\u202egnp.exe\x1b[31m", "<!-- c -->",
         "**", "$x$", "# head", "in_mask_value"]  # fmt: skip
INNOCENT = {"inline", "text", "text_special", "strong_open", "strong_close", "em_open", "em_close",
            "code_inline", "paragraph_open", "paragraph_close", "heading_open", "heading_close",
            "bullet_list_open", "bullet_list_close", "list_item_open", "list_item_close",
            "table_open", "table_close", "thead_open", "thead_close", "tbody_open", "tbody_close",
            "tr_open", "tr_close", "th_open", "th_close", "td_open", "td_close"}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", NASTY)
def test_names_are_shown_letter_by_letter(tmp_path: Path, name: str) -> None:
    shown = plain(name)
    skips = [Skip(name, "volumes", name)]
    common = {"case": "a", "slice": 1, "modality": name, "organ": name, "class": name}
    rows = {
        "localizer": {"variant": "text", "dice": 0.5, "auc_roc": 0.9},
        "segmenter": {"prompt": "roi", "dice": 0.5, "iou": 0.4},
        "explanations": {"method": name, "guidance": "roi", "roi_source": name, "primary": True,
                         "variant": name, "value": name, "rho": 0.5},
    }  # fmt: skip
    bad = {"case": "b", "skipped": name}
    makers = [
        (make2, "localizer", LOCALIZER, [0]),
        (make_segmenter, "segmenter", SEGMENTER, [0, 1]),
        (make3, "explanations", EXPLANATIONS, [0]),
        (make_variants, "explanations", EXPLANATIONS, [0, 1, 2]),
    ]
    for make, kind, schema, places in makers:
        row = {**common, **rows[kind]}
        row = {key: value for key, value in row.items() if key in schema.names}
        page = markdown_page.read(make(tmp_path, [row, bad], skips=skips).markdown)
        assert page.kinds <= INNOCENT, page.kinds - INNOCENT
        for heads, lines in page.tables:
            assert all(len(line) == len(heads) for line in lines)
            for place in places:
                assert shown in [line[place] for line in lines]
        assert page.items[-2:] == [f"1 rows: {shown}", f"case {shown}: {shown}"]


def test_a_frame_as_a_table() -> None:
    frame = pd.DataFrame({"plan": ["a", "b|<i>"], "error": [0.123456, float("nan")]})
    text = pipe_table(frame)
    assert tables(text) == [(["plan", "error"], [["a", "0.1235"], ["b|<i>", "—"]])]
    assert "<i>" not in text
    widths = {len(line) for line in text.splitlines()}
    assert len(widths) == 1
