"""Grad-CAM: the channels of a layer, each weighted by the score's mean gradient with respect to it.

Selvaraju et al. 2017, by captum. Coarse, as the layer is, and cheap: one forward and one backward a
map, which goes no further than the layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from xaiclip.errors import CaseError, ConfigError
from xaiclip.explain.attribution import Attribution
from xaiclip.explain.gradients import Change, Gradients, Question, attributions, layer
from xaiclip.explain.plan import Context
from xaiclip.explain.settings import setting


@dataclass(frozen=True)
class PlanSettings:
    """What the gradients are taken of."""

    layer: str | None = setting(
        None,
        "Name of a layer with outputs (B, channels, h, w), as `named_modules` has it; null is the "
        "image encoder's neck of the SAM family.",
    )


@dataclass(frozen=True)
class MapSettings:
    """Maps of the same gradients."""

    variants: Sequence[str] = setting(
        ("signed",),
        "signed: positive where a place supports the mask; positive: nothing else, as published. "
        "The first is the primary one of the tables.",
        one_of=("signed", "positive"),
    )


def gradient(question: Question) -> Tensor:
    """captum's map of one score, over the part of the layer that shows the slice."""
    from captum.attr import LayerGradCam  # seconds to import

    name, module = layer(question, question.context.read(PlanSettings).layer)
    shapes: list[tuple[int, ...]] = []

    def cut_off(_module: object, _inputs: object, output: object) -> object:
        """The layer's output as a leaf: nothing before it is kept for a backward."""
        shapes.append(tuple(output.shape) if isinstance(output, Tensor) else ())
        return output.detach().requires_grad_() if isinstance(output, Tensor) else output

    hook = module.register_forward_hook(cut_off)
    try:
        found = LayerGradCam(question.score, module).attribute(question.inputs)
    except (CaseError, AssertionError, KeyError, RuntimeError, IndexError, TypeError) as error:
        if shapes and len(shapes[0]) == 4:
            raise
        raise ConfigError(_unfit(name, shapes)) from error
    finally:
        hook.remove()
    # a transformer's block has its channels last, and a square grid before them
    if len(shapes[0]) != 4 or (shapes[0][1] == shapes[0][2] != shapes[0][3]):
        raise ConfigError(_unfit(name, shapes))
    return question.scorer.place(found)


def _unfit(name: str, shapes: list[tuple[int, ...]]) -> str:
    what = f"has outputs of shape {shapes[0]}" if shapes else "is not run as a module of its own"
    return (
        f"config key 'methods.grad_cam.layer': '{name}' {what}; Grad-CAM needs one with outputs "
        "(B, channels, h, w)."
    )


def aggregate(gradients: Gradients, context: Context) -> list[Attribution]:
    """The raw maps on the canonical grid, bilinear; NaN outside the organ's ROI."""
    variants: dict[str, Change] = {
        "signed": np.positive,
        "positive": lambda raw: np.maximum(raw, 0),
    }
    chosen = context.read(MapSettings).variants
    return attributions(gradients, context, {name: variants[name] for name in chosen})
