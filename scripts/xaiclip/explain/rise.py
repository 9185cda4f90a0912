"""RISE: keep random smooth masks, and relate the score to each pixel's mask value.

Petsiuk et al. 2018. Their estimator, Σ S·m / (N·p), rests on a mask of the same mean everywhere.
With the mask fixed to 1 outside an ROI it gives E[S] / p outside and E[S·m] / p inside, which is
never larger when S ≥ 0: importance looks inverted whatever the model does. The default here is the
slope Cov(S, m) / Var(m), which a constant score does not move.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from xaiclip.explain.attribution import GRID, Attribution
from xaiclip.explain.engine import ScoreTable
from xaiclip.explain.plan import CellPlan, Context, Plan, cell_side

MASKS = "masks"
VARIES = 1e-5  # below it, a mask value is constant up to rounding


@dataclass(frozen=True)
class Settings:
    """N masks of cells × cells, each cell kept with ``probability``."""

    masks: int = 2000
    probability: float = 0.5
    cells: int = 7
    estimators: Sequence[str] = ("covariance", "paper", "complement")


def plans(context: Context) -> dict[str, Plan]:
    """Random masks; under guidance they hide nothing outside the union of the ROIs."""
    settings = Settings(**context.settings)
    rng = np.random.default_rng(context.seed)
    count, side = settings.masks, settings.cells
    cells = rng.random((count, side, side)) < settings.probability
    shifts = rng.integers(0, cell_side(side), (count, 2), dtype=np.int32)
    members = np.ones((count, len(context.organs)), dtype=bool)
    return {MASKS: CellPlan(members, count, cells, shifts, context.union)}


def aggregate(
    plans: Mapping[str, Plan], tables: Mapping[str, ScoreTable], context: Context
) -> list[Attribution]:
    """Maps of every estimator.

    ``covariance``: Cov(S, m) / Var(m), NaN outside the organ's ROI and where m does not vary.
    ``paper``: Σ S·m / (N·p), everywhere; ``complement``: 1 minus it, the paper's way to read it.
    """
    settings = Settings(**context.settings)
    plan, p = plans[MASKS], settings.probability
    assert isinstance(plan, CellPlan)
    scores = tables[MASKS].of(context.explained)
    mean = scores.mean(0)
    columns = (scores - mean).reshape(len(scores), -1)
    sums = plan.weighted_sum(np.column_stack([columns, np.ones(len(scores))])) / len(scores)
    covariance = sums[:-1].reshape(*mean.shape, GRID, GRID)
    mean_keep = sums[-1]
    variance = plan.square_sum() / len(scores) - mean_keep**2
    slope = np.full_like(covariance, np.nan)
    defined = (variance > VARIES) & context.domains[:, None]
    np.divide(covariance, variance, out=slope, where=defined)
    paper = (covariance + mean[..., None, None] * mean_keep) / p
    maps = {"covariance": slope, "paper": paper, "complement": 1 - paper}
    return [
        attribution
        for position, name in enumerate(settings.estimators)
        for attribution in context.attributions(name, [MASKS], maps[name], primary=position == 0)
    ]
