"""How well a localizer does on slices that it did not learn from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from xaiclip.device import in_batches
from xaiclip.localizer.model import Localizer

#: A place is said to be an organ that is not there from this many pixels on.
_FALSE = 20


def organ_dice(
    found: NDArray[np.integer], label: NDArray[np.integer], classes: int
) -> NDArray[np.float64]:
    """Dice of each organ of a slice, (classes - 1,); nan where the reference has none of it."""
    out = np.full(classes - 1, np.nan)
    for k in range(1, classes):
        mine, true = found == k, label == k
        if true.any():
            out[k - 1] = 2 * float((mine & true).sum()) / float(mine.sum() + true.sum())
    return out


@torch.inference_mode()
def check(
    localizer: Localizer,
    images: NDArray[np.uint8],
    labels: NDArray[np.uint8],
    modality: Sequence[str],
) -> dict[str, float]:
    """One forward a slice: mean Dice of each organ over the slices that hold it, by modality.

    ``false`` is the share of organs that a slice does not hold and that are found all the same.
    """
    localizer.eval()
    parts = in_batches(
        lambda part: localizer(part).argmax(1).cpu(), torch.from_numpy(images), batch_size=16
    )
    found = torch.cat(parts).numpy()
    count = len(localizer.classes)
    dice = np.stack([organ_dice(a, b, count) for a, b in zip(found, labels, strict=True)])
    row: dict[str, float] = {}
    for kind in sorted(set(modality)):
        own = np.asarray(modality) == kind
        held = ~np.isnan(dice[own])
        means = np.where(held, dice[own], 0).sum(0) / np.where(held.any(0), held.sum(0), np.nan)
        row[f"dice_{kind}"] = float(np.nanmean(means))
        for organ, value in zip(localizer.classes[1:], means, strict=True):
            row[f"{kind}_{organ.replace(' ', '_')}"] = float(value)
    areas = np.stack([(found == k).sum((1, 2)) for k in range(1, count)], axis=1)
    row["false"] = float((areas[np.isnan(dice)] >= _FALSE).mean())
    return {name: round(value, 4) for name, value in row.items()}
