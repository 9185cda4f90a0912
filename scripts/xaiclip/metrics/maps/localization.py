"""Whether a map marks what it should: its highest pixels against a mask, and against chance.

The paper's third "Dice". Only the ranks of the map count; NaN marks where it is undefined.
"""

from __future__ import annotations

import numpy as np

from xaiclip.metrics.explanation import Map, area_matched
from xaiclip.metrics.maps.explained import Explained
from xaiclip.metrics.measure import Measure
from xaiclip.metrics.overlap import Mask, dice, iou

MEASURES = (
    Measure("localization_dice_pred", "Dice vs prediction", "higher"),
    Measure("localization_dice_pred_chance", "its chance level"),
    Measure("localization_iou_pred", "IoU vs prediction", "higher", shown="table3"),
    Measure("localization_dice_gt", "Dice vs reference", "higher"),
    Measure("localization_dice_gt_chance", "its chance level"),
    Measure("localization_iou_gt", "IoU vs reference", "higher", shown="table3"),
    Measure("pointing_pred", "pointing at the prediction", "higher", shown="nowhere"),
    Measure("pointing_gt", "pointing at the reference", "higher", shown="nowhere"),
)
NOTES = (
    "*vs prediction* and *vs reference* are the localization of the map: its highest pixels, as "
    "many as the target has, against the baseline mask and against the reference.",
    "*Chance level* is the expected Dice of a random ranking of the pixels where the map is "
    "defined. Under `roi` these are few: a gain no larger than chance's is the ROI's, not the "
    "explanation's.",
)


def measure(explained: Explained) -> dict[str, float]:
    """`localization` against the unperturbed mask, and against the reference where there is one."""
    columns: dict[str, float] = {}
    for suffix, target in (("pred", explained.prediction), ("gt", explained.reference)):
        heat = explained.heat
        scores = localization(heat, np.zeros(heat.shape, bool) if target is None else target)
        columns |= {
            f"localization_dice_{suffix}": scores["dice"],
            f"localization_iou_{suffix}": scores["iou"],
            f"localization_dice_{suffix}_chance": scores["dice_chance"],
            f"pointing_{suffix}": scores["pointing"],
        }
    return columns


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
        return dict.fromkeys(("dice", "iou", "dice_chance", "pointing"), float("nan"))
    found = area_matched(heat, target)
    hits = int(found.sum()) * int((target & defined).sum()) / int(defined.sum())
    return {
        "dice": dice(found, target),
        "iou": iou(found, target),
        "dice_chance": 2 * hits / (int(found.sum()) + int(target.sum())),
        "pointing": float(target[heat == np.nanmax(heat)].mean()),
    }
