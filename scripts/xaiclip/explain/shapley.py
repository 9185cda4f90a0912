"""Shapley values over units: what each organ's region, or superpixel, gives to a segmentation.

A game: its players are units of the image, and a coalition S is worth v(S), the score with the
units of S kept and the others filled. A unit's Shapley value is what it adds, averaged over all
orders in which the units can come together. The values add up to v(all) − v(none), the total drop.

Few units: all 2^M coalitions are scored, and nothing is random. More: KernelSHAP (Lundberg and Lee
2017) scores a sample of them. One estimator serves both: the least-squares fit of an additive game
that is exact at v(none) and v(all). The coalitions of s of the M units share a weight in
proportion to 1 / (s (M − s)). With all coalitions the fit is the Shapley value itself (Charnes et
al. 1988).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import comb
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xaiclip.errors import CaseError
from xaiclip.explain.attribution import Attribution
from xaiclip.explain.engine import ScoreTable
from xaiclip.explain.plan import Context, Plan, SuperpixelPlan
from xaiclip.explain.settings import section, setting
from xaiclip.explain.uncertainty import summary
from xaiclip.organs import OUTSIDE, REST

COALITIONS = "coalitions"
LEAST = 4  # coalitions for each unit: below, sizes of coalitions would be missing

Array = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Slic:
    """Arguments of skimage.segmentation.slic."""

    n_segments: int = setting(50, "SLIC: superpixels wished for.", minimum=2, maximum=5000)
    compactness: float = setting(0.1, "SLIC: weight of nearness against likeness.", minimum=0.001)


@dataclass(frozen=True)
class PlanSettings:
    """What the units are, and how many coalitions of them are scored."""

    units: str = setting(
        "organs",
        "organs: each organ's region, the rest of the body, and what is outside the body; "
        "superpixels: SLIC's.",
        one_of=("organs", "superpixels"),
    )
    regions: str = setting(
        "prediction",
        "Whose organs the units are: those of the segmentation that is explained, of the label, "
        "or of the localizer's map.",
        one_of=("prediction", "label", "localizer"),
    )
    exact: int = setting(
        10,
        "All 2^M coalitions of up to so many units are scored: nothing is random.",
        minimum=1,
        maximum=16,
    )
    samples: int = setting(
        1000,
        "Coalitions that are scored of more units than that (KernelSHAP); at least four for each "
        "unit.",
        minimum=4,
        maximum=1_000_000,
    )
    slic: Slic = section(Slic, "Arguments of skimage's slic.")


@dataclass(frozen=True)
class MapSettings:
    """Maps of one table of scores; see `aggregate`."""

    variants: Sequence[str] = setting(
        ("value", "density"),
        "What a unit is painted with: its value, or its value per pixel. The first is the primary "
        "one of the tables.",
        one_of=("value", "density"),
    )


@dataclass(frozen=True, eq=False)
class UnitPlan(SuperpixelPlan):
    """Forward k keeps a set of named units: first none of them, then pairs of complements.

    Attributes:
        names: str (F,), of the units.
    """

    names: NDArray[np.str_]


def plans(context: Context) -> dict[str, Plan]:
    """The coalitions; under guidance the units that meet no ROI stay as they are.

    A unit that meets an ROI is hidden as a whole, as an occlusion window is.

    Raises:
        CaseError: the slice has no label, and the units are its organs.
    """
    settings = context.read(PlanSettings)
    names, units = _units(settings, context)
    players = np.unique(units[context.union])
    relabel = np.full(len(names), -1, dtype=np.int32)
    relabel[players] = np.arange(len(players))
    count = len(np.unique(units))
    on = coalitions(len(players), settings.exact, settings.samples, context.seed)
    without_guidance = 1 + 2 * sum(_drawn(count, settings.exact, settings.samples).values())
    return {
        COALITIONS: UnitPlan(
            members=np.ones((len(on), len(context.organs)), dtype=bool),
            n_full=without_guidance,
            segments=relabel[units],
            on=on,
            names=np.array(names)[players],
        )
    }


def aggregate(
    plans: Mapping[str, Plan], tables: Mapping[str, ScoreTable], context: Context
) -> list[Attribution]:
    """Each unit painted with its Shapley value: positive where the unit supports the organ's mask.

    ``density`` is the value per pixel of the canonical grid: added up over the pixels it is the
    total drop. NaN in units that are no players, and outside the organ's ROI. Values of regions
    are also given by name (`Attribution.units`), with the first variant.
    """
    named = context.read(PlanSettings).units == "organs"
    plan, table = plans[COALITIONS], tables[COALITIONS]
    assert isinstance(plan, UnitPlan)
    values, errors = shapley_values(
        plan.on, table.of(context.explained), table.baseline_of(context.explained)
    )
    areas = np.bincount(plan.segments.ravel() + 1, minlength=len(plan.names) + 1)[1:]
    attributions = []
    for position, variant in enumerate(context.read(MapSettings).variants):
        scale = 1 / areas if variant == "density" else 1.0
        attributions += context.attributions(
            variant,
            [COALITIONS],
            _paint(values * scale, plan, context),
            primary=position == 0,
            details=None if errors is None else summary(values * scale, errors * scale),
            errors=None if errors is None else _paint(errors * scale, plan, context),
            units=_named(plan.names, values) if named and position == 0 else None,
        )
    return attributions


def shapley_values(
    on: NDArray[np.bool_], scores: Array, whole: Array
) -> tuple[NDArray[np.float64], NDArray[np.float64] | None]:
    """Shapley values of M units, and their standard errors; they add up to v(all) − v(none).

    Coalitions of s and of M − s units are a stratum, of which a share is scored: of all pairs of
    complements, drawn without replacement. The errors are the linearised ones of a stratified
    sample with its finite-population correction (Cochran 1977, chapter 5), each pair's
    residual divided by one minus its leverage (as in HC3), so that a fit of many units to few
    coalitions does not look certain.

    Args:
        on: (N, M), the units that each coalition keeps: first none, then pairs of complements.
        scores: (N, O, V), theirs.
        whole: (O, V), the score with all units kept.

    Returns:
        (O, V, M) each; no errors where all coalitions were scored.
    """
    units, shape = on.shape[1], whole.shape
    nothing = scores[0].reshape(-1).astype(np.float64)
    total = whole.reshape(-1) - nothing
    paired = slice(1, 1 + (len(on) - 1) // 2 * 2)  # a plan that was cut may end within a pair
    on, worth = on[paired], scores[paired].reshape(-1, len(nothing)) - nothing
    size = on.sum(1)
    made = np.bincount(size, minlength=units + 1)
    weight = 1.0 / (size * (units - size) * made[size])
    # beside the fair share, what is left to fit adds up to 0 over the units
    share = size[:, None] / units
    moved, rest = on - share, worth - share * total
    inverse = np.linalg.pinv(moved.T @ (weight[:, None] * moved) + 1 / units, hermitian=True)
    influence = weight[:, None] * (moved @ inverse)
    beyond = influence.T @ rest
    values = (beyond + total / units).T.reshape(*shape, units)
    possible = [comb(units, s) for s in range(units + 1)]
    if made[1:-1].tolist() == possible[1:-1]:
        return values, None
    variance = np.zeros_like(beyond)
    residual = rest - moved @ beyond
    # two complements have the same row but for its sign
    leverage = 2 * np.einsum("nu,nu->n", influence[::2], moved[::2])
    pairs = (residual[::2] - residual[1::2]) / (1 - leverage).clip(1e-3)[:, None]
    smaller = np.minimum(size, units - size)[::2]
    for s in np.unique(smaller):
        left = 1 - int(made[s]) / possible[s]
        if left > 0:
            terms = influence[::2][smaller == s, :, None] * pairs[smaller == s, None]
            spread = terms.var(0, ddof=1) if len(terms) > 1 else np.nan
            variance += left * len(terms) * spread
    return values, np.sqrt(variance).T.reshape(*shape, units)


def coalitions(units: int, exact: int, samples: int, seed: int) -> NDArray[np.bool_]:
    """The coalitions to score, but for all units together: none, then pairs of complements.

    Args:
        units: M.
        exact: all coalitions are scored if M is at most this.
        samples: coalitions to score otherwise.
        seed: of those that are drawn.

    Returns:
        bool (N, M), True = kept; no row occurs twice.
    """
    rng = np.random.default_rng([seed, units])
    pairs = [
        subset
        for size, count in _drawn(units, exact, samples).items()
        for subset in _subsets(units, size, count, rng)
    ]
    on = np.zeros((1 + 2 * len(pairs), units), dtype=bool)
    for row, subset in enumerate(pairs):
        on[1 + 2 * row, list(subset)] = True
    on[2::2] = ~on[1::2]
    return on


def _drawn(units: int, exact: int, samples: int) -> dict[int, int]:
    """Pairs of complements to score, by the size of the smaller coalition.

    The smallest come first: their weight in the fit is the largest. A size is scored whole where
    its share of what is left allows it, as in the shap package, and that of one unit always; a
    size of which a sample must do gets two pairs or more.
    """
    every = {size: _pairs(units, size) for size in range(1, units // 2 + 1)}
    left = sum(every.values())
    if units > exact:
        left = min(left, max(samples, LEAST * units) // 2)
    # both sizes of a pair have the same weight; in the middle they are one
    weights = {s: (1 if 2 * s == units else 2) / (s * (units - s)) for s in every}
    drawn = {}
    for size, possible in every.items():
        later = [s for s in every if s > size]
        wanted = round(left * weights[size] / sum(weights[s] for s in (size, *later)))
        most = min(possible, left - sum(min(2, every[s]) for s in later))
        drawn[size] = possible if size == 1 else max(min(2, possible), min(wanted, most))
        left -= drawn[size]
    return drawn


def _pairs(units: int, size: int) -> int:
    """How many pairs of complements there are whose smaller coalition has this size."""
    return comb(units, size) // (2 if 2 * size == units else 1)


def _subsets(
    units: int, size: int, count: int, rng: np.random.Generator
) -> Iterator[tuple[int, ...]]:
    """Different coalitions of one size, no two of them complements."""
    half = 2 * size == units  # then those with the first unit stand for all pairs
    if 2 * count >= _pairs(units, size):
        start = (0,) if half else ()
        every = list(combinations(range(len(start), units), size - len(start)))
        chosen = range(len(every)) if count == len(every) else _some(rng, len(every), count)
        yield from (start + every[number] for number in chosen)
        return
    seen: set[tuple[int, ...]] = set()
    while len(seen) < count:
        drawn = rng.permutation(units)
        subset = tuple(sorted(drawn[size:] if half and 0 in drawn[size:] else drawn[:size]))
        if subset not in seen:
            seen.add(subset)
            yield subset


def _some(rng: np.random.Generator, population: int, count: int) -> NDArray[np.integer[Any]]:
    return np.sort(rng.choice(population, count, replace=False))


def _units(settings: PlanSettings, context: Context) -> tuple[list[str], NDArray[np.integer[Any]]]:
    """Names of the units, and the unit of each pixel: (512, 512).

    Where regions overlap, a pixel belongs to the smallest of them: a large organ can spare it. A
    region of which nothing is left has no pixel.
    """
    if settings.units == "superpixels":
        from xaiclip.explain import lime  # its package takes a second to import

        slic = lime.Slic(settings.slic.n_segments, settings.slic.compactness)
        found = lime.superpixels("slic", context.image, lime.PlanSettings(slic=slic))
        return [str(number) for number in range(found.max() + 1)], found
    if settings.regions == "prediction":
        regions = dict(zip(context.organs, context.masks, strict=True))
    elif context.regions:
        regions = dict(context.regions)
    else:
        raise CaseError(
            f"The slice has no {settings.regions} that units could come from: set "
            "'methods.shapley.regions' to 'prediction'."
        )
    from xaiclip.masks.roi import body_mask  # so does what that imports

    names = [*regions, REST, OUTSIDE]
    units = np.where(body_mask(context.image), len(regions), len(regions) + 1)
    for name in sorted(regions, key=lambda name: -regions[name].sum()):
        units[regions[name]] = names.index(name)
    return names, units


def _paint(numbers: Array, plan: UnitPlan, context: Context) -> NDArray[np.float32]:
    """Numbers of the units (O, V, F) as maps (O, V, 512, 512)."""
    padded = np.pad(numbers.astype(np.float32), ((0, 0), (0, 0), (0, 1)), constant_values=np.nan)
    return np.where(context.domains[:, None], padded[..., plan.segments], np.float32(np.nan))


def _named(names: NDArray[np.str_], values: Array) -> list[list[dict[str, float]]]:
    return [
        [dict(zip(names.tolist(), map(float, one), strict=True)) for one in of_organ]
        for of_organ in values
    ]
