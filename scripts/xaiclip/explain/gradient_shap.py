"""GradientSHAP: Integrated Gradients by chance: noisy slices at random points of the way.

Lundberg and Lee 2017, by captum: the mean over random samples of gradient times way, from the fill
to a noisy copy of the slice, taken at a random point between them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from xaiclip.explain.attribution import Attribution
from xaiclip.explain.gradients import SIGNS, Gradients, Question, attributions
from xaiclip.explain.plan import Context
from xaiclip.explain.settings import setting

#: Samples that captum draws and holds at once, whatever the batch: draws must not hang on it.
DRAWN = 8


@dataclass(frozen=True)
class PlanSettings:
    """What the gradients are taken of."""

    samples: int = setting(48, "Random samples.", minimum=2, maximum=100_000)
    deviation: float = setting(
        0.05, "Standard deviation of the noise, of a slice from 0 to 1.", minimum=0, maximum=1
    )


@dataclass(frozen=True)
class MapSettings:
    """Maps of the same gradients."""

    variants: Sequence[str] = setting(
        ("signed",),
        "signed: positive where a pixel supports the mask; absolute: without the sign. The first "
        "is the primary one of the tables.",
        one_of=("signed", "absolute"),
    )


def gradient(question: Question) -> Tensor:
    """captum's map of one score, some samples at a time."""
    from captum.attr import GradientShap  # seconds to import

    settings = question.context.read(PlanSettings)
    explainer = GradientShap(question.score)
    explainer.gradient_func = _in_batches(question.batch)
    total = torch.zeros_like(question.inputs)
    for start in range(0, settings.samples, DRAWN):
        count = min(DRAWN, settings.samples - start)
        some = explainer.attribute(
            question.inputs, question.baseline, n_samples=count, stdevs=float(settings.deviation)
        )
        total += some.detach() * (count / settings.samples)
    return total


def _in_batches(size: int) -> Callable[..., tuple[Tensor, ...]]:
    """captum's own gradient, of at most ``size`` images at once; each image has its own score."""
    from captum._utils.gradient import compute_gradients

    def gradients(
        forward: Any, inputs: tuple[Tensor, ...], target: Any = None, further: Any = None
    ) -> tuple[Tensor, ...]:
        (images,) = inputs
        parts = [
            compute_gradients(forward, (some.detach().requires_grad_(),), target, further)[0]
            for some in images.split(size)
        ]
        return (torch.cat(parts),)

    return gradients


def aggregate(gradients: Gradients, context: Context) -> list[Attribution]:
    """The raw maps on the canonical grid; NaN outside the organ's ROI."""
    chosen = context.read(MapSettings).variants
    return attributions(gradients, context, {name: SIGNS[name] for name in chosen})
