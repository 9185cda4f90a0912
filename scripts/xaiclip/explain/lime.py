"""LIME: keep random sets of superpixels, and fit a local linear surrogate."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
from lime.lime_base import LimeBase
from numpy.typing import NDArray
from skimage.segmentation import felzenszwalb, quickshift, slic
from sklearn.metrics import pairwise_distances

from xaiclip.errors import CaseError
from xaiclip.explain.attribution import GRID, Attribution
from xaiclip.explain.engine import ScoreTable
from xaiclip.explain.plan import Context, Plan, SuperpixelPlan
from xaiclip.explain.uncertainty import block_size, reliability, summary

MULTISCALE = "multiscale"
KERNEL_WIDTH = 0.25  # of lime_image


@dataclass(frozen=True)
class Settings:
    """Superpixels and samples; the unperturbed image is one of the ``samples``, as in lime.

    ``paired`` sampling follows each sample with its complement (Covert and Lee 2021). ``stop``: no
    more samples of a superpixel map once every organ's coefficients are this reliable
    (`uncertainty.reliability`).

    Under guidance ``proportional`` keeps the samples per superpixel (but at least
    ``min_samples``), ``equal`` the number of samples.

    ``scale``, ``sigma``, ``min_size`` and ``scales`` are Felzenszwalb's; ``slic`` and
    ``quickshift`` hold arguments of skimage.segmentation's functions of these names.
    """

    variants: Sequence[str] = ("felzenszwalb", "slic", "quickshift", MULTISCALE)
    samples: int = 500
    guided_samples: str = "proportional"
    min_samples: int = 50
    scale: float = 100
    sigma: float = 0.5
    min_size: int = 50
    scales: Sequence[float] = (50, 100, 200)
    slic: Mapping[str, float] = field(
        default_factory=lambda: {"n_segments": 150, "compactness": 0.1}
    )
    quickshift: Mapping[str, float] = field(
        default_factory=lambda: {"kernel_size": 3, "max_dist": 10, "ratio": 0.5}
    )
    sampling: str = "plain"
    stop: float | None = None

    @property
    def group(self) -> int:
        """Samples that depend on each other."""
        return 2 if self.sampling == "paired" else 1

    def plans_of(self, variant: str) -> list[str]:
        """Names of the plans that a variant rests on; a Felzenszwalb name ends in its scale."""
        if variant == MULTISCALE:
            return [f"felzenszwalb_{scale:g}" for scale in self.scales]
        return [f"felzenszwalb_{self.scale:g}" if variant == "felzenszwalb" else variant]


def plans(context: Context) -> dict[str, Plan]:
    """Random superpixels on or off, half of them on average."""
    settings = Settings(**context.settings)
    drawn = _draw(settings, context)
    if settings.stop is None:
        return {**drawn}
    return {name: plan.take(slice(block_size(settings.samples))) for name, plan in drawn.items()}


def refine(
    plans: Mapping[str, Plan], tables: Mapping[str, ScoreTable], context: Context
) -> dict[str, Plan]:
    """The next tenth of the samples of each superpixel map whose surrogate is still uncertain."""
    settings = Settings(**context.settings)
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
    errors = coefficient_errors(plan.on, scores, coefficients, Settings(**context.settings).group)
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
    settings = Settings(**context.settings)
    maps: dict[str, NDArray[np.float32]] = {}
    errors: dict[str, NDArray[np.float32]] = {}
    r2, trust = {}, {}
    for name, plan in plans.items():
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
    for position, variant in enumerate(settings.variants):
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


def superpixels(name: str, image: NDArray[np.uint8], settings: Settings) -> NDArray[np.int64]:
    """Superpixels of a slice (512, 512), as labels from 0; the last few are remembered."""
    kind, _, scale = name.partition("_")
    if kind == "felzenszwalb":
        options: Mapping[str, float] = {
            "scale": float(scale),
            "sigma": settings.sigma,
            "min_size": settings.min_size,
        }
    else:
        options = settings.slic if kind == "slic" else settings.quickshift
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
    return np.asarray(pairwise_distances(data, data[:1], metric="cosine").ravel())


def _kernel(distances: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(np.sqrt(np.exp(-(distances**2) / KERNEL_WIDTH**2)))


def _draw(settings: Settings, context: Context) -> dict[str, SuperpixelPlan]:
    """All samples that the settings allow; a shorter run makes the first of them."""
    names = dict.fromkeys(name for one in settings.variants for name in settings.plans_of(one))
    return {name: _plan(name, settings, context) for name in names}


def _plan(name: str, settings: Settings, context: Context) -> SuperpixelPlan:
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
