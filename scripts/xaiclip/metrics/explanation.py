"""Maps as rankings of pixels: the highest ones as a mask, and how far two maps agree.

NaN marks the pixels where a map is undefined.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from xaiclip.metrics.overlap import Mask

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


def rank_correlation(a: Map, b: Map) -> float:
    """Spearman's ρ of two maps over the pixels where both are defined; NaN if either is flat."""
    from scipy.stats import spearmanr

    both = np.isfinite(a) & np.isfinite(b)
    if both.sum() < 2 or np.ptp(a[both]) == 0 or np.ptp(b[both]) == 0:
        return _NAN
    return float(spearmanr(a[both], b[both]).statistic)
