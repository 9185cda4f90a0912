"""What an attribution map is worth: localization, its chance level, and fidelity.

Three things that the paper calls "Dice" are kept apart: fidelity (baseline mask against the masks
under perturbation), and localization of the map against the baseline mask and against the
reference. Localization uses the ranks of a map only; NaN marks the pixels where it is undefined.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

from xaiclip.metrics.overlap import Mask, dice, iou

Map = NDArray[np.floating]
_NAN = float("nan")


def top_pixels(heat: Map, count: int) -> Mask:
    """The ``count`` highest pixels of a map (all defined ones if they are fewer), as a mask.

    Ties at the cut are broken by a fixed shuffle: raster order would favour the top of the image,
    and a constant map must score like chance.
    """
    chosen = np.zeros(heat.shape, bool)
    values = heat.ravel()
    defined = np.flatnonzero(np.isfinite(values))
    count = min(count, defined.size)
    if count > 0:
        cut = np.partition(values[defined], defined.size - count)[defined.size - count]
        above = defined[values[defined] > cut]
        ties = np.random.default_rng(0).permutation(defined[values[defined] == cut])
        chosen.ravel()[above] = True
        chosen.ravel()[ties[: count - above.size]] = True
    return chosen


def top_fraction(heat: Map, fraction: float) -> Mask:
    """The highest ``fraction`` (0–1) of the defined pixels, as a mask."""
    return top_pixels(heat, round(fraction * int(np.isfinite(heat).sum())))


def area_matched(heat: Map, target: Mask) -> Mask:
    """The map's highest pixels, as many as the target has: no threshold to tune."""
    return top_pixels(heat, int(target.sum()))


def localization(heat: Map, target: Mask) -> dict[str, float]:
    """How well the area-matched map meets a target; all NaN if either is empty.

    Returns:
        ``dice`` and ``iou`` of the area-matched mask; ``dice_chance``, the expected Dice of a
        random ranking of the pixels where the map is defined (under ROI guidance that alone can
        be high); ``pointing``, the share of the map's highest pixels that lie in the target
        (0 or 1 where the maximum is unique).
    """
    defined = np.isfinite(heat)
    if not (target.any() and defined.any()):
        return dict.fromkeys(("dice", "iou", "dice_chance", "pointing"), _NAN)
    found = area_matched(heat, target)
    hits = int(found.sum()) * int((target & defined).sum()) / int(defined.sum())
    return {
        "dice": dice(found, target),
        "iou": iou(found, target),
        "dice_chance": 2 * hits / (int(found.sum()) + int(target.sum())),
        "pointing": float(target[heat == np.nanmax(heat)].mean()),
    }


def localization_columns(heat: Map, prediction: Mask, reference: Mask | None) -> dict[str, float]:
    """The localization columns of ``explanations.parquet`` for one map.

    Args:
        heat: (H, W) attribution, NaN where undefined.
        prediction: (H, W) the segmenter's baseline mask.
        reference: (H, W) the organ in the reference, or None where there is no label.
    """
    columns: dict[str, float] = {}
    for suffix, target in (("pred", prediction), ("gt", reference)):
        scores = localization(heat, np.zeros(heat.shape, bool) if target is None else target)
        columns |= {
            f"localization_dice_{suffix}": scores["dice"],
            f"localization_iou_{suffix}": scores["iou"],
            f"localization_dice_{suffix}_chance": scores["dice_chance"],
            f"pointing_{suffix}": scores["pointing"],
        }
    return columns


def rank_correlation(a: Map, b: Map) -> float:
    """Spearman's ρ of two maps over the pixels where both are defined; NaN if either is flat."""
    both = np.isfinite(a) & np.isfinite(b)
    if both.sum() < 2 or np.ptp(a[both]) == 0 or np.ptp(b[both]) == 0:
        return _NAN
    return float(spearmanr(a[both], b[both]).statistic)


def fidelity(
    scores: NDArray[np.floating], members: NDArray[np.bool_], values: Sequence[str]
) -> list[dict[str, float]]:
    """The paper's fidelity (section IV-C) of each organ: how little perturbations changed its mask.

    It is near 1 for perturbations far from the organ, whatever the map is worth: no quality.

    Args:
        scores: (N, O, V) value functions of the perturbed forwards (without the baseline).
        members: (N, O) whether forward k counts for organ o.
        values: the V names; ``hard_dice`` and ``hard_iou`` must be among them.

    Returns:
        Per organ ``fidelity_dice`` and ``fidelity_iou``, the mean overlap of the baseline mask
        with the mask under perturbation; NaN without a forward that counts.
    """
    columns = {"fidelity_dice": "hard_dice", "fidelity_iou": "hard_iou"}
    return [
        {
            column: _mean(scores[members[:, organ], organ, values.index(name)])
            for column, name in columns.items()
        }
        for organ in range(scores.shape[1])
    ]


def _mean(values: NDArray[np.floating]) -> float:
    values = values[np.isfinite(values)].astype(np.float64)
    return float(values.mean()) if values.size else _NAN
