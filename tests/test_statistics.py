import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from xaiclip.metrics.statistics import (
    Bootstrap,
    _counts,
    bootstrap_mean,
    case_means,
    compare,
    wilcoxon_p,
)


@pytest.mark.parametrize("block", [10, 2_000_000])
def test_bootstrap_equals_scipy(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xaiclip.metrics.statistics._BLOCK", block)
    _counts.cache_clear()
    data = np.random.default_rng(3).normal(0.7, 0.1, 12)
    ours = bootstrap_mean(data, Bootstrap(seed=5, resamples=2000, confidence=0.9))
    theirs = stats.bootstrap(
        (data,),
        np.mean,
        n_resamples=2000,
        confidence_level=0.9,
        method="percentile",
        rng=np.random.default_rng(5),
    ).confidence_interval
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high))
    assert ours.mean == pytest.approx(data.mean())
    assert ours.n == 12


@settings(deadline=None, max_examples=25)
@given(st.lists(st.floats(0, 1), min_size=2, max_size=20), st.integers(0, 99))
def test_bootstrap_is_seeded_and_brackets_the_mean(values: list[float], seed: int) -> None:
    estimate = bootstrap_mean(values, Bootstrap(seed, 200))
    assert estimate == bootstrap_mean(values, Bootstrap(seed, 200))
    assert min(values) - 1e-9 <= estimate.low <= estimate.high <= max(values) + 1e-9


@pytest.mark.parametrize(
    ("values", "mean", "n"),
    [([], math.nan, 0), ([math.nan], math.nan, 0), ([0.5, math.nan], 0.5, 1)],
)
def test_too_few_cases_have_no_interval(values: list[float], mean: float, n: int) -> None:
    estimate = bootstrap_mean(values)
    assert estimate.n == n
    assert estimate.mean == pytest.approx(mean, nan_ok=True)
    assert math.isnan(estimate.low)
    assert math.isnan(estimate.high)


def test_identical_cases_have_a_point_interval() -> None:
    estimate = bootstrap_mean([0.25] * 6)
    assert (estimate.mean, estimate.low, estimate.high) == (0.25, 0.25, 0.25)


def test_wilcoxon_equals_scipy() -> None:
    rng = np.random.default_rng(1)
    before, after = rng.random(15), rng.random(15) + 0.2
    assert wilcoxon_p(after - before) == pytest.approx(stats.wilcoxon(after, before).pvalue)


@pytest.mark.parametrize("differences", [[], [0.0] * 20, [0.1] * 5, [0.1] * 5 + [0.0, math.nan]])
def test_no_p_without_enough_differences(differences: list[float]) -> None:
    assert math.isnan(wilcoxon_p(differences))


def test_p_from_six_on() -> None:
    assert wilcoxon_p([0.1, 0.2, 0.3, 0.4, 0.5, 0.6]) == pytest.approx(2 / 64)
    # zeros and unknown differences are no differences
    some = [0.1, -0.2, 0.3, 0.4, 0.5, 0.6, 0.7]
    assert wilcoxon_p([*some, 0.0, 0.0, math.nan]) == wilcoxon_p(some)


def rows(*items: tuple[str, int | None, str, float]) -> pd.DataFrame:
    return pd.DataFrame(items, columns=["case", "slice", "organ", "dice"])


def test_a_case_counts_once() -> None:
    frame = rows(
        ("a", 1, "liver", 1.0),
        ("a", 2, "liver", 0.0),
        ("a", 2, "spleen", 0.7),
        ("b", 1, "liver", 0.2),
        ("c", 1, "liver", math.nan),
    )
    means = case_means(frame, "dice", "organ")
    assert means.to_dict() == pytest.approx({"a": 0.6, "b": 0.2})


def test_only_pairs_are_compared() -> None:
    full = rows(("a", 1, "liver", 0.5), ("a", 1, "spleen", 0.1), ("b", 1, "liver", 0.4))
    roi = rows(("a", 1, "liver", 0.8), ("b", 1, "liver", 0.6), ("c", 1, "liver", 0.9))
    result = compare(full, roi, "dice", "organ")
    assert result.difference.n == 2
    assert result.difference.mean == pytest.approx(0.25)
    assert result.before == pytest.approx(0.45)
    assert result.relative == pytest.approx(0.25 / 0.45)
    assert math.isnan(result.p)


def test_pairs_are_of_the_same_slice_and_cases_count_once() -> None:
    """Case a has two slices and two organs, case b one of each; exact, by hand."""
    full = rows(
        ("a", 1, "liver", 0.1),
        ("a", 2, "liver", 0.5),
        ("a", 1, "spleen", 0.4),
        ("b", 1, "liver", 0.9),
    )
    roi = rows(
        ("a", 3, "liver", 0.0),  # full lacks this slice
        ("a", 2, "liver", 0.7),
        ("a", 1, "spleen", 0.1),
        ("b", 1, "liver", 0.8),
    )
    result = compare(full, roi, "dice", "organ")
    # a: the mean of +0.2 (liver) and -0.3 (spleen); b: -0.1
    assert result.difference.mean == pytest.approx((-0.05 - 0.1) / 2)
    assert result.before == pytest.approx(((0.5 + 0.4) / 2 + 0.9) / 2)
    assert result.difference.n == 2


def test_rows_without_a_slice_index_are_paired() -> None:
    full, roi = rows(("a", None, "liver", 0.5)), rows(("a", None, "liver", 0.7))
    assert compare(full, roi, "dice", "organ").difference.mean == pytest.approx(0.2)


def test_rounding_noise_is_no_difference() -> None:
    cases = [f"c{k}" for k in range(8)]
    full = rows(*((case, 1, "liver", 0.3) for case in cases))
    roi = rows(*((case, 1, "liver", 0.1 + 0.2) for case in cases))
    result = compare(full, roi, "dice", "organ")
    assert result.difference.mean == 0
    assert math.isnan(result.p)


def test_nothing_to_compare() -> None:
    empty = rows()
    result = compare(empty, empty.copy(), "dice", "organ")
    assert result.difference.n == 0
    assert math.isnan(result.difference.mean)
    assert math.isnan(result.relative)
