"""Figures of numbers: bars and distributions; their data, and their drawing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import NullFormatter, StrMethodFormatter
from numpy.typing import NDArray

from xaiclip.errors import CaseError
from xaiclip.metrics.statistics import Estimate, bootstrap_mean, case_means
from xaiclip.report import colours, style
from xaiclip.report.catalogue import makes_figure
from xaiclip.report.drawing import draw
from xaiclip.report.sources import Settings, Sources
from xaiclip.report.words import plain

#: What figure 8 compares. No seconds: jobs share a machine, so they compare nothing.
_BARS = (
    ("fidelity_dice", "fidelity Dice (0 to 1)"),
    ("fidelity_iou", "fidelity IoU (0 to 1)"),
    ("gflops_total", "operations (GFLOPs per slice)"),
    ("n_forwards", "forwards (images per slice)"),
)
#: How people write the names of methods; any other name is shown with blanks in its place.
_METHODS = {
    "occlusion": "occlusion",
    "lime": "LIME",
    "rise": "RISE",
    "grad_cam": "Grad-CAM",
    "gradient_shap": "Gradient SHAP",
    "integrated_gradients": "Integrated Gradients",
    "shapley": "Shapley",
}
_FEW = 4  # methods whose names stand side by side
_DISTRIBUTIONS = (
    ("dice", "localization Dice (0 to 1)"),
    ("iou", "localization IoU (0 to 1)"),
)
_TARGETS = {"pred": "against the segmentation", "gt": "against the reference"}
#: Words below the boxes.
_GUIDED = {"full": "no guidance", "roi": "ROI"}


# --- bars ----------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Bar:
    """One bar: a mean over cases with its interval, and one value for each case."""

    method: str
    guidance: str
    estimate: Estimate
    cases: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class BarPanel:
    """Bars of one measure. ``floor``: where they start; above 0 the axis is logarithmic."""

    label: str
    bars: Sequence[Bar]
    floor: float = 0.0
    share: bool = False


@dataclass(frozen=True, eq=False)
class Comparison:
    """Bars of each method, guidances side by side, a panel for each measure."""

    methods: Sequence[str]
    guidances: Sequence[str]
    panels: Sequence[BarPanel]


@makes_figure(
    "figure08_comparison",
    ["metrics/explanations"],
    "Fidelity (Dice and IoU), operations and forwards of each method, without and with "
    "guidance; bars are means over cases with 95% bootstrap intervals. The paper's figure "
    "8, whose runtimes are left out: jobs of a study share a machine, so their seconds "
    "compare nothing.",
)
def comparison(sources: Sources, settings: Settings) -> Comparison:
    """Dice, IoU, operations and forwards of each method: means over cases, intervals, cases."""
    rows = _explained(sources, [column for column, _ in _BARS])
    methods = sorted(rows["method"].unique(), key=[*_METHODS, *rows["method"]].index)
    guidances = [name for name in colours.GUIDANCES if (rows["guidance"] == name).any()]
    return Comparison(
        methods,
        guidances,
        [_bar_panel(rows, column, label, methods, guidances) for column, label in _BARS],
    )


def _bar_panel(
    rows: pd.DataFrame, column: str, label: str, methods: Sequence[str], guidances: Sequence[str]
) -> BarPanel:
    bars = []
    for method in methods:
        for guidance in guidances:
            own = rows[(rows["method"] == method) & (rows["guidance"] == guidance)]
            cases = case_means(own, column, "organ").to_numpy()
            if cases.size:
                bars.append(Bar(method, guidance, bootstrap_mean(cases), cases))
    values = np.concatenate([np.empty(0), *(bar.cases for bar in bars)])
    values = values[values > 0]
    share = column.startswith("fidelity")
    logarithmic = not share and values.size > 0 and values.max() > 10 * values.min()
    floor = float(10 ** np.floor(np.log10(values.min() / 2))) if logarithmic else 0.0
    return BarPanel(label, bars, floor, share)


@draw.register
def draw_comparison(data: Comparison) -> Figure:
    """Draw the four panels."""
    figure = style.new_figure("Explanations without and with guidance", 5.2)
    for index, (axes, panel) in enumerate(
        zip(figure.subplots(2, 2).flat, data.panels, strict=True)
    ):
        _draw_bars(axes, panel, data.methods, data.guidances)
        axes.set_ylabel(panel.label)
        style.letter(axes, index, panel.label.split(" (")[0])
    style.legend(
        figure,
        [_patch(name) for name in data.guidances],
        "bars: mean over cases, with their number; lines: 95% bootstrap interval; dots: cases",
        len(data.guidances),
    )
    return figure


def _draw_bars(
    axes: Axes, panel: BarPanel, methods: Sequence[str], guidances: Sequence[str]
) -> None:
    width, floor = 0.8 / len(guidances), panel.floor
    for bar in panel.bars:
        estimate, own = bar.estimate, bar.cases
        colour, hatch, _ = colours.GUIDANCES[bar.guidance]
        beside = guidances.index(bar.guidance) - (len(guidances) - 1) / 2
        at = methods.index(bar.method) + beside * width
        axes.bar(
            at,
            estimate.mean - floor,
            width * 0.92,
            bottom=floor,
            color=colour,
            hatch=hatch,
            edgecolor="black",
            linewidth=0.6,
        )
        spread = np.linspace(-0.25, 0.25, len(own)) * width if len(own) > 1 else np.zeros(1)
        axes.plot(at + spread, own, "o", ms=2.6, mfc="white", mec="black", mew=0.5)
        if np.isfinite(estimate.low):
            axes.vlines(at, estimate.low, estimate.high, color="white", linewidth=3)
            axes.vlines(at, estimate.low, estimate.high, color="black", linewidth=1.4)
        axes.annotate(
            f"{estimate.n}",
            (at, floor),
            (0, 2),
            textcoords="offset points",
            ha="center",
            size=6,
            bbox={"boxstyle": "square,pad=0.1", "fc": "white", "ec": "none"},
        )
    names = [_METHODS.get(name, plain(name).replace("_", " ")) for name in methods]
    # many names would run into one another
    slanted: dict[str, Any] = {"rotation": 35, "ha": "right", "rotation_mode": "anchor"}
    axes.set_xticks(range(len(methods)), names, **(slanted if len(methods) > _FEW else {}))
    axes.tick_params(axis="x", length=0)
    axes.grid(axis="y")
    if floor:
        axes.set_yscale("log")
        axes.set_ylim(bottom=floor)
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    elif panel.share:
        axes.set_ylim(0, 1.03)


# --- distributions -------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Group:
    """The values of one guidance against one target.

    Attributes:
        guidance: ``full`` or ``roi``.
        values: one for each organ of each slice, indexed by case, slice and organ; NaN where it
            is missing. The groups of a target have the same index.
        chance: the mean chance level; None where it is not shown.
    """

    guidance: str
    values: pd.Series
    chance: float | None


@dataclass(frozen=True, eq=False)
class DistributionPanel:
    """Groups by the words of their target, for one measure."""

    title: str
    label: str
    targets: dict[str, Sequence[Group]]


@dataclass(frozen=True, eq=False)
class Distributions:
    """LIME's localization, a panel for each measure; ``shown``: organs that have a value."""

    organs: colours.Organs
    shown: Sequence[str]
    panels: Sequence[DistributionPanel]


@makes_figure(
    "figure11_lime_distributions",
    ["metrics/explanations"],
    "Distribution over cases and organs of LIME's localization Dice and IoU, without and "
    "with guidance. The paper's figure 11.",
    methods={"lime": {}},
)
def lime_distributions(sources: Sources, settings: Settings) -> Distributions:
    """Localization Dice and IoU of LIME over cases and organs, without and with guidance."""
    names = [f"localization_{one}_{target}" for one, _ in _DISTRIBUTIONS for target in _TARGETS]
    chance = [f"localization_dice_{target}_chance" for target in _TARGETS]
    rows = _explained(sources, [*names, *chance])
    rows = rows[(rows["method"] == "lime") & rows["guidance"].isin(list(_GUIDED))]
    if rows.empty:
        raise CaseError("No organ is explained by LIME.")
    organs = colours.Organs(settings.classes)
    shown = [organ for organ in organs.names if (rows["organ"] == organ).any()]
    titles = {"dice": "Dice", "iou": "IoU"}
    panels = [
        DistributionPanel(
            titles[measure],
            label,
            {words: _groups(rows, measure, target) for target, words in _TARGETS.items()},
        )
        for measure, label in _DISTRIBUTIONS
    ]
    return Distributions(organs, shown, panels)


def _groups(rows: pd.DataFrame, measure: str, target: str) -> list[Group]:
    table = rows.pivot_table(
        index=["case", "slice", "organ"],
        columns="guidance",
        values=f"localization_{measure}_{target}",
        aggfunc="mean",
    )
    groups = []
    for guidance in _GUIDED:
        if guidance in table:
            of_guidance = rows[rows["guidance"] == guidance]
            chance = of_guidance[f"localization_dice_{target}_chance"].mean()
            shown = measure == "dice" and pd.notna(chance)
            groups.append(Group(guidance, table[guidance], float(chance) if shown else None))
    return groups


@draw.register
def draw_distributions(data: Distributions) -> Figure:
    """Draw both panels: boxes, points, and thin lines between those of one organ of one slice."""
    figure = style.new_figure("LIME: localization over cases and organs", 3.6)
    for index, (axes, panel) in enumerate(
        zip(figure.subplots(1, 2, sharey=True), data.panels, strict=True)
    ):
        ticks: list[tuple[float, str]] = []
        for t, (against, groups) in enumerate(panel.targets.items()):
            ticks += _draw_groups(axes, groups, 2.6 * t, data.organs)
            axes.annotate(
                against,
                (2.6 * t + 0.5, 0),
                (0, -34),
                xycoords=("data", "axes fraction"),
                textcoords="offset points",
                ha="center",
            )
        axes.set_xticks([x for x, _ in ticks], [words for _, words in ticks])
        axes.tick_params(axis="x", length=0)
        axes.set(ylim=(-0.03, 1.03), xlim=(-0.7, 4.3), ylabel=panel.label)
        axes.grid(axis="y")
        style.letter(axes, index, panel.title)
    chance = Line2D([], [], color="black", linestyle=(0, (2, 1)), label="chance level (mean)")
    style.legend(figure, [*data.organs.handles(data.shown), chance])
    return figure


def _draw_groups(
    axes: Axes, groups: Sequence[Group], start: float, organs: colours.Organs
) -> list[tuple[float, str]]:
    """Draw the groups of one target from ``start`` on; their ticks."""
    ticks = []
    count = max((len(group.values) for group in groups), default=0)
    jitter = np.random.default_rng(0).uniform(-0.17, 0.17, count)
    spots = [(start + g, group) for g, group in enumerate(groups)]
    for (x0, left), (x1, right) in pairwise(spots):
        axes.plot(
            [x0 + jitter, x1 + jitter],
            [left.values, right.values],
            color="0.75",
            linewidth=0.5,
            zorder=1,
        )
    for x, group in spots:
        values = group.values.dropna()
        colour, hatch, _ = colours.GUIDANCES[group.guidance]
        if len(values) > 2:
            axes.boxplot(
                [values],
                positions=[x],
                widths=0.55,
                showfliers=False,
                patch_artist=True,
                medianprops={"color": "black", "linewidth": 1.4},
                boxprops={"facecolor": colour, "hatch": hatch, "alpha": 0.35},
                whiskerprops={"linewidth": 0.8},
                capprops={"linewidth": 0.8},
                zorder=2,
            )
        ticks.append((x, f"{_GUIDED[group.guidance]}\nn = {len(values)}"))
        for organ in organs.names:
            of = group.values.index.get_level_values("organ") == organ
            axes.plot(
                x + jitter[of],
                group.values[of],
                organs.marker(organ),
                color=organs.colour(organ),
                mec="black",
                mew=0.4,
                ms=4,
                zorder=3,
            )
        if group.chance is not None:
            axes.hlines(group.chance, x - 0.4, x + 0.4, color="black", ls=(0, (2, 1)), zorder=4)
    return ticks


# --- what both read ------------------------------------------------------------------------------


def _explained(sources: Sources, columns: Sequence[str]) -> pd.DataFrame:
    """Primary rows that hold values; ``guidance`` tells the ROI's source, too."""
    names = ["case", "slice", "organ", "method", "guidance", "roi_source"]
    rows = pd.read_parquet(
        sources["metrics"],
        columns=[*names, "primary", "skipped", *columns],
        filters=[("primary", "==", True)],
    )
    rows = rows[rows["skipped"].isna()]
    if rows.empty:
        raise CaseError("No organ of any case is explained: see skipped.tsv for the reasons.")
    special = rows["roi_source"].isin(["reference", "body"])
    return rows.assign(
        guidance=rows["guidance"].where(~special, rows["guidance"] + "_" + rows["roi_source"])
    )


def _patch(guidance: str) -> Patch:
    colour, hatch, words = colours.GUIDANCES[guidance]
    return Patch(facecolor=colour, hatch=hatch, edgecolor="black", linewidth=0.6, label=words)
