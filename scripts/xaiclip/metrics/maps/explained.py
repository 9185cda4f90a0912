"""A map with all that a metric may hold against it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from xaiclip.explain.attribution import Attribution
    from xaiclip.explain.store import SliceScores


@dataclass(frozen=True)
class Explained:
    """One map of one organ.

    Attributes:
        attribution: the map (512, 512), and which organ, variant and value function it is of.
        scores: of the slice: its image and masks (``scores.context``), plans and score tables.
        reference: bool (512, 512), the organ in the reference; None where there is no label.
    """

    attribution: Attribution
    scores: SliceScores
    reference: NDArray[np.bool_] | None

    @property
    def heat(self) -> NDArray[np.floating[Any]]:
        """The map (512, 512); NaN marks the pixels where it is undefined."""
        return self.attribution.map

    @property
    def prediction(self) -> NDArray[np.bool_]:
        """The organ in the unperturbed segmentation: (512, 512)."""
        context = self.scores.context
        return context.masks[context.organs.index(self.attribution.organ)]

    def scores_of(self, value: str) -> NDArray[np.float32]:
        """A value function in the perturbed forwards that count for the organ: (n_patch,).

        Empty where it was not asked for: it is another kind of model's.
        """
        asked = (self.scores.tables[name].values for name in self.attribution.plans)
        if not all(value in values for values in asked):
            return np.empty(0, np.float32)
        return self.scores.member_scores(self.attribution, value)
