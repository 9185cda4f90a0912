import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from xaiclip.errors import Skip
from xaiclip.evaluate.schema import (
    EXPLANATIONS,
    LOCALIZER,
    SEGMENTER,
    concat_tables,
    write_table,
)
from xaiclip.organs import SIX_CLASSES
from xaiclip.report.tables import (
    PAPER_TABLE2,
    PAPER_TABLE3,
    Table,
    pipe_table,
    read_skips,
    segmenter_table,
    table2,
    table3,
    table3_variants,
    write,
)

FEW = {"resamples": 200}
METHODS = ("occlusion", "lime", "rise")


def localizer_rows(cases: int) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    return [
        {
            "case": f"case{case}",
            "slice": 4,
            "class": name,
            "variant": variant,
            "modality": "CT",
            "n_pixels": 50,
            "dice": 0.8 - 0.1 * (variant == "no_text") + 0.05 * rng.random(),
            "auc_roc": np.float32(0.99),
        }
        for case in range(cases)
        for name in SIX_CLASSES
        for variant in ("text", "no_text")
    ]


def explanation_rows(cases: int, sources: tuple[str, ...] = ("localizer",)) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    return [
        {
            "case": f"case{case}",
            "slice": 4,
            "organ": organ,
            "method": method,
            "guidance": guidance,
            "variant": variant,
            "value": "soft_dice",
            "primary": variant == "main",
            "roi_source": source if guidance == "roi" else None,
            "modality": "CT",
            "n_forwards": forwards,
            "n_forwards_full": 226,
            "shared_by": 2,
            "rho": forwards / 226,
            "gflops_ptflops": 742.0 * forwards,
            "gflops_total": 976.0 * forwards,
            "seconds_total": 0.01 * forwards,
            "fidelity_dice": 0.9 + 0.05 * rng.random() if variant == "main" else 0.0,
            "fidelity_iou": 0.85,
            "localization_dice_pred": 0.5 + 0.2 * (guidance == "roi") + 0.01 * rng.random(),
            "localization_iou_pred": 0.4,
            "localization_dice_pred_chance": 0.05,
        }
        for case in range(cases)
        for organ in ("liver", "spleen")
        for method in METHODS
        for guidance, forwards in (("full", 226), ("roi", 46))
        for source in (sources if guidance == "roi" else sources[:1])
        for variant in ("main", "other")
    ]


def read(tmp_path: Path, rows: list[dict[str, Any]], schema: pa.Schema) -> pd.DataFrame:
    write_table(tmp_path / "rows.parquet", rows, schema)
    return pd.read_parquet(tmp_path / "rows.parquet")


def cell(table: Table, **where: Any) -> pd.Series:
    chosen = table.frame
    for column, value in where.items():
        chosen = chosen[chosen[column] == value]
    assert len(chosen) == 1
    return chosen.iloc[0]


# --- files ---


@pytest.mark.parametrize("schema", [LOCALIZER, SEGMENTER, EXPLANATIONS])
def test_files_have_their_types_whatever_they_hold(tmp_path: Path, schema: pa.Schema) -> None:
    for rows in ([], [{"case": "a"}], [{"case": "a", "skipped": "empty"}, {"case": "b"}]):
        write_table(tmp_path / "x.parquet", rows, schema)
        assert pq.read_schema(tmp_path / "x.parquet").equals(schema)
        assert pq.read_table(tmp_path / "x.parquet").num_rows == len(rows)


def test_contract_columns_are_there() -> None:
    design = """case organ method guidance variant modality seed n_forwards n_forwards_full n_patch
        rho gflops_ptflops gflops_total seconds_total seconds_roi seconds_perturb seconds_encode
        seconds_decode seconds_aggregate device precision baseline_dice_gt fidelity_dice
        fidelity_iou localization_dice_pred localization_iou_pred localization_dice_gt
        localization_iou_gt skipped"""
    assert set(design.split()) <= set(EXPLANATIONS.names)
    assert {"case", "organ", "prompt", "dice", "iou"} <= set(SEGMENTER.names)
    assert {"case", "class", "dice", "auc_roc"} <= set(LOCALIZER.names)


def test_nan_and_numpy_values_are_stored_plainly(tmp_path: Path) -> None:
    row = {"case": "a", "slice": np.int32(3), "primary": np.True_, "rho": np.float32(0.5)}
    write_table(tmp_path / "x.parquet", [{**row, "lime_r2": math.nan}], EXPLANATIONS)
    stored = pq.read_table(tmp_path / "x.parquet").to_pylist()[0]
    assert (stored["slice"], stored["primary"], stored["rho"]) == (3, True, 0.5)
    assert stored["lime_r2"] is None


def test_unknown_columns_are_refused_and_leave_no_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no column 'dise'"):
        write_table(tmp_path / "x.parquet", [{"case": "a", "dise": 1.0}], LOCALIZER)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("most", [1, 40, 10**6], ids=["a case", "some cases", "all"])
def test_concat_is_sorted_whatever_the_batches(tmp_path: Path, monkeypatch: Any, most: int) -> None:
    for name, value in {"_ROW_GROUP": 7, "_RANGE": most, "_DEALT": 30}.items():
        monkeypatch.setattr(f"xaiclip.evaluate.schema.{name}", value)
    rows = [*explanation_rows(4), {"case": "case9", "skipped": "no organ"}]
    rows += [{"case": "\U0001f600 Größe", "organ": "Ω"}, {"case": None, "skipped": "nobody"}]
    rows += [{"case": "case1", "slice": None, "skipped": f"twin {k}"} for k in range(3)]
    paths = [tmp_path / f"{k}.parquet" for k in range(3)]
    for k, path in enumerate(paths):
        write_table(path, rows[k::3], EXPLANATIONS)
    concat_tables(paths[::-1], tmp_path / "joined.parquet", EXPLANATIONS)
    # rows of one key keep the order of their files
    write_table(tmp_path / "all.parquet", [*rows[::3], *rows[1::3], *rows[2::3]], EXPLANATIONS)
    assert pq.read_table(tmp_path / "joined.parquet").equals(
        pq.read_table(tmp_path / "all.parquet")
    )
    assert {path.suffix for path in tmp_path.iterdir()} == {".parquet"}
    assert len(list(tmp_path.iterdir())) == 5


def test_concat_of_nothing_and_of_a_stranger(tmp_path: Path) -> None:
    concat_tables([], tmp_path / "none.parquet", LOCALIZER)
    assert pq.read_schema(tmp_path / "none.parquet").equals(LOCALIZER)
    write_table(tmp_path / "old.parquet", [{"case": "a"}], SEGMENTER)
    with pytest.raises(ValueError, match=r"old\.parquet"):
        concat_tables([tmp_path / "old.parquet"], tmp_path / "x.parquet", LOCALIZER)


# --- Table II ---


def test_table2(tmp_path: Path) -> None:
    frame = read(tmp_path, localizer_rows(7), LOCALIZER)
    table = table2(frame, pooled={"text": {"liver": 0.987}}, **FEW)
    for name in SIX_CLASSES:
        row = cell(table, **{"class": name}, variant="text", measure="dice")
        mine = frame[(frame["class"] == name) & (frame["variant"] == "text")]
        assert row["mean"] == pytest.approx(mine["dice"].mean())
        assert row["low"] < row["mean"] < row["high"]
        assert row["n_cases"] == 7
        assert row["paper"] == float(PAPER_TABLE2[name]["dice"])
    gain = cell(table, **{"class": "liver"}, variant="delta", measure="dice")
    assert gain["mean"] == pytest.approx(0.1, abs=0.03)
    assert gain["p"] == pytest.approx(2 / 2**7)
    pooled = cell(table, **{"class": "liver"}, variant="text", measure="auc_roc_pooled")
    assert pooled["mean"] == 0.987
    assert "| liver " in table.markdown
    assert "0.987" in table.markdown
    assert "mean of organs" in table.markdown


def test_table2_of_five_classes(tmp_path: Path) -> None:
    rows = [row for row in localizer_rows(2) if row["class"] != "pancreas"]
    table = table2(read(tmp_path, rows, LOCALIZER), **FEW)
    assert "pancreas" not in set(table.frame["class"])


# --- Table III ---


def test_table3(tmp_path: Path) -> None:
    frame = read(tmp_path, explanation_rows(7), EXPLANATIONS)
    table = table3(frame, **FEW)
    for method in METHODS:
        full = cell(table, method=method, guidance="full", measure="fidelity_dice")
        assert full["mean"] > 0.9  # the variant that is not primary stays out
        delta = cell(table, method=method, guidance="delta", measure="localization_dice_pred")
        assert delta["mean"] == pytest.approx(0.2, abs=0.02)
        assert delta["low"] <= delta["mean"] <= delta["high"]
        assert delta["p"] == pytest.approx(2 / 2**7)
        cost = cell(table, method=method, guidance="delta", measure="n_forwards")
        assert cost["mean"] == -180
        assert cost["relative"] == pytest.approx(-180 / 226)
    assert "−180 (−79.6%); p = 0.016" in table.markdown


def test_the_papers_values_and_their_doubts(tmp_path: Path) -> None:
    table = table3(read(tmp_path, explanation_rows(2), EXPLANATIONS), **FEW)
    doubts = {
        (row.method, row.guidance, row.measure): row.paper_doubts
        for row in table.frame.itertuples()
        if row.paper_printed
    }
    assert len(doubts) == sum(len(cells) for cells in PAPER_TABLE3.values())
    assert doubts["occlusion", "full", "fidelity_iou"] == "a"
    assert doubts["occlusion", "roi", "fidelity_iou"] == ""
    assert doubts["rise", "full", "fidelity_dice"] == "b"
    assert doubts["occlusion", "roi", "gflops_ptflops"] == "c"
    assert doubts["rise", "full", "gflops_ptflops"] == "d"
    assert doubts["rise", "roi", "seconds_machine_b"] == "e"
    assert doubts["occlusion", "full", "seconds_machine_b"] == "cf"
    assert doubts["lime", "full", "gflops_ptflops"] == ""
    for mark in "abcdef":
        assert f"- †{mark} " in table.markdown
    assert cell(table, method="lime", guidance="roi", measure="gflops_ptflops")["paper"] == 94431
    assert math.isnan(cell(table, method="rise", guidance="roi", measure="fidelity_iou")["paper"])


def test_doubts_follow_from_the_papers_own_numbers() -> None:
    def number(text: str) -> float:
        return float(text.replace(",", "").rstrip("%"))

    occlusion = {name: PAPER_TABLE3["occlusion", name] for name in ("full", "roi")}
    mean_dice = number(occlusion["full"]["fidelity_dice"])
    assert number(occlusion["full"]["fidelity_iou"]) < mean_dice / (2 - mean_dice)
    forwards = [number(cells["gflops_ptflops"]) / 742 for cells in occlusion.values()]
    assert [round(value) for value in forwards] == [227, 197]
    assert forwards[1] / forwards[0] == pytest.approx(0.87, abs=0.005)
    for machine, share in (("a", 0.38), ("b", 0.31)):
        times = [number(cells[f"seconds_machine_{machine}"]) for cells in occlusion.values()]
        assert times[1] / times[0] == pytest.approx(share, abs=0.005)
    rise = [number(PAPER_TABLE3["rise", name]["seconds_machine_b"]) for name in ("full", "roi")]
    delta = number(PAPER_TABLE3["rise", "delta"]["seconds_machine_b"])
    assert 100 * (1 - rise[0] / rise[1]) == pytest.approx(delta, abs=0.05)
    assert pytest.approx(1.48e6, rel=0.01) == 2000 * 742


def test_roi_sources_are_kept_apart(tmp_path: Path) -> None:
    frame = read(tmp_path, explanation_rows(3, ("localizer", "reference")), EXPLANATIONS)
    table = table3(frame, **FEW)
    assert "roi (reference)" in table.markdown
    for source in ("localizer", "reference"):
        where = {"method": "rise", "roi_source": source, "measure": "localization_dice_pred"}
        assert cell(table, guidance="roi", **where)["n_cases"] == 3
        assert cell(table, guidance="delta", **where)["n_cases"] == 3


def test_variants(tmp_path: Path) -> None:
    table = table3_variants(read(tmp_path, explanation_rows(3), EXPLANATIONS), **FEW)
    assert set(table.frame["variant"]) == {"main", "other"}
    assert "**main**" in table.markdown
    assert "**other**" not in table.markdown


def test_what_was_left_out_stands_below(tmp_path: Path) -> None:
    rows = explanation_rows(3)
    for row in rows:
        if row["organ"] == "spleen" and row["case"] == "case1":
            for name in EXPLANATIONS.names[EXPLANATIONS.names.index("seed") : -1]:
                row.pop(name, None)
            row["skipped"] = "the segmenter found no spleen"
    skips = [
        Skip("case7", "volumes", "'x.nii.gz' is truncated"),
        Skip("case1", "slices", "no pancreas", 4, "pancreas"),
    ]
    table = table3(read(tmp_path, rows, EXPLANATIONS), skips=skips, **FEW)
    assert "6 of 36 rows" in table.markdown
    assert "1 of 4 cases" in table.markdown
    assert "- 6 rows: the segmenter found no spleen" in table.markdown
    assert "- case case7: 'x.nii.gz' is truncated" in table.markdown
    assert "no pancreas" not in table.markdown
    assert cell(table, method="lime", guidance="roi", measure="rho")["n_cases"] == 3


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


def test_the_widest_reason_is_named_and_the_confidence_printed(tmp_path: Path) -> None:
    skips = [Skip("a", "slices", "all of it"), Skip("a", "slices", "an organ", 3, "liver")]
    table = table3(read(tmp_path, [], EXPLANATIONS), skips=skips, confidence=0.9, **FEW)
    assert "- case a: all of it" in table.markdown
    assert "[90% bootstrap interval]" in table.markdown


def test_long_lists_of_reasons_are_cut(tmp_path: Path) -> None:
    rows = [{"case": f"c{k}", "organ": "liver", "skipped": f"reason {k:02d}"} for k in range(30)]
    table = table3(read(tmp_path, rows, EXPLANATIONS), **FEW)
    assert "- 10 rows: 10 other reasons" in table.markdown
    assert "30 of 30 cases" in table.markdown


# --- all of them ---


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize("cases", [0, 1])
def test_any_number_of_cases_gives_a_table(tmp_path: Path, cases: int) -> None:
    localizer = read(tmp_path, localizer_rows(cases), LOCALIZER)
    explanations = read(tmp_path, explanation_rows(cases), EXPLANATIONS)
    for make, rows in (
        (table2, localizer),
        (table3, explanations),
        (table3_variants, explanations),
    ):
        table = make(rows, **FEW)
        assert table.frame["low"].isna().all()
        assert table.frame["p"].isna().all()
        assert "nan" not in table.markdown
        write(table, tmp_path / "t.csv", tmp_path / "t.md")
        assert list(pd.read_csv(tmp_path / "t.csv").columns) == list(table.frame.columns)


def test_only_skipped_rows_give_a_table(tmp_path: Path) -> None:
    row = {
        "case": "a",
        "organ": "liver",
        "method": "lime",
        "guidance": "roi",
        "skipped": "empty ROI",
    }
    table = table3(read(tmp_path, [row], EXPLANATIONS), **FEW)
    assert set(table.frame["method"]) == {"lime"}
    assert "1 of 1 rows" in table.markdown


def test_tables_are_the_same_twice_and_in_any_order(tmp_path: Path) -> None:
    rows = explanation_rows(5)
    one = table3(read(tmp_path, rows, EXPLANATIONS), **FEW)
    two = table3(read(tmp_path, rows[::-1], EXPLANATIONS), **FEW)
    assert one.markdown == two.markdown
    pd.testing.assert_frame_equal(one.frame, two.frame)


def test_markdown_tables_are_rectangular(tmp_path: Path) -> None:
    table = table3(read(tmp_path, explanation_rows(3), EXPLANATIONS), **FEW)
    lines = table.markdown.splitlines()
    for head, rule in pairwise(lines):
        if rule.startswith("| :-"):
            assert head.count("|") == rule.count("|")
            assert len(head) == len(rule)


def test_segmenter_table_keeps_modalities_and_boxes_apart() -> None:
    rows = [
        {
            "case": f"{modality}{case}",
            "slice": 1,
            "organ": organ,
            "prompt": prompt,
            "modality": modality,
            "dice": 0.9 if prompt == "reference" else 0.5,
            "iou": 0.8,
            "hd95_mm": 4.0,
            "skipped": None,
        }
        for modality in ("CT", "MR")
        for case in range(3)
        for organ in ("liver", "spleen")
        for prompt in ("reference", "roi")
    ]
    table = segmenter_table(pd.DataFrame(rows), **FEW)
    frame = table.frame[table.frame["measure"] == "dice"]
    assert len(frame) == 2 * 3 * 2
    assert frame[frame["prompt"] == "roi"]["mean"].tolist() == [0.5] * 6
    assert set(frame["n_cases"]) == {3}
    assert "| MR " in table.markdown
    empty = segmenter_table(pd.DataFrame(rows).assign(skipped="no label"), **FEW)
    assert "12 rows" in empty.markdown or "no label" in empty.markdown


def test_a_frame_as_a_table():
    frame = pd.DataFrame({"plan": ["a", "b"], "error": [0.123456, float("nan")]})
    assert pipe_table(frame).splitlines()[2:] == ["| a    | 0.1235 |", "| b    |      — |"]
