"""Which organ each organ's mask hangs on: the table and the figure, from made-up units."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev

import numpy as np
import pandas as pd
import pytest
from matplotlib import rc_context
from matplotlib.colors import to_rgb
from matplotlib.patches import Rectangle

import markdown_page
from figure_study import settings_of
from in_process import Named, run_script
from xaiclip.errors import Skip
from xaiclip.explain.attribution import Attribution, save_attributions
from xaiclip.metrics.schema import EXPLANATIONS, write_table
from xaiclip.organs import OUTSIDE, REST
from xaiclip.report import catalogue, colours, style
from xaiclip.report.figures import DATA, FIGURES, draw
from xaiclip.report.tables.data import write
from xaiclip.report.tables.explanations import UNIT
from xaiclip.report.tables.shapley_units import TOTAL, shapley_units

#: In an order of their own.
CLASSES = ["background", "spleen", "liver", "right kidney"]
ORGANS = CLASSES[1:]
#: Slices of each case.
CASES = {"zoe": (4, 9), "abe": (7,), "kim": (2, 3, 5)}
SETTINGS = {"units": "organs", "regions": "label"}
FEW = {"resamples": 150, "seed": 3, "confidence": 0.9}


def number(guidance: str, case: str, index: int, organ: str, unit: str, value: str) -> float:
    """One value for each place, none like another."""
    place = [*ORGANS, REST, OUTSIDE].index(unit)
    own = ORGANS.index(organ)
    size = 0.3 if unit == organ else 0.02 * place - 0.03 - 0.07 * own
    size += 0.01 * index + 0.002 * len(case) * ord(case[0]) / 100
    return size * (1.5 if value == "in_mask_probability" else 1) * (0.8 if guidance == "roi" else 1)


def units_of(guidance: str, case: str) -> list[str]:
    """Abe has no spleen; under guidance what is outside the body does not play."""
    found = [organ for organ in ORGANS if (case, organ) != ("abe", "spleen")]
    return [*found, REST] + ([OUTSIDE] if guidance == "full" else [])


def write_maps(root: Path) -> list[Path]:
    paths = []
    for guidance in ("roi", "full"):
        for batch, cases in {"test-1": ("zoe",), "test-0": ("abe", "kim")}.items():
            maps = []
            for case in cases:
                for index in CASES[case]:
                    for value in ("soft_dice", "in_mask_probability"):
                        for organ in reversed(ORGANS):
                            names = units_of(guidance, case)
                            if organ not in names:
                                continue
                            units = {
                                unit: number(guidance, case, index, organ, unit, value)
                                for unit in names
                            }
                            for variant, own in (("value", units), ("density", {})):
                                one = Attribution(
                                    organ, variant, value, np.zeros((4, 4), np.float32), ("a",),
                                    units=own,
                                )  # fmt: skip
                                maps.append((case, index, one))
            path = root / f"attributions/shapley/{guidance}/{batch}.npz"
            save_attributions(path, maps)
            paths.append(path)
    return paths


def left_out() -> pd.DataFrame:
    rows = [
        ("abe", 7, "spleen", "shapley", "full", None, "the unperturbed segmentation is empty"),
        ("abe", 7, "liver", "shapley", "full", None, None),
        ("abe", 7, "liver", "rise", "full", None, "not of this table"),
    ]
    return pd.DataFrame(rows, columns=[*UNIT, "skipped"])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory):
    """The table, and the folder that it was written to."""
    root = tmp_path_factory.mktemp("results") / "demo"
    skips = [Skip("uma", "slices", "uma.nii.gz: is truncated")]
    table = shapley_units(
        write_maps(root), left_out(), classes=CLASSES, settings=SETTINGS, skips=skips, **FEW
    )
    write(table, root / "tables/shapley_units.csv", root / "tables/shapley_units.md")
    return table, root


def by_hand(guidance: str, organ: str, unit: str, value: str = "soft_dice") -> list[float]:
    """One number for each case: the mean over its slices."""
    found = []
    for case, indices in CASES.items():
        names = units_of(guidance, case)
        if organ in names and (unit == TOTAL or unit in names):
            summed = names if unit == TOTAL else [unit]
            found.append(
                fmean(
                    sum(number(guidance, case, index, organ, one, value) for one in summed)
                    for index in indices
                )
            )
    return found


@pytest.mark.parametrize("value", ["soft_dice", "in_mask_probability"])
@pytest.mark.parametrize("guidance", ["full", "roi"])
def test_the_frame_holds_means_over_cases(made, guidance, value):
    frame = made[0].frame.set_index(["value", "guidance", "organ", "region"])
    for organ in ORGANS:
        for unit in (*ORGANS, REST, OUTSIDE, TOTAL):
            row, expected = (
                frame.loc[value, guidance, organ, unit],
                by_hand(guidance, organ, unit, value),
            )
            assert row["n_cases"] == len(expected)
            if not expected:
                assert np.isnan(row["mean"])
                continue
            assert row["mean"] == pytest.approx(fmean(expected))
            assert row["sd"] == pytest.approx(stdev(expected))
            assert row["low"] <= row["mean"] <= row["high"]
    assert by_hand("roi", "liver", OUTSIDE) == []


def test_the_frame_is_whole_and_in_order(made):
    frame = made[0].frame
    assert len(frame) == 2 * 2 * 3 * 6
    assert list(frame["value"].drop_duplicates()) == ["soft_dice", "in_mask_probability"]
    assert list(frame["guidance"].drop_duplicates()) == ["full", "roi"]
    assert list(frame["organ"].drop_duplicates()) == ORGANS
    assert list(frame["region"].drop_duplicates()) == [*ORGANS, REST, OUTSIDE, TOTAL]


def test_the_page(made):
    page = markdown_page.read(made[0].markdown)
    assert len(page.tables) == 2
    heads, lines = page.tables[0]
    assert heads == ["guidance", "organ", "n cases", *ORGANS, REST, OUTSIDE, TOTAL]
    assert [line[:3] for line in lines] == [
        [guidance, organ, str(len(by_hand(guidance, organ, TOTAL)))]
        for guidance in ("full", "roi")
        for organ in ORGANS
    ]
    of_liver = lines[1]
    for head, cell in zip(heads[3:], of_liver[3:], strict=True):
        expected = fmean(by_hand("full", "liver", head))
        assert cell.startswith("−" if expected < 0 else "+")
        assert cell[1:6] == f"{abs(expected):.3f}"
    # two of the three cases that explain the liver have a spleen
    assert of_liver[3].endswith("(n = 2)")
    assert lines[4][-2] == "—"
    assert "in the label" in made[0].markdown
    assert "1 of 2 rows" in made[0].markdown
    assert "case uma: uma.nii.gz: is truncated" in made[0].markdown


def test_a_study_without_an_explained_organ(tmp_path):
    save_attributions(tmp_path / "shapley/full/test-0.npz", [])
    table = shapley_units(
        [tmp_path / "shapley/full/test-0.npz"],
        left_out()[:1],
        classes=CLASSES,
        settings=SETTINGS,
        **FEW,
    )
    write(table, tmp_path / "tables/t.csv", tmp_path / "tables/t.md")
    assert table.frame.empty
    assert "1 of 1 rows" in table.markdown
    figure = FIGURES["shapley_matrix"]({"tables": tmp_path / "tables/t.csv"}, settings_of(CLASSES))
    assert not figure.axes
    words = " ".join(text.get_text() for text in figure.texts)
    assert "No organ of any case is explained" in words


def data_of(made):
    return DATA["shapley_matrix"](
        {"tables": made[1] / "tables/shapley_units.csv"}, settings_of(CLASSES)
    )


def test_the_figures_data_are_the_tables(made):
    data = data_of(made)
    assert (data.organs, data.units) == (ORGANS, [*ORGANS, REST, OUTSIDE])
    assert data.score == "soft_dice"
    assert [one.guidance for one in data.matrices] == ["full", "roi"]
    for one in data.matrices:
        assert one.cases.tolist() == [len(by_hand(one.guidance, organ, TOTAL)) for organ in ORGANS]
        for row, organ in enumerate(ORGANS):
            assert one.totals[row] == pytest.approx(fmean(by_hand(one.guidance, organ, TOTAL)))
            for column, unit in enumerate(data.units):
                expected = by_hand(one.guidance, organ, unit)
                assert one.counts[row, column] == len(expected)
                assert one.values[row, column] == pytest.approx(
                    fmean(expected) if expected else np.nan, nan_ok=True
                )


def test_the_figure_is_read_at_once(made, tmp_path):
    """Numbers with signs, colours centred at 0 and the same in all panels, own organs framed."""
    data = data_of(made)
    with rc_context(style.STYLE):
        figure = draw(data)
    style.save(figure, tmp_path / "figure.png", 50)
    first, second, bar = figure.axes
    assert "without guidance" in first.get_title(loc="left")
    assert "guided by the ROI" in second.get_title(loc="left")
    for axes, one in zip((first, second), data.matrices, strict=True):
        (heat,) = axes.images
        assert heat.norm.vmin == -heat.norm.vmax
        assert heat.norm.vmax == np.nanmax(
            [np.nanmax(np.abs(matrix.values)) for matrix in data.matrices]
        )
        np.testing.assert_allclose(heat.get_array().filled(np.nan), one.values)
        texts = {
            (round(text.get_position()[1]), round(text.get_position()[0])): text.get_text()
            for text in axes.texts
        }
        assert texts[0, 0] == f"+{one.values[0, 0]:.3f}"
        # of the three cases that have a liver, two have a spleen
        assert texts[1, 0] == f"{one.values[1, 0]:+.3f}".replace("-", "−") + "\n(n = 2)"
        assert texts[2, 0].startswith("−")
        assert texts[1, len(data.units)] == f"+{one.totals[1]:.3f}"
        assert texts[1, 4] == (
            "—" if one.guidance == "roi" else f"{one.values[1, 4]:+.3f}".replace("-", "−")
        )
        frames = {patch.get_xy() for patch in axes.patches if isinstance(patch, Rectangle)}
        assert frames == {(-0.5, -0.5), (0.5, 0.5), (1.5, 1.5)}
    assert [tick.get_text() for tick in first.get_yticklabels()] == [
        "spleen (n = 2)", "liver (n = 3)", "right kidney (n = 3)",
    ]  # fmt: skip
    labels = [tick.get_text() for tick in second.get_xticklabels()]
    assert labels == [*("spleen", "liver", "right\nkidney"), "rest\nof the body",
                      "outside\nthe body", "total\ndrop"]  # fmt: skip
    assert "supports the mask" in bar.get_xlabel()


def test_a_frame_finds_its_organ_wherever_the_unit_stands(made):
    data = data_of(made)
    (axes, *_) = draw(replace(data, units=data.units[::-1])).axes
    frames = [patch.get_xy() for patch in axes.patches if isinstance(patch, Rectangle)]
    assert frames == [(3.5, -0.5), (2.5, 0.5), (1.5, 1.5)]


def test_numbers_can_be_read_on_their_colours(made):
    """Contrast of at least 4.5 : 1 (WCAG AA) between each number and its cell."""

    def luminance(colour):
        parts = np.array(to_rgb(colour))
        linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
        return linear @ [0.2126, 0.7152, 0.0722]

    data = data_of(made)
    wide = replace(data.matrices[0], values=np.linspace(-1, 1, 15).reshape(3, 5))
    (axes, _) = draw(replace(data, matrices=[wide])).axes
    for text in axes.texts:
        column, row = map(round, text.get_position())
        if column < 5:
            norm = axes.images[0].norm
            cell, ink = (
                luminance(colour)
                for colour in (colours.SIGNED(norm(wide.values[row, column])), text.get_color())
            )
            assert (max(cell, ink) + 0.05) / (min(cell, ink) + 0.05) >= 4.5


def test_the_script_makes_the_librarys_table(made, tmp_path):
    paths = write_maps(tmp_path)
    write_table(tmp_path / "rows.parquet", left_out().to_dict("records"), EXPLANATIONS)
    (tmp_path / "skipped.tsv").write_text(
        "case\tslice\torgan\tstage\treason\numa\t\t\tslices\tuma.nii.gz: is truncated\n"
    )
    files = {
        "attributions/shapley": [str(path) for path in paths],
        "metrics/explanations": [str(tmp_path / "rows.parquet")],
        "skipped": [str(tmp_path / "skipped.tsv")],
    }
    output = Named(csv=[tmp_path / "t.csv"], md=[tmp_path / "t.md"])
    statistics = {"resamples": FEW["resamples"], "confidence": FEW["confidence"]}
    study = {"methods": {"shapley": SETTINGS}, "classes": CLASSES, "cases": ["uma"],
             "seed": FEW["seed"], "statistics": statistics}  # fmt: skip
    place = catalogue.tables()["shapley_units"].place
    cfg = {"places": [place], "files": files, "study": study}
    run_script("table.py", Named(), output, tmp_path / "log", cfg)
    for kind in ("csv", "md"):
        expected = (made[1] / f"tables/shapley_units.{kind}").read_text(encoding="utf-8")
        assert (tmp_path / f"t.{kind}").read_text(encoding="utf-8") == expected


ROOT = Path(__file__).parents[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("methods", "settings", "there"),
    [
        (["shapley"], {}, True),
        (["occlusion"], {}, False),
        (["shapley"], {"units": "superpixels"}, False),
    ],
)
def test_the_table_is_made_where_its_method_is_on(tmp_path, methods, settings, there):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"explain": {"methods": methods}, "methods": {"shapley": settings}}))
    done = subprocess.run(
        [sys.executable, "-m", "snakemake", "--cores", "1", "--dry-run", "--quiet", "progress",
         "--snakefile", ROOT / "Snakefile", "--directory", tmp_path, "--configfile", path],
        capture_output=True, text=True, check=False, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    for rule in ("table_shapley_units", "shapley_matrix"):
        assert (rule in done.stdout + done.stderr) == there
