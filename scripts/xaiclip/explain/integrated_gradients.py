"""Integrated Gradients: the mean gradient on the way from the fill to the slice, times that way.

Sundararajan et al. 2017, by captum: the map adds up to the score's rise from the fill to the slice.
With ``noise`` it is the mean (SmoothGrad, Smilkov et al. 2017), mean square or variance (VarGrad,
Adebayo et al. 2018) over noisy copies of the slice, by captum's NoiseTunnel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from xaiclip.explain.attribution import Attribution
from xaiclip.explain.gradients import SIGNS, Gradients, Question, attributions
from xaiclip.explain.plan import Context
from xaiclip.explain.settings import setting


@dataclass(frozen=True)
class PlanSettings:
    """What the gradients are taken of."""

    steps: int = setting(
        50, "Points on the way from the fill to the slice.", minimum=2, maximum=1000
    )
    noise: str = setting(
        "none",
        "Of noisy copies of the slice, smoothgrad takes the mean of their maps, smoothgrad_sq that "
        "of the squares, vargrad the variance.",
        one_of=("none", "smoothgrad", "smoothgrad_sq", "vargrad"),
    )
    samples: int = setting(8, "Noisy copies; each takes all steps.", minimum=2, maximum=1000)
    deviation: float = setting(
        0.1, "Standard deviation of the noise, of a slice from 0 to 1.", above=0, maximum=1
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
    """captum's map of one score."""
    from captum.attr import IntegratedGradients, NoiseTunnel  # seconds to import

    settings = question.context.read(PlanSettings)
    integrated = IntegratedGradients(question.score)
    how = {
        "baselines": question.baseline,
        "n_steps": settings.steps,
        "internal_batch_size": question.batch,
    }
    if settings.noise == "none":
        return integrated.attribute(question.inputs, **how)
    return NoiseTunnel(integrated).attribute(
        question.inputs,
        nt_type=settings.noise,
        nt_samples=settings.samples,
        nt_samples_batch_size=1,
        stdevs=settings.deviation,
        **how,
    )


def aggregate(gradients: Gradients, context: Context) -> list[Attribution]:
    """The raw maps on the canonical grid; NaN outside the organ's ROI."""
    chosen = context.read(MapSettings).variants
    return attributions(gradients, context, {name: SIGNS[name] for name in chosen})
