"""A smooth guess of scores that were not measured, and how sure it is: Gaussian-process regression.

Scores of windows are heavy-tailed: an organ's own windows fall a hundred times as far as all
others. The regression sees them through asinh, about the median and in units of `WIDE` median
absolute deviations: nearly linear among the many small effects, logarithmic beyond.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cholesky, solve_triangular
from scipy.spatial.distance import cdist

WIDE = 4.0
LENGTHS = (1.0, 1.5, 2.2, 3.3, 5.0)  # strides
NUGGETS = (0.01, 0.05, 0.2)  # share of the variance that a place has for itself
_FIT = 256  # values that these are chosen by, at most: the cost grows with their cube

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Surface:
    """Scores at M places: as measured, or guessed.

    Attributes:
        values: float64 (M,), the posterior median.
        slope: float64 (M,), of the score over the transformed one.
        covariance: float64 (M, M), of the transformed scores; 0 where they were measured.
    """

    values: Array
    slope: Array
    covariance: Array


def surface(
    places: NDArray[np.floating], measured: NDArray[np.integer], values: NDArray[np.floating]
) -> Surface:
    """Constant mean, Matérn 3/2 and a nugget (Rasmussen and Williams 2006).

    Length and nugget are the most likely of a few, mean and variance the most likely ones.

    Args:
        places: (M, D); one unit is a stride.
        measured: (N,), which of them have scores.
        values: (N,), those scores.
    """
    values = values.astype(np.float64)
    centre = float(np.median(values))
    away = np.abs(values - centre)
    scale = WIDE * float(np.median(away)) or float(away.max())
    whole = np.full(len(places), centre)
    if scale == 0:  # all alike
        return Surface(whole, np.ones_like(whole), np.zeros((len(whole), len(whole))))
    moved = np.arcsinh((values - centre) / scale)
    some = np.linspace(0, len(values) - 1, min(_FIT, len(values))).round().astype(int)
    apart = cdist(places[measured[some]], places[measured[some]])
    length, nugget = max(
        product(LENGTHS, NUGGETS),
        key=lambda pair: _Fit(_matern(apart / pair[0]), pair[1], moved[some]).likelihood,
    )
    correlation = _matern(cdist(places, places[measured]) / length)
    fit = _Fit(correlation[measured], nugget, moved)
    seen = fit.whiten(correlation.T)
    guess = fit.mean + seen.T @ fit.residual
    own = _matern(cdist(places, places) / length) + nugget * np.eye(len(places))
    covariance = fit.variance * (own - seen.T @ seen)
    guess[measured] = moved
    covariance[measured] = covariance[:, measured] = 0
    whole = centre + scale * np.sinh(guess)
    whole[measured] = values
    return Surface(whole, scale * np.cosh(guess), covariance)


class _Fit:
    """Mean and variance by generalised least squares, for one correlation matrix and nugget."""

    def __init__(self, correlation: Array, nugget: float, values: Array) -> None:
        self._factor = cholesky(correlation + nugget * np.eye(len(values)), lower=True)
        ones, white = self.whiten(np.ones_like(values)), self.whiten(values)
        self.mean = float(ones @ white / (ones @ ones))
        self.residual = white - self.mean * ones
        self.variance = float(self.residual @ self.residual) / len(values)

    def whiten(self, columns: Array) -> Array:
        return np.asarray(solve_triangular(self._factor, columns, lower=True))

    @property
    def likelihood(self) -> float:
        """Logarithm, but for a constant."""
        spread = len(self.residual) / 2 * np.log(max(self.variance, 1e-300))
        return float(-spread - np.log(self._factor.diagonal()).sum())


def _matern(apart: Array) -> Array:
    far = np.sqrt(3) * apart
    return np.asarray((1 + far) * np.exp(-far))
