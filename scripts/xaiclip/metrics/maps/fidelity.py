"""The paper's fidelity (section IV-C): how little the perturbations changed the organ's mask.

It is near 1 for perturbations far from the organ, whatever the map is worth: no quality.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from xaiclip.metrics.maps.explained import Explained
from xaiclip.metrics.measure import Measure

#: No arrow: more is not better.
MEASURES = (
    Measure("fidelity_dice", "fidelity Dice"),
    Measure("fidelity_iou", "fidelity IoU", shown="table3"),
)
NOTES = (
    "*Fidelity* (paper, section IV-C) is the overlap of the baseline mask with the masks under "
    "perturbation, averaged over the forwards. It says how little they changed the mask, not how "
    "good the map is: the more of them lie far from the organ, the nearer it is to 1. More is not "
    "better, so it has no arrow.",
)


def measure(explained: Explained) -> dict[str, float]:
    """The mean overlap over the forwards that count for the organ; NaN without any."""
    return {
        "fidelity_dice": _mean(explained.scores_of("hard_dice")),
        "fidelity_iou": _mean(explained.scores_of("hard_iou")),
    }


def _mean(values: NDArray[np.floating[Any]]) -> float:
    values = values[np.isfinite(values)].astype(np.float64)
    return float(values.mean()) if values.size else float("nan")
