"""Figures of numbers: their data against the table's rows, their drawing against their data."""

from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib import rc_context
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from numpy.testing import assert_allclose, assert_array_equal
from scipy import stats

import table_study as study
from figure_study import settings_of, write_history
from xaiclip.errors import CaseError
from xaiclip.metrics.schema import EXPLANATIONS, write_table
from xaiclip.report import style
from xaiclip.report.curves import training_curves
from xaiclip.report.figures import FIGURES, draw
from xaiclip.report.figures_metrics import comparison, lime_distributions

CLASSES = ["background", *study.ORGANS]
SETTINGS = settings_of(CLASSES)
COLOUR = dict(zip(study.ORGANS, ("#E69F00", "#56B4E9", "#0072B2", "#009E73"), strict=True))
MARKER = dict(zip(study.ORGANS, "osD^", strict=True))
GUIDED = {"full": "#4d4d4d", "roi": "#56b4e9", "roi_reference": "#009e73"}
ORDER = ("occlusion", "lime", "rise", "gradient")

Rows = list[dict[str, Any]]


def metrics(folder: Path, rows: Rows) -> dict[str, Path]:
    write_table(folder / "explanations.parquet", rows, EXPLANATIONS)
    return {"metrics": folder / "explanations.parquet"}


def drawn(data: Any) -> Figure:
    with rc_context(style.STYLE):
        return draw(data)


def titles(figure: Figure) -> list[str]:
    """Of the panels, without their letters, which are checked here."""
    shown = [axes.get_title(loc="left") for axes in figure.axes]
    letters = [f"$\\bf{{({'abcd'[place]})}}$ " for place in range(len(shown))]
    assert all(one.startswith(letter) for one, letter in zip(shown, letters, strict=True))
    return [one.removeprefix(letter) for one, letter in zip(shown, letters, strict=True)]


# --- bars ---

EVERY = {
    "occlusion": "occlusion",
    "lime": "LIME",
    "rise": "RISE",
    "grad_cam": "Grad-CAM",
    "gradient_shap": "Gradient SHAP",
    "integrated_gradients": "Integrated Gradients",
    "shapley": "Shapley",
    "my_own": "my own",
}
BARS = [
    ("fidelity Dice", "fidelity Dice (0 to 1)", "fidelity_dice"),
    ("fidelity IoU", "fidelity IoU (0 to 1)", "fidelity_iou"),
    ("operations", "operations (GFLOPs per slice)", "gflops_total"),
    ("forwards", "forwards (images per slice)", "n_forwards"),
]


@pytest.fixture(scope="module")
def sources() -> tuple[str, ...]:
    return ("localizer", "reference")


@pytest.fixture(scope="module")
def rows(sources: tuple[str, ...]) -> Rows:
    return study.explanation_rows(sources)


def test_names_of_all_methods_can_be_read(tmp_path: Path, rows: Rows) -> None:
    some = [row for row in rows if row["method"] == "occlusion"]
    every = [row | {"method": name} for name in EVERY for row in some]
    figure = drawn(comparison(metrics(tmp_path, every), SETTINGS))
    figure.draw_without_rendering()
    for axes in figure.axes:
        labels = axes.get_xticklabels()
        assert {text.get_text() for text in labels} == set(EVERY.values())
        ends = sorted(text.get_transform().transform(text.get_position())[0] for text in labels)
        for text, apart in zip(labels, np.diff(ends), strict=False):
            slant = np.deg2rad(text.get_rotation())
            assert apart * np.sin(slant) > text.get_fontsize() * figure.dpi / 72


def cases_of(rows: Rows, method: str, guidance: str, column: str) -> list[float]:
    source = {"full": None, "roi": "localizer", "roi_reference": "reference"}[guidance]
    where = {"method": method, "primary": True, "roi_source": source}
    chosen = study.known(rows, column, **where)
    return study.by_case([(row["case"], row["organ"], row[column]) for row in chosen])


def interval(values: list[float]) -> tuple[float, float]:
    found = stats.bootstrap(
        (values,), np.mean, n_resamples=5000, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    return found.low, found.high


def test_each_bar_is_a_mean_with_its_interval_and_its_cases(tmp_path: Path, rows: Rows) -> None:
    data = comparison(metrics(tmp_path, rows), SETTINGS)
    assert list(data.methods) == list(ORDER)
    assert list(data.guidances) == list(GUIDED)
    figure = drawn(data)
    assert titles(figure) == [title for title, _, _ in BARS]
    for panel, axes, (_, label, column) in zip(data.panels, figure.axes, BARS, strict=True):
        assert panel.label == axes.get_ylabel() == label
        assert [(bar.method, bar.guidance) for bar in panel.bars] == [
            (method, guidance) for method in ORDER for guidance in GUIDED
        ]
        ticks = [text.get_text() for text in axes.get_xticklabels()]
        assert ticks == ["occlusion", "LIME", "RISE", "gradient"]
        boxes = [patch for patch in axes.patches if patch.get_width() > 0]
        lines = axes.collections[1::2]  # each over its white ground
        for place, bar in enumerate(panel.bars):
            cases = cases_of(rows, bar.method, bar.guidance, column)
            low, high = interval(cases)
            assert len(cases) == 9
            assert_allclose(bar.cases, cases)
            estimate = bar.estimate
            assert_allclose([estimate.mean, estimate.low, estimate.high], [fmean(cases), low, high])
            assert min(cases) < low < high < max(cases)
            # the drawing
            box = boxes[place]
            assert_allclose(box.get_y() + box.get_height(), fmean(cases))
            assert box.get_y() == panel.floor
            assert to_hex(box.get_facecolor()) == GUIDED[bar.guidance]
            middle = box.get_x() + box.get_width() / 2
            assert round(middle) == ORDER.index(bar.method)
            ((start, stop),) = lines[place].get_segments()
            assert_allclose([start[0], start[1], stop[1]], [middle, low, high])
            dots = axes.lines[place]
            assert_allclose(dots.get_ydata(), cases)
            assert abs(dots.get_xdata() - middle).max() < box.get_width() / 2
            assert axes.texts[place].get_text() == "9"
            assert_allclose(axes.texts[place].xy, [middle, panel.floor])
        by_place = [round(box.get_x(), 6) for box in boxes]
        assert by_place == sorted(by_place)


def test_the_comparisons_legend_names_its_bars(tmp_path: Path, rows: Rows) -> None:
    (legend,) = drawn(comparison(metrics(tmp_path, rows), SETTINGS)).legends
    assert [text.get_text() for text in legend.get_texts()] == [
        "without guidance",
        "guided by the ROI",
        "guided by the reference",
    ]
    assert [to_hex(patch.get_facecolor()) for patch in legend.get_patches()] == [*GUIDED.values()]
    assert legend.get_title().get_text() == (
        "bars: mean over cases, with their number; lines: 95% bootstrap interval; dots: cases"
    )


def test_seconds_are_not_compared(tmp_path: Path, rows: Rows) -> None:
    data = comparison(metrics(tmp_path, rows), SETTINGS)
    assert not any("second" in panel.label or "time" in panel.label for panel in data.panels)


def test_a_guidance_that_a_method_lacks_has_no_bar(tmp_path: Path) -> None:
    rows = [
        {**row, "skipped": "nothing"}
        if (row["method"], row["guidance"]) == ("lime", "roi")
        else row
        for row in study.explanation_rows()
        if row["case"] in ("abe", "kim")
    ]
    data = comparison(metrics(tmp_path, rows), SETTINGS)
    shown = [(bar.method, bar.guidance) for bar in data.panels[0].bars]
    assert ("lime", "roi") not in shown
    assert len(shown) == 7
    boxes = [patch for patch in drawn(data).axes[0].patches if patch.get_width() > 0]
    assert [round(box.get_x() + box.get_width() / 2) for box in boxes] == [0, 0, 1, 2, 2, 3, 3]


def test_one_case_has_no_interval(tmp_path: Path) -> None:
    rows = [row for row in study.explanation_rows() if row["case"] == "abe"]
    axes = drawn(comparison(metrics(tmp_path, rows), SETTINGS)).axes[0]
    assert not axes.collections
    assert {text.get_text() for text in axes.texts} == {"1"}


def test_costs_that_differ_much_get_a_logarithmic_axis(tmp_path: Path) -> None:
    rows = study.explanation_rows()
    for row in rows:
        if "gflops_total" in row:
            row["gflops_total"] = 2000 if row["method"] == "rise" else 30
            row["n_forwards"] = 100 + (row["method"] == "rise")
    data = comparison(metrics(tmp_path, rows), SETTINGS)
    assert [panel.floor for panel in data.panels] == [0, 0, 10, 0]
    figure = drawn(data)
    assert [axes.get_yscale() for axes in figure.axes] == ["linear", "linear", "log", "linear"]
    assert figure.axes[2].get_ylim()[0] == 10
    assert [axes.get_ylim() for axes in figure.axes[:2]] == [(0, 1.03)] * 2
    with rc_context(style.STYLE):
        figure.canvas.draw()
    labels = [text.get_text() for text in figure.axes[2].get_yticklabels()]
    assert "1,000" in labels
    assert not any("$" in label for label in labels)


# --- distributions ---


def expected_values(
    rows: Rows, measure: str, target: str, guidance: str
) -> dict[tuple[str, int, str], float]:
    where = {"method": "lime", "primary": True, "guidance": guidance}
    column = f"localization_{measure}_{target}"
    return {(row["case"], row["slice"], row["organ"]): row[column]
            for row in study.known(rows, column, **where)}  # fmt: skip


def test_lime_distributions_hold_every_organ_of_every_slice(tmp_path: Path) -> None:
    rows = study.explanation_rows()
    data = lime_distributions(metrics(tmp_path, rows), SETTINGS)
    assert [(panel.title, panel.label) for panel in data.panels] == [
        ("Dice", "localization Dice (0 to 1)"),
        ("IoU", "localization IoU (0 to 1)"),
    ]
    targets = {"against the segmentation": "pred", "against the reference": "gt"}
    seen = []
    for panel, measure in zip(data.panels, ("dice", "iou"), strict=True):
        assert list(panel.targets) == list(targets)
        for words, target in targets.items():
            assert [group.guidance for group in panel.targets[words]] == ["full", "roi"]
            for group in panel.targets[words]:
                got = group.values.dropna().to_dict()
                assert got == pytest.approx(expected_values(rows, measure, target, group.guidance))
                chance = study.known(
                    rows, f"localization_dice_{target}_chance", method="lime", primary=True,
                    guidance=group.guidance,
                )  # fmt: skip
                if measure == "dice":
                    mean = fmean(row[f"localization_dice_{target}_chance"] for row in chance)
                    assert group.chance == pytest.approx(mean)
                    seen.append(group.chance)
                else:
                    assert group.chance is None
    assert len({round(one, 3) for one in seen}) == 4  # each has a chance of its own


def test_lime_distributions_are_drawn_as_they_are(tmp_path: Path) -> None:
    rows = study.explanation_rows()
    data = lime_distributions(metrics(tmp_path, rows), SETTINGS)
    figure = drawn(data)
    assert titles(figure) == ["Dice", "IoU"]
    for axes, panel in zip(figure.axes, data.panels, strict=True):
        assert axes.get_ylabel() == panel.label
        groups = [group for of in panel.targets.values() for group in of]
        spots = [0, 1, 2.6, 3.6]
        assert_allclose(axes.get_xticks(), spots)
        counts = [len(group.values.dropna()) for group in groups]
        words = ["no guidance", "ROI"] * 2
        assert [text.get_text() for text in axes.get_xticklabels()] == [
            f"{word}\nn = {count}" for word, count in zip(words, counts, strict=True)
        ]
        assert [text.get_text() for text in axes.texts] == list(panel.targets)
        assert_allclose([text.xy[0] for text in axes.texts], [0.5, 3.1])
        chances = [(segment[:, 0].mean(), segment[0, 1]) for one in axes.collections
                   for segment in one.get_segments()]  # fmt: skip
        assert_allclose(
            chances,
            [(x, one.chance) for x, one in zip(spots, groups, strict=True) if one.chance],
        ) if panel.title == "Dice" else assert_array_equal(chances, [])
        dots = [line for line in axes.lines if line.get_marker() in MARKER.values()]
        for place, (x, group) in enumerate(zip(spots, groups, strict=True)):
            for organ, line in zip(study.ORGANS, dots[4 * place :], strict=False):
                assert (line.get_marker(), to_hex(line.get_color()).upper()) == (
                    MARKER[organ], COLOUR[organ]
                )  # fmt: skip
                own = group.values[group.values.index.get_level_values("organ") == organ]
                assert_array_equal(line.get_ydata(), own.to_numpy())
                assert abs(line.get_xdata() - x).max() < 0.2
            box = axes.patches[place]
            ends = box.get_path().get_extents()
            known = group.values.dropna()
            assert_allclose([ends.y0, ends.y1], np.percentile(known, [25, 75]), atol=1e-6)
            assert ends.x0 < x < ends.x1
            assert to_hex(box.get_facecolor()) == GUIDED[group.guidance]
        medians = [line for line in axes.lines if line.get_linewidth() == 1.4]
        assert_allclose(
            [line.get_ydata()[0] for line in medians], [one.values.median() for one in groups]
        )
        thin = [line for line in axes.lines if line.get_linewidth() == 0.5]
        n = len(groups[0].values)
        pairs = np.array([line.get_ydata() for line in thin])
        first = np.stack([groups[0].values, groups[1].values], 1)
        assert_array_equal(pairs[:n], first)
        assert_array_equal(pairs[n:], np.stack([groups[2].values, groups[3].values], 1))
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [
        *study.ORGANS, "chance level (mean)"
    ]  # fmt: skip


def test_an_organ_that_lime_never_explained_is_not_in_the_legend(tmp_path: Path) -> None:
    rows = [row for row in study.explanation_rows() if row["organ"] != "liver"]
    figure = drawn(lime_distributions(metrics(tmp_path, rows), SETTINGS))
    entries = [text.get_text() for text in figure.legends[0].get_texts()]
    assert entries == ["spleen", "right kidney", "aorta", "chance level (mean)"]


def test_a_study_without_lime_says_so(tmp_path: Path) -> None:
    rows = [row for row in study.explanation_rows() if row["method"] != "lime"]
    with pytest.raises(CaseError, match="No organ is explained by LIME"):
        lime_distributions(metrics(tmp_path, rows), SETTINGS)


# --- training ---


def histories(folder: Path) -> dict[str, Path]:
    names = ("no_text", "text")
    for name, gain in zip(names, (0.5, 1.0), strict=True):
        write_history(folder / name / "training.csv", gain)
    return {f"localizer/{name}": folder / name / "training.csv" for name in names}


def test_training_curves_are_those_of_their_log(tmp_path: Path) -> None:
    classes = ["background", "liver", "right kidney", "left kidney", "spleen", "pancreas"]
    files = histories(tmp_path)
    logs = {key.split("/")[1]: pd.read_csv(path) for key, path in files.items()}
    data = training_curves(files, settings_of(classes))
    figure = drawn(data)
    assert titles(figure) == ["loss", "mean of the organs (dot: kept)",
                              "each organ, with the text"]  # fmt: skip
    words = {"no_text": "without the text", "text": "with the text"}
    organs = ("liver", "right kidney", "left kidney", "pancreas")  # the spleen has no value
    expected = [
        {f"{words[name]}, {side}": log[f"{column}_loss"] for name, log in logs.items()
         for side, column in (("training", "train"), ("validation", "val"))},
        {words[name]: log["val_dice"] for name, log in logs.items()},
        {organ: logs["text"][f"val_dice_{organ}"] for organ in organs},
    ]  # fmt: skip
    for axes, curves in zip(figure.axes, expected, strict=True):
        lines = {line.get_label(): line for line in axes.lines if line.get_marker() == "None"}
        assert list(lines) == list(curves)
        for label, values in curves.items():
            assert_allclose(lines[label].get_ydata(), values)
            assert_array_equal(lines[label].get_xdata(), np.arange(1, 13))
        entries = [text.get_text() for text in axes.get_legend().get_texts()]
        assert entries == list(curves)
        assert axes.get_xlabel() == "epoch"
    dots = [line for line in figure.axes[1].lines if line.get_marker() == "o"]
    for dot, log in zip(dots, logs.values(), strict=True):
        assert dot.get_xdata().tolist() == [11]
        assert_allclose(dot.get_ydata(), log["val_dice"][10])
    assert figure.axes[0].get_ylim()[0] == 0
    assert [axes.get_ylim() for axes in figure.axes[1:]] == [(0, 1)] * 2
    assert figure.axes[0].get_ylabel() == "Dice + cross-entropy loss (no unit)"
    assert figure.axes[1].get_ylabel() == "Dice on the validation cases (0 to 1)"
    colours = {line.get_label(): line.get_color() for line in figure.axes[1].lines}
    assert len({colours["with the text"], colours["without the text"]}) == 2


def test_training_without_the_text_says_so(tmp_path: Path) -> None:
    files = {"localizer/no_text": histories(tmp_path)["localizer/no_text"]}
    assert titles(drawn(training_curves(files, SETTINGS)))[2] == "each organ, without the text"


def test_training_without_validation_shows_the_loss_alone(tmp_path: Path) -> None:
    (tmp_path / "training.csv").write_text("epoch,train_loss,selected\n1,2.5,0\n2,2.1,1\n")
    figure = drawn(training_curves({"localizer/text": tmp_path / "training.csv"}, SETTINGS))
    assert [len(axes.lines) for axes in figure.axes] == [1, 0, 0]
    assert [[text.get_text() for text in axes.texts] for axes in figure.axes] == [
        [], ["no validation case"], ["no validation case"]
    ]  # fmt: skip


def test_training_without_an_epoch_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "training.csv").write_text("epoch\n")
    figure = FIGURES["training_curves"]({"localizer/text": tmp_path / "training.csv"}, SETTINGS)
    assert not figure.axes
    assert [text.get_text() for text in figure.texts][-1] == (
        "The localizer was not trained for a single epoch."
    )
