"""Whether grey values are what they are said to be: Hounsfield units of a CT, intensities of MR.

Only the whole volume tells, and only roughly; what is assumed:

- A CT shows fat or air: voxels below -30 HU, beside the lowest value, which may be padding or the
  end at which someone clipped the air.
- Half of what is denser than -500 HU lies between -250 and 300: soft tissue, contrast or not.
- What is denser than -500 HU is a twentieth of what is not padding, at least.
- An MR has no air at -1000 with soft tissue about 0 beside it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

#: As many voxels tell enough.
_SAMPLE = 2**20
#: Voxels below it are padding of the scanner, not air.
_PADDING = -1500


def implausible(array: NDArray[Any], modality: str) -> str | None:
    """What looks wrong about a scan's grey values, as a sentence with the cure; None if nothing.

    Args:
        array: of any shape, grey values as the file gives them.
        modality: ``CT`` or ``MR``.
    """
    values = _sample(array)
    return _ct(values) if modality == "CT" else _mr(values)


def _sample(array: NDArray[Any]) -> NDArray[np.float64]:
    """About a million voxels, from all over the volume."""
    step = max(1, round((array.size / _SAMPLE) ** (1 / max(array.ndim, 1))))
    return np.asarray(array[(slice(None, None, step),) * array.ndim], dtype=np.float64).ravel()


def _ct(values: NDArray[np.float64]) -> str | None:
    lowest, highest = float(values.min()), float(values.max())
    if lowest == highest:
        return None  # said elsewhere
    inside = values[(values > lowest) & (values > _PADDING)]
    dark = float((inside < -30).mean()) if inside.size else 0.0
    dense = inside[inside > -500]
    wrong = "its grey values are not Hounsfield units"
    cure = "store a CT in HU, or correct the modality"
    if highest - lowest <= 20 and inside.size:
        return f"{wrong}: they lie between {lowest:.3g} and {highest:.3g} (normalised?); {cure}."
    if dark < 0.005:
        if lowest >= 0 and highest > 60000:
            return f"{wrong}: they reach {highest:.0f} (negative ones wrapped?); {cure}."
        if float((inside > 500).mean() if inside.size else 0) > 0.05:
            return f"{wrong}: nothing is as dark as fat or air (was 1024 added?); {cure}."
        return f"{wrong}: nothing is as dark as fat or air; {cure}."
    if dense.size < 0.05 * inside.size:
        return f"{wrong}: hardly anything is as dense as tissue (was 1024 taken twice?); {cure}."
    if float(((dense >= -250) & (dense <= 300)).mean()) < 0.5:
        middle = float(np.median(dense))
        return f"{wrong}: the middle of what should be tissue is {middle:.0f}; {cure}."
    return None


def _mr(values: NDArray[np.float64]) -> str | None:
    values = values[values > _PADDING]
    if not values.size:
        return None
    air = float((values < -800).mean())
    between = float(((values > -700) & (values < -300)).mean())
    tissue = float(((values > -200) & (values < 200)).mean())
    if air > 0.05 and tissue > 0.1 and between < tissue / 3:
        return "its grey values look like a CT's Hounsfield units; correct the modality."
    return None
