"""How far a sampled map can be trusted: standard errors and reliabilities."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


def split_half(first: NDArray[np.floating[Any]], second: NDArray[np.floating[Any]]) -> float:
    """Reliability of the map behind two half-samples: Spearman's ρ, stepped up to full length.

    Spearman–Brown: 2ρ / (1 + ρ). 0 where a half is flat or the halves disagree.
    """
    from scipy.stats import spearmanr

    both = np.isfinite(first) & np.isfinite(second)
    if both.sum() < 3 or np.ptp(first[both]) == 0 or np.ptp(second[both]) == 0:
        return 0.0
    rho = max(0.0, float(spearmanr(first[both], second[both]).statistic))
    return 2 * rho / (1 + rho)


def reliability(values: NDArray[np.floating[Any]], errors: NDArray[np.floating[Any]]) -> float:
    """Share of the estimates' variance that is not sampling noise: 1 − mean(SE²) / Var, in [0, 1].

    NaN where there are no two finite estimates with errors; 0 where the estimates are flat.
    """
    both = np.isfinite(values) & np.isfinite(errors)
    if both.sum() < 2:
        return float("nan")
    spread = float(values[both].var(ddof=1, dtype=float))
    noise = float(np.mean(np.square(errors[both], dtype=float)))
    return min(1.0, max(0.0, 1 - noise / spread)) if spread > 0 else 0.0


def block_size(samples: int) -> int:
    """Forwards between two looks at a stopping rule: a tenth, at least 20, an even number."""
    return max(20, -(-samples // 20) * 2)


def summary(
    values: NDArray[np.floating[Any]], errors: NDArray[np.floating[Any]]
) -> dict[str, NDArray[np.float64]]:
    """``standard_error`` (the map's median) and ``reliability`` of maps (O, V, …): (O, V) each."""
    shape = values.shape[:2]
    flat = [(values[i], errors[i]) for i in np.ndindex(*shape)]
    medians = [np.median(e[np.isfinite(e)]) if np.isfinite(e).any() else np.nan for _, e in flat]
    return {
        "standard_error": np.array(medians, float).reshape(shape),
        "reliability": np.array([reliability(*one) for one in flat]).reshape(shape),
    }


def grouped(sums: Sequence[NDArray[np.floating[Any]]], groups: int, samples: int) -> NDArray[Any]:
    """Standard error of a mean from Σ ψ and Σ ψ² over groups of dependent forwards.

    ψ is a group's summed influence; the estimate is their sum over ``samples``. NaN for a
    single group.
    """
    total, square = sums
    if groups < 2:
        return np.full_like(total, np.nan)
    spread = (square - total**2 / groups).clip(0) * groups / (groups - 1)
    return np.sqrt(spread) / samples
