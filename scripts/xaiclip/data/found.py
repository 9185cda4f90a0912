"""Which axial slices show the most of the wanted organs, of areas that a search asks for."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

#: Distance of the slices that are looked at first, mm: no wanted organ is much flatter.
STEP_MM = 15.0
#: A slice shows an organ where its area is at least this share of its largest one in the scan,
ENOUGH = 0.1
#: and at least this share of the slice: less is what a localizer sees in noise.
LEAST = 0.001

#: Of slices, by axial index: each organ's share of the slice's area, float (n, organs).
Areas = Callable[[Sequence[int]], NDArray[np.float64]]


def first_step(spacing: float | None, depth: int) -> int:
    """How many slices the first look steps over.

    Args:
        spacing: of the slices, mm; None where it is unknown: then none is stepped over.
        depth: number of slices; at least four are looked at, if there are as many.
    """
    if spacing is None:
        return 1
    return max(1, min(int(STEP_MM / spacing), depth // 4))


def most_shown(
    areas: Areas, depth: int, *, step: int = 1, count: int = 1, apart: int = 1
) -> list[int]:
    """The slices that show the most of the wanted organs.

    More organs are more (`ENOUGH`, `LEAST`). Among as many, the sum of their areas decides, each
    as a share of its largest one in the scan: so a kidney counts as much as the liver.

    Every ``step``-th slice is looked at. Then the neighbours of the best ones are, a step away,
    half of that, and so on down to one slice, until no neighbour shows more. A slice that is not
    near any of the best at the first look is not found; with a step of 1 none is missed.

    Args:
        areas: of the slices that are looked at; each is asked for once.
        depth: number of axial slices.
        step: of the first look.
        count: of slices that are wanted; there may be fewer that show any organ.
        apart: the least distance between two of them, in slices.

    Returns:
        Axial indices, in their order; none where no slice shows anything of the organs.
    """
    seen: dict[int, NDArray[np.float64]] = {}

    def look(indices: Sequence[int]) -> None:
        if indices:
            seen.update(zip(indices, areas(indices), strict=True))

    look(range((depth - 1) % step // 2, depth, step))
    while True:
        chosen = _best(seen, count, apart)
        around = {index + move for index in chosen for move in (-step, step)}
        if unseen := sorted(index for index in around - seen.keys() if 0 <= index < depth):
            look(unseen)
        elif step == 1:
            return sorted(chosen)
        else:
            step = (step + 1) // 2


def _best(seen: dict[int, NDArray[np.float64]], count: int, apart: int) -> list[int]:
    """The best of the slices that were looked at, the best one first."""
    indices = sorted(seen)
    areas = np.stack([seen[index] for index in indices])
    largest = areas.max(0)
    shown = areas >= np.maximum(ENOUGH * largest, LEAST)
    # rounded: what differs by rounding is alike, and the lower index counts
    shares = np.divide(areas, largest, out=np.zeros_like(areas), where=largest > 0).round(9)
    # where nothing is enough to be shown, little is better than nothing
    worth = np.stack([shown.sum(1), (shares * shown).sum(1), shares.sum(1)])
    chosen: list[int] = []
    for place in np.lexsort((np.arange(len(indices)), *-worth[::-1])):
        far = all(abs(indices[place] - other) >= apart for other in chosen)
        if far and areas[place].any() and len(chosen) < count:
            chosen.append(indices[place])
    return chosen
