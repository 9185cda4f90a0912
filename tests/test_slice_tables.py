"""The tables and the figure of cases with several slices."""

from __future__ import annotations

from dataclasses import replace
from statistics import fmean

import numpy as np
import pandas as pd
import pytest

import markdown_page
from table_cells import read
from table_study import explanation_rows
from xaiclip.errors import Skip
from xaiclip.metrics.schema import EXPLANATIONS, write_table
from xaiclip.metrics.statistics import case_means
from xaiclip.report.curves import along_slices
from xaiclip.report.drawing import draw
from xaiclip.report.sources import Settings
from xaiclip.report.tables import slices as tables


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    rows = explanation_rows()
    for number, row in enumerate(rows):
        if (row["case"], row["slice"], row["organ"]) == ("kim", 3, "spleen"):
            # in one slice of three: the means over slices and over organs are not one
            row["skipped"] = "empty prediction"
        elif not row.get("skipped"):
            row["baseline_dice_gt"] = (0.3 + 0.017 * number) % 1
    frame = read(tmp_path_factory.mktemp("rows"), rows, EXPLANATIONS, tables.COLUMNS)
    return rows, frame


def used(rows, **wanted):
    return [
        row
        for row in rows
        if row["primary"]
        and not row.get("skipped")
        and all(row[key] == value for key, value in wanted.items())
    ]


def test_a_line_for_each_slice_organ_method_and_guidance(made):
    rows, frame = made
    table = tables.slices_table(frame)
    key = ["case", "slice", "organ", "method", "guidance", "roi_source"]
    got = table.frame.set_index(key)
    primary = [row for row in rows if row["primary"]]
    assert len(got) == len(primary)
    assert got.index.is_unique
    for row in primary:
        own = got.loc[tuple(row[name] or "" for name in key)]
        assert (None if pd.isna(own["skipped"]) else own["skipped"]) == row.get("skipped")
        for name in ("fidelity_dice", "baseline_dice_gt", "n_forwards"):
            wanted = row.get(name)
            assert own[name] == pytest.approx(np.nan if wanted is None else wanted, nan_ok=True)
    organs = list(dict.fromkeys(table.frame[table.frame["case"] == "kim"]["organ"]))
    assert organs == ["liver", "right kidney", "spleen", "aorta"]


def test_a_slice_s_cells_are_means_over_its_organs(made):
    rows, frame = made
    ((heads, lines),) = markdown_page.read(tables.slices_table(frame).markdown).tables
    place = heads.index("fidelity Dice")
    assert len(lines) == len({(r["case"], r["slice"], r["method"], r["guidance"]) for r in rows})
    for line in lines:
        case, index, method, guidance, organs = line[:5]
        own = used(rows, case=case, slice=int(index), method=method, guidance=guidance)
        assert int(organs) == len(own)
        assert float(line[place]) == pytest.approx(
            fmean(row["fidelity_dice"] for row in own), abs=0.00051
        )


def test_a_case_s_cells_are_what_the_statistics_draw(made):
    rows, frame = made
    table = tables.cases_table(frame)
    ((heads, lines),) = markdown_page.read(table.markdown).tables
    place = heads.index("fidelity Dice")
    assert len(lines) == 9 * 4 * 2
    for line in lines:
        case, method, guidance, slices = line[:4]
        own = used(rows, case=case, method=method, guidance=guidance)
        (mean,) = case_means(pd.DataFrame(own), "fidelity_dice", "organ")
        indices = {row["slice"] for row in own}
        of_slices = [
            fmean(row["fidelity_dice"] for row in own if row["slice"] == index) for index in indices
        ]
        assert slices == f"{len(indices)} of {len({r['slice'] for r in rows if r['case'] == case})}"
        shown = [float(part) for part in line[place].replace("[", "").rstrip("]").split()
                 for part in [part.rstrip(",")]]  # fmt: skip
        differ = f"{min(of_slices):.3f}" != f"{max(of_slices):.3f}"
        wanted = [mean, min(of_slices), max(of_slices)] if differ else [mean]
        assert shown == pytest.approx(wanted, abs=0.00051)


def test_a_case_s_records_are_of_each_organ(made):
    rows, frame = made
    table = tables.cases_table(frame).frame
    for organ in ("liver", "aorta"):
        own = used(rows, case="kim", organ=organ, method="rise", guidance="roi")
        values = [row["fidelity_iou"] for row in own]
        (record,) = table[
            (table["case"] == "kim")
            & (table["organ"] == organ)
            & (table["method"] == "rise")
            & (table["guidance"] == "roi")
            & (table["measure"] == "fidelity_iou")
        ].to_dict("records")
        assert record["n_slices"] == len(values) == 3
        assert (record["mean"], record["lowest"], record["highest"]) == pytest.approx(
            (fmean(values), min(values), max(values))
        )
        assert record["roi_source"] == "localizer"
    better = dict(zip(table["measure"], table["better"], strict=True))
    assert (better["localization_dice_gt"], better["fidelity_dice"]) == ("higher", "")
    assert better["n_forwards"] == "lower"


def test_what_was_left_out_is_told_and_nothing_at_all_is_a_table_too(made, tmp_path):
    rows, frame = made
    text = tables.slices_table(frame).markdown
    lost = sum(row.get("skipped") == "the ROI is empty" for row in rows)
    assert f"{lost} rows: the ROI is empty" in text
    nothing = [{"case": "x", "organ": "liver", "method": "rise", "guidance": "full",
                "primary": True, "skipped": "it cannot be read"}]  # fmt: skip
    empty = read(tmp_path, nothing, EXPLANATIONS, tables.COLUMNS)
    for make in (tables.slices_table, tables.cases_table):
        table = make(empty, [Skip("x", "slices", "it cannot be read")])
        assert len(table.frame) == 0
        assert "it cannot be read" in table.markdown


# --- the figure --------------------------------------------------------------------------------


def test_curves_along_the_slices_are_the_rows(made, tmp_path):
    rows, _ = made
    write_table(tmp_path / "explanations.parquet", rows, EXPLANATIONS)
    classes = ["background", "spleen", "liver", "right kidney", "aorta"]
    settings = Settings(classes, "kim", "right kidney", "roi", 150)
    data = along_slices({"metrics": tmp_path / "explanations.parquet"}, settings)
    assert (data.title, data.along) == ("Slices of case kim", "slice, from the feet")
    segmentations, fidelity, localization = (curves for *_, curves in data.panels)
    assert [one.label for one in segmentations] == ["spleen", "liver", "right kidney", "aorta"]
    assert sorted(one.label for one in fidelity) == sorted(
        f"{method}, {guidance}"
        for method in ("gradient", "lime", "occlusion", "rise")
        for guidance in ("full", "roi (localizer)")
    )
    for curves, column in ((fidelity, "fidelity_dice"), (localization, "localization_dice_pred")):
        for one in curves:
            method, guidance = one.label.split(", ")
            own = used(
                rows,
                case="kim",
                organ="right kidney",
                method=method,
                guidance=guidance.split(" ")[0],
            )
            wanted = sorted((row["slice"], row[column]) for row in own)
            assert list(zip(one.places, one.values, strict=True)) == wanted
            assert [tuple(dot) for dot in one.kept] == wanted
    assert len({(one.colour, str(one.line)) for one in fidelity}) == 8
    figure = draw(data)
    assert [axes.get_xlabel() for axes in figure.axes] == ["slice, from the feet"] * 3
    without = along_slices(
        {"metrics": tmp_path / "explanations.parquet"}, replace(settings, case=None)
    )
    assert without.title == "Slices of case abe"  # the first
