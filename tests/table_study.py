"""A made-up study's metric rows, none like another, and its statistics computed by hand."""

from collections import defaultdict
from functools import cache
from statistics import fmean
from typing import Any

import numpy as np
from scipy import stats

#: Not in the alphabet's order; the last is none of the paper's.
ORGANS = ("spleen", "liver", "right kidney", "aorta")
SHOWN = ("liver", "right kidney", "spleen", "aorta")
#: Slices of each case.
CASES = {"zoe": (4, 9), "abe": (7,), "kim": (2, 3, 5), "lou": (1,), "ned": (8, 6), "pat": (3,),
         "ulf": (5,), "mia": (4, 2), "max": (6,)}  # fmt: skip
MODALITY = {name: "MR" if name in ("mia", "max") else "CT" for name in CASES}
METHODS = ("rise", "gradient", "occlusion", "lime")  # shown: the paper's in its order, then others
FEW = {"resamples": 150, "seed": 3, "confidence": 0.9}

SHARES = ("fidelity_dice", "fidelity_iou", "localization_dice_pred", "localization_iou_pred",
          "localization_dice_pred_chance", "localization_dice_gt", "localization_iou_gt",
          "localization_dice_gt_chance", "lime_r2", "rho", "rho_union")  # fmt: skip
COSTS = ("n_forwards", "gflops_ptflops", "gflops_total", "seconds_total")


def slices():
    return [(case, index) for case, indices in CASES.items() for index in indices]


def localizer_rows():
    """Both variants; some classes are missing from some slices; the background is much better."""
    rng = np.random.default_rng(5)
    rows = []
    for case, index in slices():
        for place, name in enumerate(("background", *ORGANS)):
            for variant, loss in (("text", 0.0), ("no_text", 0.17)):
                row = {"case": case, "slice": index, "class": name, "variant": variant,
                       "modality": MODALITY[case]}  # fmt: skip
                if name == "spleen" and case in ("abe", "max"):
                    row["skipped"] = "the reference lacks this class in the slice"
                else:
                    row["dice"] = 0.99 - 0.1 * place - loss - 0.05 * rng.random()
                    row["auc_roc"] = 0.999 - 0.02 * place - loss / 9 - 0.01 * rng.random()
                if name == "liver" and case == "kim" and variant == "no_text":
                    row["auc_roc"] = None
                rows.append(row)
    return rows


def segmenter_rows():
    """Reference and ROI boxes of very different Dice; one organ's distances are missing."""
    rng = np.random.default_rng(6)
    rows = []
    for case, index in slices():
        worse = 0.13 * (MODALITY[case] == "MR")
        for place, organ in enumerate(ORGANS):
            for prompt, loss in (("reference", 0.0), ("roi", 0.31)):
                row = {"case": case, "slice": index, "organ": organ, "prompt": prompt,
                       "modality": MODALITY[case]}  # fmt: skip
                if organ == "liver" and case == "lou":
                    row["skipped"] = "the reference lacks this organ in the slice"
                else:
                    row["dice"] = 0.97 - 0.05 * place - loss - worse - 0.04 * rng.random()
                    row["iou"] = row["dice"] - 0.11 - 0.02 * rng.random()
                    row["hd95_mm"] = 3 + 5 * place + 40 * loss + 30 * worse + rng.random()
                if organ == "spleen" and prompt == "roi" and case == "max":
                    row["hd95_mm"] = None
                rows.append(row)
    return rows


def explanation_rows(sources=("localizer",)):
    """Every column of every row is a value of its own; some organs lack one guidance."""
    rng = np.random.default_rng(7)
    rows = []
    for case, index in slices():
        for organ in ORGANS:
            for m, method in enumerate(METHODS):
                for guidance, source in (("full", None), *(("roi", one) for one in sources)):
                    common = {"case": case, "slice": index, "organ": organ, "method": method,
                              "guidance": guidance, "roi_source": source,
                              "modality": MODALITY[case]}  # fmt: skip
                    if organ == "aorta" and case in ("zoe", "lou") and source == "localizer":
                        rows.append({**common, "primary": True, "skipped": "the ROI is empty"})
                        continue
                    for variant, primary in (("ours", True), ("other", False)):
                        for v, value in enumerate(("soft_dice", "hard_dice")):
                            step = (m + 3 * (guidance == "roi") + 2 * (source == "reference")
                                    + 5 * (variant == "other") + 7 * v)  # fmt: skip
                            row = {**common, "variant": variant, "value": value,
                                   "primary": primary and value == "soft_dice",
                                   "shared_by": 3 if case == "kim" else 2}  # fmt: skip
                            for c, name in enumerate(SHARES):
                                row[name] = (0.06 * c + 0.021 * step + 0.03 * rng.random()) % 1
                            for c, name in enumerate(COSTS):
                                row[name] = 10**c + 7 * step + int(30 * rng.random())
                            if method != "lime":
                                row["lime_r2"] = None
                            if case == "pat":
                                row["localization_dice_gt"] = None
                            rows.append(row)
    return rows


# --- the same statistics, another way ---


def known(rows, column, **where):
    """Rows that are not left out, hold the column and are of this key; lists hold members."""
    return [
        row
        for row in rows
        if row.get("skipped") is None
        and row.get(column) is not None
        and all(
            row[name] in wanted if isinstance(wanted, list) else row[name] == wanted
            for name, wanted in where.items()
        )
    ]


def by_case(triples):
    """From (case, part, value) to one value a case: the mean of the parts' means."""
    parts: dict[Any, dict[Any, list[float]]] = defaultdict(lambda: defaultdict(list))
    for case, part, value in triples:
        parts[case][part].append(value)
    return [fmean(map(fmean, parts[case].values())) for case in sorted(parts)]


def summary(values):
    """Mean, interval and n of one value a case."""
    return dict(_summary(tuple(values)))


@cache
def _summary(values):
    one = {"mean": fmean(values), "n": len(values)} if values else {"n": 0}
    if len(values) > 1:
        found = stats.bootstrap(
            (values,),
            np.mean,
            n_resamples=FEW["resamples"],
            confidence_level=FEW["confidence"],
            method="percentile",
            rng=np.random.default_rng(int(FEW["seed"])),
        ).confidence_interval
        one |= {"low": found.low, "high": found.high}
    return one


def mean_of(rows, column, part, **where):
    chosen = known(rows, column, **where)
    return summary(by_case([(row["case"], row[part], row[column]) for row in chosen]))


def gain_of(rows, column, part, before, after, **where):
    """The paired difference after − before, its share of the mean before, and its p."""
    sides = []
    for side in (before, after):
        found = defaultdict(list)
        for row in known(rows, column, **where, **side):
            found[row["case"], row["slice"], row[part]].append(row[column])
        sides.append({key: fmean(values) for key, values in found.items()})
    pairs = sorted(set(sides[0]) & set(sides[1]))
    differences = by_case([(key[0], key[2], sides[1][key] - sides[0][key]) for key in pairs])
    one = summary(differences)
    if pairs:
        start = fmean(by_case([(key[0], key[2], sides[0][key]) for key in pairs]))
        one["relative"] = 100 * one["mean"] / start
    moved = [value for value in differences if abs(value) > 1e-12]
    if len(moved) >= 6:
        one["p"] = stats.wilcoxon(moved).pvalue
    return one
