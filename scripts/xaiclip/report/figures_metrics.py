"""Figures of numbers: bars, distributions, training curves."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from xaiclip.errors import CaseError
from xaiclip.evaluate.statistics import bootstrap_mean, case_means
from xaiclip.report import style
from xaiclip.report.sources import Settings, Sources

_BARS = (
    ("fidelity_dice", "fidelity Dice (0 to 1)"),
    ("fidelity_iou", "fidelity IoU (0 to 1)"),
    ("gflops_total", "operations (GFLOPs per slice)"),
    ("seconds_total", "runtime (s per slice)"),
)
_DISTRIBUTIONS = (
    ("dice", "localization Dice (0 to 1)"),
    ("iou", "localization IoU (0 to 1)"),
)
_TARGETS = (("pred", "against the segmentation"), ("gt", "against the reference"))
_METHODS = {"occlusion": "occlusion", "lime": "LIME", "rise": "RISE"}


def comparison(sources: Sources, settings: Settings) -> Figure:
    """Dice, IoU, operations and time of each method: means over cases, intervals, cases."""
    rows = _explained(sources, [column for column, _ in _BARS])
    methods = sorted(rows["method"].unique(), key=[*_METHODS, *rows["method"]].index)
    guidances = [name for name in style.GUIDANCES if (rows["guidance"] == name).any()]
    figure = style.new_figure("Explanations without and with guidance", 5.2)
    for index, (axes, (column, label)) in enumerate(
        zip(figure.subplots(2, 2).flat, _BARS, strict=True)
    ):
        _bars(axes, rows, column, methods, guidances)
        axes.set_ylabel(label)
        style.letter(axes, index, label.split(" (")[0])
    devices = ", ".join(sorted(rows["device"].dropna().unique()))
    figure.legend(
        handles=[_patch(name) for name in guidances],
        loc="outside lower center",
        ncols=len(guidances),
        title=(
            "bars: mean over cases, with their number; lines: 95% bootstrap interval; "
            f"dots: cases; runtime on {devices}"
        ),
        title_fontsize=7.5,
    )
    return figure


def lime_distributions(sources: Sources, settings: Settings) -> Figure:
    """Localization Dice and IoU of LIME over cases and organs, without and with guidance."""
    names = [
        f"localization_{measure}_{target}"
        for measure, _ in _DISTRIBUTIONS
        for target, _ in _TARGETS
    ]
    chance = [f"localization_dice_{target}_chance" for target, _ in _TARGETS]
    rows = _explained(sources, [*names, *chance])
    rows = rows[(rows["method"] == "lime") & rows["guidance"].isin(["full", "roi"])]
    if rows.empty:
        raise CaseError("No organ is explained by LIME.")
    organs = style.Organs(settings.classes)
    shown = [organ for organ in organs.names if (rows["organ"] == organ).any()]
    figure = style.new_figure("LIME: localization over cases and organs", 3.6)
    for index, (axes, (measure, label)) in enumerate(
        zip(figure.subplots(1, 2, sharey=True), _DISTRIBUTIONS, strict=True)
    ):
        _distribution(axes, rows, measure, organs)
        axes.set_ylabel(label)
        style.letter(axes, index, measure.replace("dice", "Dice").replace("iou", "IoU"))
    figure.legend(
        handles=[
            *organs.handles(shown, markers=True),
            Line2D([], [], color="black", linestyle=(0, (2, 1)), label="chance level (mean)"),
        ],
        loc="outside lower center",
        ncols=6,
    )
    return figure


def training_curves(sources: Sources, settings: Settings) -> Figure:
    """Loss and validation Dice by epoch, with and without the text."""
    histories = {
        key.rsplit("/", 1)[1]: pd.read_csv(path)
        for key, path in sources.items()
        if key.startswith("localizer/")
    }
    if not any(len(rows) for rows in histories.values()):
        raise CaseError("The localizer was not trained for a single epoch.")
    organs = style.Organs(settings.classes)
    figure = style.new_figure("Training of the localizer", 3.9)
    loss, mean, each = figure.subplots(1, 3)
    for variant, rows in histories.items():
        words, colour, lines = _TRAINED[variant]
        for column, side, line in zip(
            ("train_loss", "val_loss"), ("training", "validation"), lines, strict=True
        ):
            if column in rows:
                label = f"{words}, {side}"
                loss.plot(rows["epoch"], rows[column], color=colour, ls=line, label=label)
        if "val_dice" in rows:
            mean.plot(rows["epoch"], rows["val_dice"], color=colour, ls=lines[0], label=words)
            kept = rows[rows["selected"] == 1]
            mean.plot(kept["epoch"], kept["val_dice"], "o", color=colour, mec="black", ms=5)
    rows = histories.get("text", next(iter(histories.values())))
    for organ in organs.names:
        if f"val_dice_{organ}" in rows and rows[f"val_dice_{organ}"].notna().any():
            each.plot(
                rows["epoch"],
                rows[f"val_dice_{organ}"],
                color=organs.colour(organ),
                linestyle=organs.line(organ),
                label=organ,
            )
    loss.set(ylabel="Dice + cross-entropy loss (no unit)", ylim=(0, None))
    for axes in (mean, each):
        axes.set(ylabel="Dice on the validation cases (0 to 1)", ylim=(0, 1))
    titles = ("loss", "mean of the organs (dot: kept)", "each organ, with the text")
    for index, (axes, title) in enumerate(zip((loss, mean, each), titles, strict=True)):
        axes.set_xlabel("epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(axis="y")
        style.letter(axes, index, title)
        if axes.lines:
            axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2))  # never over a curve
        else:
            axes.text(0.5, 0.5, "no validation case", transform=axes.transAxes, ha="center")
    return figure


_TRAINED = {
    "text": ("with the text", "#0072B2", ("-", (0, (4, 1)))),
    "no_text": ("without the text", "#E69F00", ((0, (1, 1)), (0, (4, 1, 1, 1)))),
}


def _explained(sources: Sources, columns: Sequence[str]) -> pd.DataFrame:
    """Primary rows that hold values; ``guidance`` tells the ROI's source, too."""
    names = ["case", "slice", "organ", "method", "guidance", "roi_source", "device"]
    rows = pd.read_parquet(
        sources["metrics"],
        columns=[*names, "primary", "skipped", *columns],
        filters=[("primary", "==", True)],
    )
    rows = rows[rows["skipped"].isna() & rows["primary"].eq(True)]
    if rows.empty:
        raise CaseError("No organ of any case is explained: see skipped.tsv for the reasons.")
    special = rows["roi_source"].isin(["reference", "body"])
    return rows.assign(
        guidance=rows["guidance"].where(~special, rows["guidance"] + "_" + rows["roi_source"])
    )


def _bars(
    axes: Axes,
    rows: pd.DataFrame,
    column: str,
    methods: Sequence[str],
    guidances: Sequence[str],
) -> None:
    width = 0.8 / len(guidances)
    cases = {
        (method, guidance): case_means(
            rows[(rows["method"] == method) & (rows["guidance"] == guidance)], column, "organ"
        ).to_numpy()
        for method in methods
        for guidance in guidances
    }
    values = np.concatenate(list(cases.values()))
    values = values[values > 0]
    share = column.startswith("fidelity")
    logarithmic = not share and values.size > 0 and values.max() > 10 * values.min()
    floor = 10 ** np.floor(np.log10(values.min() / 2)) if logarithmic else 0.0
    for m, method in enumerate(methods):
        for g, guidance in enumerate(guidances):
            own = cases[method, guidance]
            estimate = bootstrap_mean(own)
            if not estimate.n:
                continue
            colour, hatch, _ = style.GUIDANCES[guidance]
            at = m + (g - (len(guidances) - 1) / 2) * width
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
            spread = np.linspace(-0.25, 0.25, len(own)) * width if len(own) > 1 else [0.0]
            axes.plot(at + np.asarray(spread), own, "o", ms=2.6, mfc="white", mec="black", mew=0.5)
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
    axes.set_xticks(range(len(methods)), [_METHODS.get(name, name) for name in methods])
    axes.tick_params(axis="x", length=0)
    axes.grid(axis="y")
    if logarithmic:
        axes.set_yscale("log")
        axes.set_ylim(bottom=floor)
    elif share:
        axes.set_ylim(0, 1.03)


def _distribution(axes: Axes, rows: pd.DataFrame, measure: str, organs: style.Organs) -> None:
    """Boxes and points; thin lines join what belongs to one organ of one slice."""
    ticks: list[tuple[float, str]] = []
    for t, (target, against) in enumerate(_TARGETS):
        column = f"localization_{measure}_{target}"
        table = rows.pivot_table(
            index=["case", "slice", "organ"], columns="guidance", values=column, aggfunc="mean"
        )
        columns = [name for name in ("full", "roi") if name in table]
        jitter = np.random.default_rng(0).uniform(-0.17, 0.17, len(table))
        spots = {name: 2.6 * t + g for g, name in enumerate(columns)}
        for (left, x0), (right, x1) in pairwise(spots.items()):
            axes.plot(
                [x0 + jitter, x1 + jitter],
                [table[left], table[right]],
                color="0.75",
                linewidth=0.5,
                zorder=1,
            )
        for name, x in spots.items():
            values = table[name].dropna()
            colour, hatch, _ = style.GUIDANCES[name]
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
            words = "no guidance" if name == "full" else "ROI"
            ticks.append((x, f"{words}\nn = {len(values)}"))
            for organ in organs.names:
                of = table.index.get_level_values("organ") == organ
                axes.plot(
                    x + jitter[of],
                    table.loc[of, name],
                    organs.marker(organ),
                    color=organs.colour(organ),
                    mec="black",
                    mew=0.4,
                    ms=4,
                    zorder=3,
                )
            chance = rows.loc[rows["guidance"] == name, f"localization_dice_{target}_chance"]
            if measure == "dice" and chance.notna().any():
                axes.hlines(
                    chance.mean(), x - 0.4, x + 0.4, color="black", ls=(0, (2, 1)), zorder=4
                )
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
    axes.set(ylim=(-0.03, 1.03), xlim=(-0.7, 4.3))
    axes.grid(axis="y")


def _patch(guidance: str) -> Patch:
    colour, hatch, words = style.GUIDANCES[guidance]
    return Patch(facecolor=colour, hatch=hatch, edgecolor="black", linewidth=0.6, label=words)
