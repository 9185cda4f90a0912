"""A smooth guess of scores that were not measured, and how sure it is: Gaussian-process regression.

Scores of windows are heavy-tailed: an organ's own windows fall a hundred times as far as all
others. The regression sees them through asinh, about the median and in units of the median
absolute deviation, so that the many small effects are told apart too.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

_FIT = 256  # values that the kernel is fitted to, at most: its cost grows with their cube
_ADDED = 1e-6  # to a variance


@dataclass(frozen=True, eq=False)
class Surface:
    """Guessed scores at M places.

    Attributes:
        mean: float64 (M,), on the transformed scale.
        covariance: float64 (M, M), on the transformed scale.
        centre, scale: of the transform.
    """

    mean: NDArray[np.float64]
    covariance: NDArray[np.float64]
    centre: float
    scale: float

    @property
    def values(self) -> NDArray[np.float64]:
        """The guessed scores in their own unit: (M,), the posterior median."""
        return self.centre + self.scale * np.sinh(self.mean)


def surface(
    places: NDArray[np.floating], values: NDArray[np.floating], at: NDArray[np.floating]
) -> Surface:
    """Fit Matérn 3/2 and a nugget by maximum likelihood, and predict (Rasmussen, Williams 2006).

    Args:
        places: (N, D) where scores were measured; one unit is a stride.
        values: (N,) the scores.
        at: (M, D) where they are wanted.
    """
    values = values.astype(np.float64)
    centre = float(np.median(values))
    scale = float(np.median(np.abs(values - centre))) or float(np.abs(values - centre).max())
    if scale == 0:  # all alike
        return Surface(np.zeros(len(at)), np.eye(len(at)) * _ADDED, centre, 1.0)
    moved = np.arcsinh((values - centre) / scale)
    mean, spread = moved.mean(), moved.std()
    moved = (moved - mean) / spread
    kernel = ConstantKernel(1.0, (0.1, 100)) * Matern(3.0, (0.5, 50), nu=1.5) + WhiteKernel(
        0.05, (1e-4, 1)
    )
    some = np.linspace(0, len(values) - 1, min(_FIT, len(values))).round().astype(int)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a parameter at its bound
        kernel = GaussianProcessRegressor(kernel).fit(places[some], moved[some]).kernel_
    fitted = GaussianProcessRegressor(kernel, optimizer=None).fit(places, moved)
    guess, covariance = fitted.predict(at, return_cov=True)
    return Surface(mean + spread * guess, spread**2 * covariance, centre, scale)
