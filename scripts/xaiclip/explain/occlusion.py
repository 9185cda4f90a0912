"""Occlusion sensitivity: hide one window at a time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from xaiclip.errors import CaseError
from xaiclip.explain.attribution import GRID, Attribution
from xaiclip.explain.engine import ScoreTable
from xaiclip.explain.plan import Context, Plan, WindowPlan

WINDOWS = "windows"


@dataclass(frozen=True)
class Settings:
    """Pixels of the canonical grid. A window counts if more than ``min_overlap`` of it is ROI."""

    window: int = 64
    stride: int = 32
    min_overlap: float = 0.0


def plans(context: Context) -> dict[str, Plan]:
    """One window after the other; under guidance those that meet the ROI of some organ."""
    settings = Settings(**context.settings)
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
    return {WINDOWS: WindowPlan(members[met], len(windows), windows[met])}


def aggregate(
    plans: Mapping[str, Plan], tables: Mapping[str, ScoreTable], context: Context
) -> list[Attribution]:
    """At each pixel, the mean drop over the windows that cover it; NaN where there is none."""
    plan, table = plans[WINDOWS], tables[WINDOWS]
    drop = table.baseline_of(context.explained) - table.of(context.explained)
    # one more column counts the windows; sums of float32 numbers are exact in float64
    columns = np.concatenate([drop, np.ones_like(drop[..., :1])], axis=2, dtype=np.float64)
    weights = columns * plan.members[..., None]
    kept = plan.weighted_sum(weights.reshape(len(weights), -1))
    sums = (weights.sum(0).reshape(-1, 1, 1) - kept).reshape(*weights.shape[1:], GRID, GRID)
    total, count = sums[:, :-1], sums[:, -1:]
    maps = np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)
    return context.attributions("window", [WINDOWS], maps, primary=True)
