"""Smooth random fields, and distance fields joined smoothly."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float32]
Box = tuple[slice, slice, slice]
Point = Sequence[float] | NDArray[Any]


def _basis(size: int, cells: int) -> Float:
    """(size, cells) weights that spread ``cells`` control values smoothly over ``size`` samples."""
    t = np.linspace(0.5, cells - 1.5, size)[:, None] - np.arange(cells)[None]
    w = np.exp(-0.5 * (t / 0.55) ** 2)
    return (w / np.sqrt((w**2).sum(1, keepdims=True))).astype(np.float32)


def smooth_noise(rng: np.random.Generator, shape: Sequence[int], cells: Sequence[float]) -> Float:
    """Unit-variance smooth noise of ``shape``, with about ``cells`` independent bumps per axis."""
    counts = [max(3, round(c) + 2) for c in cells]
    out = rng.standard_normal(counts, dtype=np.float32)
    for axis, (size, count) in enumerate(zip(shape, counts, strict=True)):
        out = np.moveaxis(np.tensordot(_basis(size, count), out, axes=(1, axis)), 0, axis)
    return np.ascontiguousarray(out)


def smooth_union(a: Float, b: Float, k: float) -> Float:
    """Union of two distance fields with a fillet of about ``k`` mm where they meet."""
    h = np.clip(0.5 + 0.5 * (b - a) / k, 0, 1)
    return b + (a - b) * h - k * h * (1 - h)
