"""What a map is made of, where that takes less room than the map. Needs no torch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

Map = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Recipe(ABC):
    """Arrays and numbers, pixel by pixel a map: the same to the last bit wherever it is made.

    Subclasses are frozen dataclasses; an array may belong to many recipes, and is stored once.
    """

    kinds: ClassVar[dict[str, type[Recipe]]] = {}

    def __init_subclass__(cls) -> None:
        Recipe.kinds[cls.__name__] = cls

    @abstractmethod
    def map(self) -> Map:
        """The map: float32, of the arrays' shape."""


@dataclass(frozen=True, eq=False)
class MaskSums(Recipe):
    """RISE's maps, from sums over its N masks m and scores S.

    Attributes:
        estimator: ``covariance``, ``paper`` or ``complement``; see `xaiclip.explain.rise`.
        product: Σ (S − mean S) · m.
        keep, square: Σ m and Σ m².
        region: bool, where masks vary; elsewhere the three are ``outside``, N and N.
        domain: bool, where a slope is defined.
        least: variance of a mask below which there is no slope.
        mean: of S.
        count, probability: N, and a cell's chance to be kept.
    """

    estimator: str
    product: Map
    keep: Map
    square: Map
    region: NDArray[np.bool_]
    domain: NDArray[np.bool_]
    outside: float
    least: float
    mean: float
    count: int
    probability: float

    def map(self) -> Map:
        covariance = np.where(self.region, self.product, np.float64(self.outside)) / self.count
        keep = np.where(self.region, self.keep, np.float64(self.count)) / self.count
        if self.estimator == "covariance":
            variance = np.where(self.region, self.square, np.float32(self.count)) / self.count
            variance = variance - keep**2
            slope = np.full_like(covariance, np.nan)
            defined = (variance > self.least) & self.domain
            np.divide(covariance, variance, out=slope, where=defined)
            return slope.astype(np.float32)
        paper = (covariance + np.float32(self.mean) * keep) / self.probability
        return np.asarray(paper if self.estimator == "paper" else 1 - paper, dtype=np.float32)


def from_facts(facts: dict[str, Any]) -> Recipe:
    """The recipe of a kind, ``{"kind": "MaskSums", …}`` and its fields."""
    return Recipe.kinds[facts["kind"]](**{k: v for k, v in facts.items() if k != "kind"})
