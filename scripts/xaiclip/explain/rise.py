"""RISE: keep random smooth masks, and relate the score to each pixel's mask value.

Petsiuk et al. 2018. Their estimator, Σ S·m / (N·p), rests on a mask of the same mean everywhere.
With the mask fixed to 1 outside an ROI it gives E[S] / p outside and E[S·m] / p inside, which is
never larger when S ≥ 0: importance looks inverted whatever the model does. The default here is the
slope Cov(S, m) / Var(m), which a constant score does not move.

``control_variate`` estimates the same slope with less noise: a ridge regression predicts S from the
mask, the covariance of the prediction with m is known exactly, and only that of what the
prediction misses is left to the sample. Each forward is predicted by a fit that has not seen it
(cross-fitting), so the estimate is unbiased however bad the regression is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xaiclip.explain.attribution import GRID, Attribution
from xaiclip.explain.engine import ScoreTable
from xaiclip.explain.plan import CellPlan, Context, Plan, cell_side, nearest, overlap
from xaiclip.explain.recipes import MaskSums
from xaiclip.explain.settings import setting
from xaiclip.explain.uncertainty import block_size, grouped, split_half, summary

MASKS = "masks"
VARIES = 1e-5  # below it, a mask value is constant up to rounding
POINTS = 32  # side of the grid of standard errors: the masks are smooth
FEATURES = 16  # side of the grid of mask values that the regression sees
FOLDS = 5
_CHUNK = 64  # masks drawn at once
_PENALTIES = np.logspace(-2, 3, 11)

Array = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class PlanSettings:
    """N masks of cells × cells."""

    masks: int = setting(160, "N (the paper: 2000).", minimum=4, maximum=1_000_000)
    probability: float = setting(0.5, "Chance that a cell is kept.", minimum=0.1, maximum=0.9)
    cells: int = setting(7, "Cells along each side.", minimum=2, maximum=64)
    sampling: str = setting(
        "plain",
        "antithetic: masks in pairs that share a shift, drawn from u and 1 - u; an odd number is "
        "rounded up.",
        one_of=("plain", "antithetic"),
    )
    stop: float | None = setting(
        None,
        "No more masks once the halves of the sample agree on each map's ranking to this "
        "reliability (0 to 1); null takes all.",
        above=0,
        below=1,
        adaptive=True,
    )

    @property
    def group(self) -> int:
        """Masks that depend on each other."""
        return 2 if self.sampling == "antithetic" else 1


@dataclass(frozen=True)
class MapSettings:
    """Maps of one table of scores; see `aggregate`."""

    estimators: Sequence[str] = setting(
        ("covariance", "paper", "complement"),
        "The first is the primary one of the tables.",
        one_of=("covariance", "paper", "complement", "control_variate"),
    )


def plans(context: Context) -> dict[str, Plan]:
    """Random masks; under guidance they hide nothing outside the union of the ROIs."""
    settings = context.read(PlanSettings)
    drawn = _draw(settings, context)
    return {
        MASKS: drawn if settings.stop is None else drawn.take(slice(block_size(settings.masks)))
    }


def refine(
    plans: Mapping[str, Plan], tables: Mapping[str, ScoreTable], context: Context
) -> dict[str, Plan]:
    """The next tenth of the masks, until the map's ranking is stable."""
    settings = context.read(PlanSettings)
    plan = plans[MASKS]
    drawn = _draw(settings, context)
    if plan.n_forwards == drawn.n_forwards or settings.stop is None:
        return {}
    assert isinstance(plan, CellPlan)
    if stability(plan, tables[MASKS], context) >= settings.stop:
        return {}
    return {MASKS: drawn.take(slice(plan.n_forwards, plan.n_forwards + block_size(settings.masks)))}


def stability(plan: CellPlan, table: ScoreTable, context: Context) -> float:
    """The least reliable organ's split-half reliability, of the first explained value."""
    half = np.arange(plan.n_forwards) // context.read(PlanSettings).group % 2
    scores = table.of(context.explained[:1])[..., 0]
    rows = [np.flatnonzero(half == side) for side in (0, 1)]
    if min(map(len, rows)) < 2:
        return 0.0
    first, second = (_Sample(plan.take(some), scores[some], 1).slopes() for some in rows)
    at = nearest(POINTS)
    domains = context.domains[:, at[:, None], at]
    return min(split_half(a[own], b[own]) for a, b, own in zip(first, second, domains, strict=True))


def aggregate(
    plans: Mapping[str, Plan], tables: Mapping[str, ScoreTable], context: Context
) -> list[Attribution]:
    """Maps of every estimator, with their standard errors at 32 × 32 points.

    ``covariance``: Cov(S, m) / Var(m), NaN outside the organ's ROI and where m does not vary.
    ``control_variate``: the same, estimated with a regression's help.
    ``paper``: Σ S·m / (N·p), everywhere; ``complement``: 1 minus it, the paper's way to read it.
    """
    settings = context.read(PlanSettings)
    estimators = context.read(MapSettings).estimators
    plan, p = plans[MASKS], settings.probability
    assert isinstance(plan, CellPlan)
    scores = tables[MASKS].of(context.explained)
    mean = scores.mean(0)
    columns = (scores - mean).reshape(len(scores), -1)
    totals = plan.weighted_sum(np.column_stack([columns, np.ones(len(scores))]))
    squares = plan.square_sum()
    sums = totals / len(scores)
    covariance = sums[:-1].reshape(*mean.shape, GRID, GRID)
    mean_keep = sums[-1]
    variance = squares / len(scores) - mean_keep**2
    slope = np.full_like(covariance, np.nan)
    defined = (variance > VARIES) & context.domains[:, None]
    np.divide(covariance, variance, out=slope, where=defined)
    paper = (covariance + mean[..., None, None] * mean_keep) / p
    maps = {"covariance": slope, "paper": paper, "complement": 1 - paper}
    recipes = _recipes(plan, columns, totals, squares, mean, context.domains, p)
    sample = _Sample(plan, scores.reshape(len(scores), -1), settings.group)
    at = nearest(POINTS)
    inside = np.where(context.domains[:, None, at[:, None], at], 1.0, np.nan)
    errors: dict[str, Array] = {}
    if {"paper", "complement"} & set(estimators):
        errors["paper"] = errors["complement"] = _by_map(sample.paper_errors(p), mean.shape)
    if "covariance" in estimators:
        errors["covariance"] = _by_map(sample.slope_errors(), mean.shape) * inside
    if "control_variate" in estimators:
        helped, helped_errors = _control_variate(sample, p, GRID)
        helped = helped.reshape(*mean.shape, GRID, GRID)
        maps["control_variate"] = np.where(context.domains[:, None], helped, np.nan)
        errors["control_variate"] = _by_map(helped_errors, mean.shape) * inside
    return [
        attribution
        for position, name in enumerate(estimators)
        for attribution in context.attributions(
            name,
            [MASKS],
            maps[name],
            primary=position == 0,
            details=summary(maps[name][..., at[:, None], at], errors[name]),
            errors=errors[name],
            recipes=recipes.get(name),
        )
    ]


def _recipes(
    plan: CellPlan,
    columns: Array,
    totals: Array,
    squares: Array,
    mean: Array,
    domains: NDArray[np.bool_],
    probability: float,
) -> dict[str, list[list[MaskSums]]]:
    """The sums behind the closed maps, by estimator, organ and value."""
    products = [total.astype(np.float32) for total in totals[:-1]]
    # outside the region the masks are 1, and so the weights' own sum is meant
    outside = columns.astype(np.float64).sum(0)
    own = [np.ascontiguousarray(domain) for domain in domains]
    shared = {
        "keep": totals[-1].astype(np.float32),
        "square": squares.astype(np.float32),
        "region": plan.region,
        "least": VARIES,
        "count": plan.n_forwards,
        "probability": probability,
    }
    values = mean.shape[1]
    return {
        name: [
            [
                MaskSums(
                    estimator=name,
                    product=products[o * values + v],
                    domain=own[o],
                    outside=float(outside[o * values + v]),
                    mean=float(mean[o, v]),
                    **shared,
                )
                for v in range(values)
            ]
            for o in range(len(mean))
        ]
        for name in ("covariance", "paper", "complement")
    }


def slopes_at_points(
    estimator: str, plan: CellPlan, scores: Array, settings: PlanSettings
) -> tuple[Array, Array]:
    """What `aggregate` gives, at 32 × 32 points alone: fast enough to repeat over many seeds.

    Args:
        estimator: ``covariance`` or ``control_variate``.
        plan: N masks.
        scores: (N, K).
        settings: those that drew the masks.

    Returns:
        The slope and its standard error: (K, 32, 32) each, NaN where m does not vary.
    """
    sample = _Sample(plan, scores, settings.group)
    if estimator == "control_variate":
        return _control_variate(sample, settings.probability, POINTS)
    return sample.slopes(), sample.slope_errors()


def _draw(settings: PlanSettings, context: Context) -> CellPlan:
    """All masks that the settings allow; a shorter run makes the first of them."""
    rng = np.random.default_rng(context.seed)
    side, group = settings.cells, settings.group
    count = -(-settings.masks // group)
    uniform = rng.random((count, side, side))
    shifts = rng.integers(0, cell_side(side), (count, 2), dtype=np.int32)
    cells = uniform < settings.probability
    if group == 2:
        mirrored = 1 - uniform < settings.probability
        cells = np.stack([cells, mirrored], axis=1).reshape(-1, side, side)
        shifts = shifts.repeat(2, axis=0)
    members = np.ones((len(cells), len(context.organs)), dtype=bool)
    return CellPlan(members, settings.masks, cells, shifts, context.union)


@dataclass(frozen=True, eq=False)
class _Sample:
    """Masks at 32 × 32 points beside the scores (N, K); ``group`` neighbours depend."""

    plan: CellPlan
    scores: Array
    group: int

    def _sums(self, terms: Callable[[Array, slice], Sequence[Array]]) -> list[Array]:
        """Totals of what ``terms(masks (n, P, P), rows)`` gives, a few masks at a time."""
        totals: list[Array] = []
        for start in range(0, self.plan.n_forwards, _CHUNK):
            rows = slice(start, min(start + _CHUNK, self.plan.n_forwards))
            masks = self.plan.keep(start, rows.stop, POINTS)[:, 0].double().numpy()
            parts = terms(masks, rows)
            totals = [a + b for a, b in zip(totals, parts, strict=True)] if start else [*parts]
        return totals

    def moments(self) -> tuple[Array, Array, Array]:
        """Mean (P, P) and variance (P, P) of the masks, and slope (K, P, P)."""
        centred = (self.scores - self.scores.mean(0)).astype(np.float64)
        total, square, product = self._sums(
            lambda m, rows: [m.sum(0), (m**2).sum(0), np.einsum("nk,nij->kij", centred[rows], m)]
        )
        count = self.plan.n_forwards
        mean = total / count
        variance = square / count - mean**2
        slope = np.full(product.shape, np.nan)
        np.divide(product / count, variance, out=slope, where=variance > VARIES)
        return mean, variance, slope

    def slopes(self) -> Array:
        """Cov(S, m) / Var(m): (K, P, P), NaN where m does not vary."""
        return self.moments()[2]

    def slope_errors(self) -> Array:
        """White's robust standard error of the slope: (K, P, P)."""
        mean, variance, slope = self.moments()
        centred = (self.scores - self.scores.mean(0)).astype(np.float64)

        def influence(m: Array, rows: slice) -> Array:
            away = (m - mean)[:, None]
            residual = centred[rows, :, None, None] - slope * away
            return residual * away / np.where(variance > VARIES, variance, np.nan)

        return self._errors(influence)

    def paper_errors(self, probability: float) -> Array:
        """Standard error of Σ S·m / (N·p): (K, P, P)."""
        return self._errors(
            lambda m, rows: self.scores[rows, :, None, None] * m[:, None] / probability
        )

    def residual_errors(self, residual: Array, probability: float, variance: Array) -> Array:
        """Standard error of Σ e·(m − p) / (N·Var(m)), for residuals (N, K): (K, P, P)."""
        return self._errors(
            lambda m, rows: residual[rows, :, None, None] * (m - probability)[:, None] / variance
        )

    def _errors(self, influence: Callable[[Array, slice], Array]) -> Array:
        def terms(m: Array, rows: slice) -> Sequence[Array]:
            some = influence(m, rows)
            some = np.add.reduceat(some, np.arange(0, len(some), self.group))
            return [some.sum(0), (some**2).sum(0)]

        groups = -(-self.plan.n_forwards // self.group)
        return grouped(self._sums(terms), groups, self.plan.n_forwards)


def _control_variate(sample: _Sample, p: float, size: int) -> tuple[Array, Array]:
    """Slope (K, size, size) and its standard error (K, 32, 32).

    Cov(S, m) = Cov(ŝ, m) + Cov(S − ŝ, m), ŝ linear in the masks' values at a coarse grid. With
    independent cells, Cov(m(x), m(y)) is p (1 − p) times a product of the kernels' overlaps along
    the rows and along the columns.
    """
    plan, scores = sample.plan, sample.scores.astype(np.float64)
    count, columns = scores.shape
    if count <= sample.group:  # nothing to tell the level from the slope
        nowhere = (np.full((columns, side, side), np.nan) for side in (size, POINTS))
        return next(nowhere), next(nowhere)
    from sklearn.linear_model import RidgeCV

    at = nearest(FEATURES)
    seen = plan.region[np.ix_(at, at)]
    features = np.concatenate(
        [
            plan.keep(start, min(start + _CHUNK, count), FEATURES)[:, 0].numpy()[:, seen]
            for start in range(0, count, _CHUNK)
        ]
    )
    features = features.astype(np.float64) - p
    fold = np.arange(count) // sample.group % FOLDS
    residual = np.empty_like(scores)
    weights = np.zeros((columns, FEATURES, FEATURES))
    for number in range(FOLDS):
        mine, others = fold == number, fold != number
        if others.sum() < 2 * FOLDS or not seen.any():
            residual[mine] = scores[mine] - (scores[others].mean(0) if others.any() else 0)
            continue
        fit = RidgeCV(_PENALTIES, alpha_per_target=True).fit(features[others], scores[others])
        residual[mine] = scores[mine] - fit.predict(features[mine]).reshape(-1, columns)
        weights[:, seen] += mine.mean() * fit.coef_.reshape(columns, -1)
    side = plan.cells.shape[1]
    along = overlap(side, size, FEATURES)
    known = p * (1 - p) * (along @ weights @ along.T)
    missed = plan.weighted_sum(residual, size) - p * residual.sum(0)[:, None, None]
    own = overlap(side, size, size).diagonal()
    at = nearest(size)
    region = plan.region[np.ix_(at, at)]
    slope = (known + missed / count) / (p * (1 - p) * np.outer(own, own))
    slope = np.where(region, slope, np.nan)
    points = overlap(side, POINTS, POINTS).diagonal()
    variance = p * (1 - p) * np.outer(points, points)
    return slope, sample.residual_errors(residual, p, variance)


def _by_map(errors: Array, shape: tuple[int, ...]) -> Array:
    return errors.reshape(*shape, POINTS, POINTS)
