"""Agreement of two masks. Two empty masks agree on nothing: every measure is then NaN, never 1."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]


def dice(a: Mask, b: Mask) -> float:
    """2|a ∩ b| / (|a| + |b|), in [0, 1]; NaN where both are empty, 0 where one is."""
    a, b = _pair(a, b)
    total = int(a.sum()) + int(b.sum())
    return 2 * int((a & b).sum()) / total if total else float("nan")


def iou(a: Mask, b: Mask) -> float:
    """|a ∩ b| / |a ∪ b|, in [0, 1]; NaN where both are empty, 0 where one is."""
    a, b = _pair(a, b)
    union = int((a | b).sum())
    return int((a & b).sum()) / union if union else float("nan")


def surface_distances(a: Mask, b: Mask, spacing: Sequence[float] | None = None) -> dict[str, float]:
    """Distances between the outlines of two masks of the same shape.

    Args:
        spacing: size of a pixel along each axis, in mm; None means 1.

    Returns:
        ``hd95_mm``: the larger of the two directed 95th percentiles. ``assd_mm``: the mean over
        the outline pixels of both. Both NaN where either mask is empty.
    """
    from scipy import ndimage

    a, b = _pair(a, b)
    if not (a.any() and b.any()):
        return {"hd95_mm": float("nan"), "assd_mm": float("nan")}
    edge_a, edge_b = a & ~ndimage.binary_erosion(a), b & ~ndimage.binary_erosion(b)
    there = ndimage.distance_transform_edt(~edge_b, sampling=spacing)[edge_a]
    back = ndimage.distance_transform_edt(~edge_a, sampling=spacing)[edge_b]
    return {
        "hd95_mm": float(max(np.percentile(there, 95), np.percentile(back, 95))),
        "assd_mm": float(np.concatenate([there, back]).mean()),
    }


def _pair(a: Mask, b: Mask) -> tuple[Mask, Mask]:
    if a.shape != b.shape:
        raise ValueError(f"masks of different shapes: {a.shape} and {b.shape}.")
    return a.astype(bool, copy=False), b.astype(bool, copy=False)
