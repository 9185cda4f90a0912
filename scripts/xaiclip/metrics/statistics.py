"""Statistics over cases: a case is one draw, however many slices and organs it holds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from xaiclip.explain.settings import setting

_NAN = float("nan")
_BLOCK = 2_000_000  # numbers at a time

#: With fewer non-zero differences no two-sided signed-rank p can fall below 0.05.
MIN_DIFFERENCES = 6


@dataclass(frozen=True)
class Bootstrap:
    """How intervals are made: percentiles of the mean over ``resamples`` draws of the cases."""

    seed: int = 0
    resamples: int = setting(
        5000, "Bootstrap resamples of the cases.", minimum=100, maximum=10_000_000
    )
    confidence: float = setting(0.95, "Level of the intervals.", minimum=0.5, below=1)


DEFAULT = Bootstrap()


@dataclass(frozen=True)
class Estimate:
    """A mean over ``n`` cases and its interval; NaN where it cannot be had."""

    mean: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Comparison:
    """A paired difference, the mean that it starts from, and the signed-rank p-value."""

    difference: Estimate
    before: float
    p: float

    @property
    def relative(self) -> float:
        """Difference as a share of the mean that it starts from."""
        return self.difference.mean / self.before if self.before else _NAN


def bootstrap_mean(values: ArrayLike, settings: Bootstrap = DEFAULT) -> Estimate:
    """Mean of one value per case with its percentile bootstrap interval.

    NaN values are left out. Without a value the mean is NaN; with fewer than two, the interval.
    """
    data = np.asarray(values, dtype=np.float64)
    data = data[np.isfinite(data)]
    if data.size < 2:
        return Estimate(float(data[0]) if data.size else _NAN, _NAN, _NAN, data.size)
    means = np.concatenate(
        [counts @ data for counts in _draws(data.size, settings.seed, settings.resamples)]
    )
    tail = 50 * (1 - settings.confidence)
    low, high = np.percentile(means / data.size, [tail, 100 - tail])
    return Estimate(float(data.mean()), float(low), float(high), data.size)


@lru_cache(maxsize=2)
def _counts(n: int, seed: int, resamples: int) -> NDArray[np.uint16]:
    """How often each of ``n`` cases is drawn, (resamples, n); the draws of `scipy.stats.bootstrap`.

    All measures of a table share them: for thousands of cases, drawing takes most of the time.
    """
    rng = np.random.default_rng(seed)
    counts = np.empty((resamples, n), dtype=np.uint16)
    step = max(1, _BLOCK // n)
    for start in range(0, resamples, step):
        block = counts[start : start + step]
        drawn = rng.integers(0, n, block.shape) + n * np.arange(len(block))[:, None]
        block[:] = np.bincount(drawn.ravel(), minlength=block.size).reshape(block.shape)
    return counts


def _draws(n: int, seed: int, resamples: int) -> Iterator[NDArray[np.float64]]:
    """`_counts` as floats, some rows at a time."""
    counts = _counts(n, seed, resamples)
    step = max(1, _BLOCK // n)
    for start in range(0, resamples, step):
        yield counts[start : start + step].astype(np.float64)


def wilcoxon_p(differences: ArrayLike) -> float:
    """Two-sided p of Wilcoxon's signed-rank test on paired differences.

    Zeros and NaN are left out; NaN if fewer than `MIN_DIFFERENCES` remain.
    """
    from scipy import stats

    data = np.asarray(differences, dtype=np.float64)
    data = data[np.isfinite(data) & (data != 0)]
    return float(stats.wilcoxon(data).pvalue) if data.size >= MIN_DIFFERENCES else _NAN


def case_means(frame: pd.DataFrame, value: str, part: str) -> pd.Series:
    """One value per case: the mean over its slices for each ``part`` (organ or class), then the
    mean over the parts. Rows without the value are left out. Sorted by case."""
    known = frame[["case", part, value]].dropna()
    return known.groupby(["case", part])[value].mean().groupby("case").mean()


def compare(
    before: pd.DataFrame,
    after: pd.DataFrame,
    value: str,
    part: str,
    settings: Bootstrap = DEFAULT,
) -> Comparison:
    """Paired difference after − before of one column, over cases.

    Rows are paired by case, slice and ``part`` and only pairs count; differences are then averaged
    within the case as `case_means` does.
    """
    keys = ["case", "slice", part]
    sides = [_by(frame, keys, value) for frame in (before, after)]
    pairs = pd.concat(sides, axis=1, keys=["before", "after"], join="inner").dropna().reset_index()
    # rounding noise must not pass for a difference that has a sign
    pairs["difference"] = (pairs["after"] - pairs["before"]).round(12)
    differences = case_means(pairs, "difference", part)
    return Comparison(
        difference=bootstrap_mean(differences.to_numpy(), settings),
        before=float(case_means(pairs, "before", part).mean()),
        p=wilcoxon_p(differences.to_numpy()),
    )


def _by(frame: pd.DataFrame, keys: Sequence[str], value: str) -> pd.Series:
    # a missing slice index must not lose the row
    filled = frame[[*keys, value]].assign(slice=frame["slice"].fillna(-1).astype(int))
    return filled.groupby(list(keys))[value].mean()
