"""The arithmetic of `gpu.py`, which needs no GPU: how near two maps are, what seconds mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from page import markdown
from scipy.stats import spearmanr

from xaiclip.explain.attribution import Attribution
from xaiclip.metrics.cost import SegmenterCost

Row = dict[str, object]

#: What a map may differ from the CPU's in float32: least rank correlation, largest difference as a
#: share of the range of the CPU's map. Half precision and TF32 round; theirs is told, not judged.
LIMITS = {"fp32": (0.999, 0.01)}
EQUALITY = [
    *("model", "method", "organ", "value", "precision", "rank_correlation", "max_difference"),
    *("undefined", "within", "forwards", "batch", "seconds_cpu", "seconds_device"),
]
SPEED = [
    *("model", "weights", "side", "precision", "batch", "organs", "encode_seconds"),
    *("decode_seconds", "forwards_per_second", "encode_tflops", "encode_share_of_peak"),
    *("decode_tflops", "decode_share_of_peak", "peak_mb"),
]


def agreement(ours: NDArray[np.floating[Any]], theirs: NDArray[np.floating[Any]]) -> Row:
    """How near a map is to another one of the same shape, the CPU's.

    Returns:
        ``rank_correlation``: Spearman's, over the pixels where both are defined; 1 where both are
        constant. ``max_difference``: as a share of the range of ``theirs``. ``undefined``: pixels
        where one is defined and the other is not.
    """
    defined = np.isfinite(ours) & np.isfinite(theirs)
    a, b = ours[defined].astype(float), theirs[defined].astype(float)
    undefined = int((np.isfinite(ours) != np.isfinite(theirs)).sum())
    if not len(a):
        return {"rank_correlation": np.nan, "max_difference": np.nan, "undefined": undefined}
    difference, extent = float(np.abs(a - b).max()), float(np.ptp(b))
    if np.ptp(a) == 0 or extent == 0:
        rank = 1.0 if np.ptp(a) == extent else np.nan
        share = 0.0 if difference == 0 else np.inf
    else:
        rank, share = float(spearmanr(a, b).statistic), difference / extent
    return {"rank_correlation": rank, "max_difference": share, "undefined": undefined}


def within(row: Mapping[str, Any], precision: str) -> bool | None:
    """Whether a map is near enough to the CPU's; None where no limit is stated."""
    if precision not in LIMITS:
        return None
    rank, difference = LIMITS[precision]
    return bool(
        row["rank_correlation"] >= rank
        and row["max_difference"] <= difference
        and row["undefined"] == 0
    )


def compared(ours: Sequence[Attribution], theirs: Sequence[Attribution]) -> list[Row]:
    """The agreement of the maps that both have, and of those that one lacks."""
    named = [{(one.organ, one.variant, one.value): one.map for one in maps}
             for maps in (ours, theirs)]  # fmt: skip
    rows: list[Row] = []
    for key in {**named[0], **named[1]}:
        if all(key in maps for maps in named):
            found = agreement(named[0][key], named[1][key])
        else:  # an organ whose unperturbed segmentation is empty on one side
            found = dict.fromkeys(("rank_correlation", "max_difference"), np.nan)
            found["undefined"] = next(maps[key] for maps in named if key in maps).size
        rows.append({"organ": key[0], "value": key[2], **found})
    return rows


def rates(
    batch: int,
    seconds: tuple[float, float],
    cost: SegmenterCost,
    peaks: tuple[float, float],
) -> Row:
    """What the seconds of a batch mean.

    Args:
        batch: images that were encoded, and decoded for all organs.
        seconds: the encoder's and the decoder's.
        cost: of one image.
        peaks: TFLOP/s of a large matrix product, in the precision of the encoder and the decoder.
    """
    encode, decode = (
        batch * one.total / 1e3 / took
        for one, took in zip((cost.encode, cost.decode), seconds, strict=True)
    )
    return {
        "encode_seconds": seconds[0],
        "decode_seconds": seconds[1],
        "forwards_per_second": batch / sum(seconds),
        "encode_tflops": encode,
        "encode_share_of_peak": encode / peaks[0],
        "decode_tflops": decode,
        "decode_share_of_peak": decode / peaks[1],
    }


def batches(largest: int) -> list[int]:
    """1, 2, 4, …, ``largest``."""
    return [2**k for k in range(largest.bit_length()) if 2**k <= largest]


def summary(equal: pd.DataFrame, fast: pd.DataFrame, known: Mapping[str, Any]) -> str:
    """The page of a run: the worst map of each method, the best batch of each precision."""
    keys = ["model", "method", "precision"]
    worst = (
        equal.groupby(keys, sort=False)
        .agg(
            maps=("organ", "size"),
            lowest_rank_correlation=("rank_correlation", lambda x: x.min(skipna=False)),
            largest_difference=("max_difference", lambda x: x.max(skipna=False)),
            undefined=("undefined", "sum"),
            forwards=("forwards", "first"),
            seconds_cpu=("seconds_cpu", "first"),
            seconds_device=("seconds_device", "first"),
        )
        .reset_index()
    )
    best = fast.loc[fast.groupby(["model", "precision"], sort=False).forwards_per_second.idxmax()]
    rank, difference = LIMITS["fp32"]
    broken = int((~equal.within.dropna().astype(bool)).sum())  # none: no limit is stated
    verdict = (
        f"**{broken} maps in fp32 are not the CPU's**"
        if broken
        else "Every map in fp32 is the CPU's"
    )
    reached = ", ".join(
        f"{value:.3g} TFLOP/s in {name}" for name, value in known["peak_tflops"].items()
    )
    device = known.get("card", known["device"])
    return "\n\n".join(
        [
            f"# {device}",
            f"PyTorch {known['torch']}, Python {known['python']}, {known['date']}; beside it "
            f"{known['cpu']}, {known['cpu_threads']} threads. A large matrix product reaches "
            f"{reached}.",
            f"{verdict} (rank correlation ≥ {rank}, difference ≤ {difference} of the map's range).",
            "## The worst map of each method",
            markdown(worst, {"lowest_rank_correlation": 5, "largest_difference": 5,
                             "seconds_cpu": 2, "seconds_device": 3}),
            "## The best batch of each precision",
            "Random weights: for the speed alone.",
            markdown(best.drop(columns=["decode_tflops"]), {
                "encode_seconds": 5, "decode_seconds": 5, "forwards_per_second": 1,
                "encode_tflops": 3, "encode_share_of_peak": 3, "decode_share_of_peak": 3,
                "peak_mb": 0}),
        ]
    ) + "\n"  # fmt: skip
