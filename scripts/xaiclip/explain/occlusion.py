"""Occlusion sensitivity: hide one window at a time; all windows, or coarse to fine.

Coarse to fine, a part of the same windows is hidden: first those that tile the image, then, round
by round, those that tell most about which pixels belong to the highest fifth of the organs' maps.
The scores of the others are guessed from their neighbours (`surface`). Every forward is one of the
full plan's, so a budget of 1 is the full plan, and a full table can be replayed at any budget.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from xaiclip.errors import CaseError
from xaiclip.explain.attribution import GRID, Attribution
from xaiclip.explain.engine import ScoreTable
from xaiclip.explain.plan import Context, Plan, WindowPlan
from xaiclip.explain.settings import setting
from xaiclip.explain.surface import Surface, surface

WINDOWS = "windows"
TOP = 0.2  # the share of a map that the refinement looks for
ROUNDS = 4
REACH = 4.0  # strides between a window that misses the organ and the one that covers most of it
_KNOWN = 1e-9  # share of the largest variance: below it, rounding


@dataclass(frozen=True)
class PlanSettings:
    """Pixels of the canonical grid."""

    window: int = setting(64, "Side of the window.", minimum=4, maximum=512)
    stride: int = setting(32, "Step of the window.", minimum=1, maximum=512)
    min_overlap: float = setting(
        0.0,
        "A window counts if more than this share of it lies in the ROI.",
        minimum=0,
        below=1,
    )
    budget: float = setting(
        1.0,
        "Share of the windows that may be hidden; below 1, coarse to fine: the others' drops are "
        "guessed (docs/sampling.md).",
        above=0,
        maximum=1,
        adaptive=True,
    )


def plans(context: Context) -> dict[str, Plan]:
    """Every window, or the coarse ones; under guidance those that meet the ROI of some organ."""
    settings = context.read(PlanSettings)
    every = _every_window(settings, context)
    return {WINDOWS: every.take(_coarse(every, settings))}


def refine(
    plans: Mapping[str, Plan], tables: Mapping[str, ScoreTable], context: Context
) -> dict[str, Plan]:
    """The windows of the next round: where the highest fifth of the maps is least certain.

    Each round takes an equal part of what the budget leaves. A window's worth is the chance that
    a pixel lies on the other side of the map's cut than guessed (the straddle idea of Bryan et
    al. 2005), times how closely pixel and window go together, over all pixels and organs; within
    a round, a window that is taken makes what goes with it more certain.
    """
    settings = context.read(PlanSettings)
    every = _every_window(settings, context)
    made = _rows(every, plans[WINDOWS])
    left = _allowed(every, settings) - len(made)
    if left <= 0:
        return {}
    table = tables[WINDOWS]
    places = _places(every, settings, context)
    drop = (table.baseline_of(context.explained) - table.of(context.explained))[..., 0]
    covers, areas = _cells(every)
    doubts = []
    for o, own in enumerate(every.members.T):
        mine = own[made]
        guess = surface(places[o], made[mine], drop[mine, o])
        doubts.append(_Doubt(guess, covers * own, areas))
    done = max(0, len(made) - len(_coarse(every, settings)))
    size = -(-(left + done) // ROUNDS)
    free = np.ones(len(every.windows), bool)
    free[made] = False
    chosen: list[int] = []
    for _ in range(min(size, left)):
        worth = np.sum([doubt.worth() for doubt in doubts], axis=0)
        best = int(np.argmax(np.where(free, worth, -1)))
        chosen.append(best)
        free[best] = False
        for doubt in doubts:
            doubt.take(best)
    return {WINDOWS: every.take(np.array(chosen))}


class _Doubt:
    """On which side of the cut the C cells of an organ's map lie, given what N windows show.

    Args:
        guess: the windows' drops.
        covers: (C, N), which cells a window of the organ covers.
        areas: (C,) of the cells.
    """

    def __init__(
        self, guess: Surface, covers: NDArray[np.bool_], areas: NDArray[np.float64]
    ) -> None:
        covers, areas = covers[covers.any(1)], areas[covers.any(1)]
        share = covers / covers.sum(1, keepdims=True)
        heat = share @ guess.values
        cut = np.quantile(heat, 1 - TOP, weights=areas, method="inverted_cdf")
        self._far, self._areas = np.abs(heat - cut), areas / areas.sum()
        # to first order, a cell is linear in the transformed drops
        weights = share * guess.slope
        self._windows = guess.covariance
        self._both = weights @ guess.covariance
        self._cells = (self._both * weights).sum(1)

    def worth(self) -> NDArray[np.float64]:
        """Of each window: (N,)."""
        cells, windows = (
            np.sqrt(np.where(variance > _KNOWN * variance.max(), variance, np.inf))
            for variance in (self._cells, self._windows.diagonal())
        )
        wrong = np.where(np.isfinite(cells), ndtr(-self._far / cells), 0)
        return np.asarray((self._areas * wrong / cells) @ np.abs(self._both) / windows)

    def take(self, window: int) -> None:
        """Make a window known."""
        column, own = self._windows[:, window].copy(), self._windows[window, window]
        if own > 0:
            both = self._both[:, window].copy()
            self._cells = self._cells - both**2 / own
            self._both = self._both - np.outer(both, column / own)
            self._windows = self._windows - np.outer(column, column / own)


def aggregate(
    plans: Mapping[str, Plan], tables: Mapping[str, ScoreTable], context: Context
) -> list[Attribution]:
    """At each pixel, the mean drop over the windows that cover it; NaN where there is none.

    Windows that were not hidden count with the drop that is guessed from those that were.
    """
    plan, table = plans[WINDOWS], tables[WINDOWS]
    assert isinstance(plan, WindowPlan)
    drop = table.baseline_of(context.explained) - table.of(context.explained)
    settings = context.read(PlanSettings)
    if settings.budget < 1:
        plan, drop = _completed(plan, drop, settings, context)
    # one more column counts the windows; sums of float32 numbers are exact in float64
    columns = np.concatenate([drop, np.ones_like(drop[..., :1])], axis=2, dtype=np.float64)
    weights = columns * plan.members[..., None]
    kept = plan.weighted_sum(weights.reshape(len(weights), -1))
    sums = (weights.sum(0).reshape(-1, 1, 1) - kept).reshape(*weights.shape[1:], GRID, GRID)
    total, count = sums[:, :-1], sums[:, -1:]
    maps = np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)
    return context.attributions("window", [WINDOWS], maps, primary=True)


def _every_window(settings: PlanSettings, context: Context) -> WindowPlan:
    steps = -(-max(GRID - settings.window, 0) // settings.stride) + 1
    starts = np.arange(steps) * settings.stride
    y, x = (grid.ravel() for grid in np.meshgrid(starts, starts, indexing="ij"))
    edges = np.stack([x, y, x + settings.window, y + settings.window], axis=1)
    windows = edges.clip(0, GRID).astype(np.int32)
    members = np.ones((len(windows), len(context.organs)), dtype=bool)
    if context.rois is not None:
        share = [[roi[y0:y1, x0:x1].mean() for roi in context.rois] for x0, y0, x1, y1 in windows]
        members = np.array(share) > settings.min_overlap
    met = members.any(axis=1)
    if not met.any():
        raise CaseError("No occlusion window meets an ROI: lower 'methods.occlusion.min_overlap'.")
    return WindowPlan(members[met], len(windows), windows[met])


def _allowed(every: WindowPlan, settings: PlanSettings) -> int:
    return max(1, int(settings.budget * every.n_forwards + 1e-9))


def _coarse(every: WindowPlan, settings: PlanSettings) -> NDArray[np.intp]:
    """The windows of the first round: every second one, or fourth, …, and one for each organ.

    They take no more than three quarters of the budget, unless the organs need it.
    """
    if settings.budget >= 1:
        return np.arange(every.n_forwards)
    steps = every.windows[:, :2] // settings.stride
    step = 2
    while True:
        chosen = (steps % step == 0).all(1)
        if chosen.sum() <= 0.75 * _allowed(every, settings) or step > steps.max():
            break
        step *= 2
    for own in every.members.T:
        if own.any() and not (own & chosen).any():
            chosen[np.flatnonzero(own)[own.sum() // 2]] = True
    return np.flatnonzero(chosen)


def _places(every: WindowPlan, settings: PlanSettings, context: Context) -> NDArray[np.float64]:
    """Coordinates of the windows for each organ: (O, N, 3).

    Row and column in strides, and the covered share of the organ's own mask, so that windows on
    the organ are near each other and far from those beside it.
    """
    corners = every.windows[:, :2] / settings.stride
    covered = np.array(
        [[mask[y0:y1, x0:x1].sum() for x0, y0, x1, y1 in every.windows] for mask in context.masks]
    )
    share = covered / covered.max(1, keepdims=True).clip(1)
    return np.stack([np.column_stack([corners, REACH * own]) for own in share])


def _cells(every: WindowPlan) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """The parts of the grid between the windows' edges: who covers them (C, N), and areas (C,)."""
    sides, covered = [], []
    for low, high in (every.windows.T[1::2], every.windows.T[0::2]):
        edges = np.unique([low, high])
        sides.append(np.diff(edges))
        covered.append((edges[:-1, None] >= low) & (edges[1:, None] <= high))
    rows, columns = covered
    covers = (rows[:, None] & columns[None]).reshape(-1, every.n_forwards)
    return covers, np.outer(*sides).ravel().astype(float)


def _rows(every: WindowPlan, plan: Plan) -> NDArray[np.intp]:
    """Where a plan's windows stand among all."""
    at = {key: row for row, key in enumerate(every.signatures())}
    return np.array([at[key] for key in plan.signatures()])


def _completed(
    plan: WindowPlan, drop: NDArray[np.float32], settings: PlanSettings, context: Context
) -> tuple[WindowPlan, NDArray[np.float32]]:
    """Every window with its drop (N, O, V), measured or guessed."""
    every = _every_window(settings, context)
    made = _rows(every, plan)
    places = _places(every, settings, context)
    whole = np.zeros((every.n_forwards, *drop.shape[1:]), drop.dtype)
    guessed = np.ones(every.n_forwards, bool)
    guessed[made] = False
    for o, own in enumerate(every.members.T):
        mine = own[made]
        for v in range(drop.shape[2]):
            if guessed.any():
                whole[:, o, v] = surface(places[o], made[mine], drop[mine, o, v]).values
    whole[made] = drop
    return every, whole
