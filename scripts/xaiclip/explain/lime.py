"""LIME: keep random sets of superpixels, and fit a local linear surrogate."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from skimage.segmentation import felzenszwalb, quickshift, slic

from xaiclip.errors import CaseError, ConfigError
from xaiclip.explain.attribution import GRID, Attribution
from xaiclip.explain.engine import ScoreTable
from xaiclip.explain.plan import Context, Plan, SuperpixelPlan
from xaiclip.explain.settings import section, setting
from xaiclip.explain.uncertainty import block_size, reliability, summary

MULTISCALE = "multiscale"
KERNEL_WIDTH = 0.25  # of lime_image


@dataclass(frozen=True)
class Slic:
    """Arguments of skimage.segmentation.slic."""

    n_segments: int = setting(150, "SLIC: superpixels wished for.", minimum=2, maximum=5000)
    compactness: float = setting(0.1, "SLIC: weight of nearness against likeness.", minimum=0.001)


@dataclass(frozen=True)
class QuickShift:
    """Arguments of skimage.segmentation.quickshift."""

    kernel_size: float = setting(
        3,
        "QuickShift: width of the density's kernel, in pixels of 256 × 256.",
        minimum=1,
        maximum=50,
    )
    max_dist: float = setting(
        10,
        "QuickShift: cut-off for distances; higher gives fewer superpixels.",
        minimum=5,
        maximum=256,
    )
    ratio: float = setting(
        0.5, "QuickShift: weight of grey values against nearness.", minimum=0, maximum=1
    )


@dataclass(frozen=True)
class PlanSettings:
    """Superpixel maps, and the samples of each; the unperturbed image is one, as in lime."""

    superpixels: Sequence[str] = setting(
        ("felzenszwalb", "slic", "quickshift", "multiscale"),
        "Superpixel maps that are perturbed, each with samples of its own; `multiscale` is "
        "Felzenszwalb's at all `scales`.",
        one_of=("felzenszwalb", "slic", "quickshift", "multiscale"),
    )
    samples: int = setting(
        64,
        "Perturbed samples of each superpixel map (the paper: 500).",
        minimum=4,
        maximum=1_000_000,
    )
    guided_samples: str = setting(
        "proportional",
        "Under guidance: as many samples per superpixel as without, or as many samples.",
        one_of=("proportional", "equal"),
    )
    min_samples: int = setting(32, "Never fewer than this.", minimum=4, maximum=1_000_000)
    scale: float = setting(100, "Felzenszwalb: scale.", minimum=1)
    sigma: float = setting(0.5, "Felzenszwalb: smoothing.", minimum=0, maximum=50)
    min_size: int = setting(50, "Felzenszwalb: smallest superpixel.", minimum=4, maximum=65536)
    scales: Sequence[float] = setting(
        (50, 100, 200), "Scales of the multi-scale variant.", minimum=1
    )
    slic: Slic = section(Slic, "Arguments of skimage's slic.")
    quickshift: QuickShift = section(QuickShift, "Arguments of skimage's quickshift.")
    sampling: str = setting(
        "plain",
        "paired: each sample is followed by its complement (Covert and Lee 2021).",
        one_of=("plain", "paired"),
    )
    stop: float | None = setting(
        None,
        "No more samples once the surrogate's coefficients are this reliable (0 to 1); null takes "
        "all.",
        above=0,
        below=1,
        adaptive=True,
    )

    @property
    def group(self) -> int:
        """Samples that depend on each other."""
        return 2 if self.sampling == "paired" else 1

    def plans_of(self, variant: str) -> list[str]:
        """Names of the plans that a variant rests on; a Felzenszwalb name ends in its scale."""
        if variant == MULTISCALE:
            return [f"felzenszwalb_{scale:g}" for scale in self.scales]
        return [f"felzenszwalb_{self.scale:g}" if variant == "felzenszwalb" else variant]


@dataclass(frozen=True)
class MapSettings:
    """Maps that are made of the superpixels."""

    variants: Sequence[str] | None = setting(
        None,
        "Maps that are made of the `superpixels`; null makes each. The first is the primary one of "
        "the tables.",
        one_of=("felzenszwalb", "slic", "quickshift", "multiscale"),
    )


def plans(context: Context) -> dict[str, Plan]:
    """Random superpixels on or off, half of them on average."""
    settings = context.read(PlanSettings)
    drawn = _draw(settings, context)
    if settings.stop is None:
        return {**drawn}
    return {name: plan.take(slice(block_size(settings.samples))) for name, plan in drawn.items()}


def refine(
    plans: Mapping[str, Plan], tables: Mapping[str, ScoreTable], context: Context
) -> dict[str, Plan]:
    """The next tenth of the samples of each superpixel map whose surrogate is still uncertain."""
    settings = context.read(PlanSettings)
    if settings.stop is None:
        return {}
    more: dict[str, Plan] = {}
    for name, drawn in _draw(settings, context).items():
        made = plans[name].n_forwards
        if made == drawn.n_forwards:
            continue
        part = drawn.take(slice(made))
        if stability(part, tables[name], context) < settings.stop:
            more[name] = drawn.take(slice(made, made + block_size(settings.samples)))
    return more


def stability(plan: SuperpixelPlan, table: ScoreTable, context: Context) -> float:
    """The least reliable organ's coefficients' reliability, of the first explained value."""
    first = context.explained[:1]
    scores = np.concatenate([table.baseline_of(first)[None], table.of(first)])
    coefficients, _ = surrogate(plan.on, scores)
    errors = coefficient_errors(plan.on, scores, coefficients, context.read(PlanSettings).group)
    if plan.on.shape[1] < 2:
        return 1.0  # one superpixel has no ranking
    return min(reliability(*one) for one in zip(coefficients[:, 0], errors[:, 0], strict=True))


def aggregate(
    plans: Mapping[str, Plan], tables: Mapping[str, ScoreTable], context: Context
) -> list[Attribution]:
    """Each superpixel's coefficient in the surrogate; NaN outside the organ's ROI.

    The multi-scale map is the mean of the scales' maps, each stretched to [0, 1]; it has no
    standard error.
    """
    settings = context.read(PlanSettings)
    variants = context.read(MapSettings).variants or settings.superpixels
    needed = dict.fromkeys(name for variant in variants for name in settings.plans_of(variant))
    if missing := [name for name in needed if name not in plans]:
        raise ConfigError(
            f"LIME's superpixels '{missing[0]}' were not perturbed: add what 'variants' names to "
            "'methods.lime.superpixels'."
        )
    maps: dict[str, NDArray[np.float32]] = {}
    errors: dict[str, NDArray[np.float32]] = {}
    r2, trust = {}, {}
    for name in needed:
        plan = plans[name]
        assert isinstance(plan, SuperpixelPlan)
        scores, whole = (
            tables[name].of(context.explained),
            tables[name].baseline_of(context.explained),
        )
        labels = np.concatenate([whole[None], scores])
        coefficients, r2[name] = surrogate(plan.on, labels)
        spread = coefficient_errors(plan.on, labels, coefficients, settings.group)
        trust[name] = summary(coefficients, spread)
        for drawn, numbers in ((maps, coefficients), (errors, spread)):
            values = numbers.astype(np.float32)[..., plan.segments]
            drawn[name] = np.where(context.domains[:, None], values, np.float32(np.nan))
    attributions = []
    for position, variant in enumerate(variants):
        names = settings.plans_of(variant)
        stretch = _stretch if variant == MULTISCALE else np.asarray
        attributions += context.attributions(
            variant,
            names,
            np.mean([stretch(maps[name]) for name in names], axis=0),
            primary=position == 0,
            details={
                "r2": np.mean([r2[name] for name in names], axis=0),
                **(trust[names[0]] if variant != MULTISCALE else {}),
            },
            errors=errors[names[0]] if variant != MULTISCALE else None,
        )
    return attributions


def superpixels(name: str, image: NDArray[np.uint8], settings: PlanSettings) -> NDArray[np.int64]:
    """Superpixels of a slice (512, 512), as labels from 0; the last few are remembered."""
    kind, _, scale = name.partition("_")
    if kind == "felzenszwalb":
        options: Mapping[str, float] = {
            "scale": float(scale),
            "sigma": settings.sigma,
            "min_size": settings.min_size,
        }
    else:
        options = asdict(settings.slic if kind == "slic" else settings.quickshift)
    return _superpixels(kind, image.tobytes(), tuple(options.items()))


@lru_cache(maxsize=8)  # a stopping rule asks for the same ones in each round
def _superpixels(
    kind: str, pixels: bytes, options: tuple[tuple[str, float], ...]
) -> NDArray[np.int64]:
    image = np.frombuffer(pixels, np.uint8).reshape(GRID, GRID)
    if kind == "slic":
        return slic(image, channel_axis=None, start_label=0, **dict(options))
    if kind == "quickshift":
        # on half the grid: the search costs a fourth of the pixels and a fourth of the radius
        half = cv2.resize(image, (GRID // 2, GRID // 2), interpolation=cv2.INTER_AREA)
        labels = quickshift(np.dstack([half] * 3), rng=0, **dict(options))
        return labels.repeat(2, axis=0).repeat(2, axis=1)
    return felzenszwalb(image, **dict(options))


def coefficient_errors(
    on: NDArray[np.bool_],
    scores: NDArray[np.floating[Any]],
    coefficients: NDArray[np.float64],
    group: int = 1,
) -> NDArray[np.float64]:
    """Standard errors of `surrogate`'s coefficients: (O, V, F).

    The sandwich of the weighted ridge regression, each residual divided by one minus its leverage
    (HC3; MacKinnon and White 1985), so that a surrogate that fits anything does not look certain.
    Neighbouring samples of a ``group`` depend on each other; their terms are added up first.
    The ridge's shrinkage is not part of it.

    Args:
        on, scores: as `surrogate` takes them.
        coefficients: what it gave.
    """
    data = np.vstack([np.ones(on.shape[1]), on])
    labels = scores.reshape(len(scores), -1).astype(np.float64)
    weights = _kernel(_distances(data))
    share = weights / weights.sum()
    centred, moved = data - share @ data, labels - share @ labels
    inverse = np.linalg.inv(centred.T @ (weights[:, None] * centred) + np.eye(on.shape[1]))
    leverage = weights * np.einsum("nf,fg,ng->n", centred, inverse, centred) + share
    slopes = coefficients.reshape(labels.shape[1], -1)
    residual = (moved - centred @ slopes.T) / (1 - leverage).clip(1e-3)[:, None]
    terms = (weights[:, None] * centred) @ inverse
    # the unperturbed image is one for itself
    starts = np.concatenate([[0], np.arange(1, len(data), group)])
    errors = [
        np.sqrt((np.add.reduceat(terms * column[:, None], starts) ** 2).sum(0))
        for column in residual.T
    ]
    return np.reshape(errors, coefficients.shape)


def surrogate(
    on: NDArray[np.bool_], scores: NDArray[np.floating[Any]]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Fit the lime package's own weighted ridge regression, once for each organ and value.

    Args:
        on: (N, F), the superpixels that each sample keeps.
        scores: (1 + N, O, V): the unperturbed image's, then those of the samples.

    Returns:
        The coefficients (O, V, F), and R² (O, V) of the weighted fit.
    """
    from lime.lime_base import LimeBase

    data = np.vstack([np.ones(on.shape[1]), on])
    distances = _distances(data)
    base = LimeBase(_kernel, random_state=0)
    labels = scores.reshape(len(scores), -1).astype(np.float64)
    coefficients, r2 = np.empty((labels.shape[1], on.shape[1])), np.empty(labels.shape[1])
    for column in range(labels.shape[1]):
        _, fitted, r2[column], _ = base.explain_instance_with_data(
            data, labels, distances, column, on.shape[1], feature_selection="none"
        )
        features, weights = zip(*fitted, strict=True)
        coefficients[column, list(features)] = weights
    return coefficients.reshape(*scores.shape[1:], -1), r2.reshape(scores.shape[1:])


def _distances(data: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    from sklearn.metrics import pairwise_distances

    return np.asarray(pairwise_distances(data, data[:1], metric="cosine").ravel())


def _kernel(distances: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(np.sqrt(np.exp(-(distances**2) / KERNEL_WIDTH**2)))


def _draw(settings: PlanSettings, context: Context) -> dict[str, SuperpixelPlan]:
    """All samples that the settings allow; a shorter run makes the first of them."""
    names = dict.fromkeys(name for one in settings.superpixels for name in settings.plans_of(one))
    return {name: _plan(name, settings, context) for name in names}


def _plan(name: str, settings: PlanSettings, context: Context) -> SuperpixelPlan:
    everything = superpixels(name, context.image, settings)
    # the image is segmented whole: zeros outside the ROI would draw false edges
    found = np.unique(everything[context.union])
    if not len(found):
        raise CaseError("No superpixel lies in an ROI: nothing can be perturbed.")
    relabel = np.full(everything.max() + 1, -1, dtype=np.int32)
    relabel[found] = np.arange(len(found))
    segments = np.where(context.union, relabel[everything], np.int32(-1))
    samples = settings.samples
    if context.rois is not None and settings.guided_samples == "proportional":
        share = round(samples * len(found) / len(np.unique(everything)))
        samples = min(samples, max(settings.min_samples, share))
    rng = np.random.default_rng([context.seed, zlib.crc32(name.encode())])
    # the first sample is the unperturbed image, which the engine has anyway
    count = max(1, samples - 1)
    on = rng.integers(0, 2, (-(-count // settings.group), len(found))).astype(bool)
    if settings.group == 2:
        on = np.stack([on, ~on], axis=1).reshape(-1, len(found))[:count]
    members = np.ones((len(on), len(context.organs)), dtype=bool)
    return SuperpixelPlan(members, settings.samples - 1, segments, on)


def _stretch(maps: NDArray[np.floating[Any]]) -> NDArray[np.floating[Any]]:
    """Min–max of each map (O, V, 512, 512) over its finite pixels; a constant map becomes 0."""
    low = np.nanmin(maps, axis=(-2, -1), keepdims=True)
    span = np.nanmax(maps, axis=(-2, -1), keepdims=True) - low
    return (maps - low) / np.where(span > 0, span, 1)
