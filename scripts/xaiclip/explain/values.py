"""Value functions: the scalar that a perturbation changes.

Each takes probabilities under perturbation, float (B, O, h, w) in [0, 1], and the hard mask of the
unperturbed segmentation, float (O, h, w) of 0 and 1, not empty; it gives (B, O).
All but `false_positive_area` grow with agreement. Their names need no torch.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

THRESHOLD = 0.5

_PLANE = (-2, -1)


def soft_dice(probability: Tensor, mask: Tensor) -> Tensor:
    """Dice of the probabilities with the baseline mask, in [0, 1]."""
    return 2 * _overlap(probability, mask) / (probability.sum(_PLANE) + mask.sum(_PLANE))


def hard_dice(probability: Tensor, mask: Tensor) -> Tensor:
    """Dice of the thresholded probabilities with the baseline mask, in [0, 1]."""
    return soft_dice(_hard(probability), mask)


def hard_iou(probability: Tensor, mask: Tensor) -> Tensor:
    """Intersection over union of the thresholded probabilities and the baseline mask, in [0, 1]."""
    dice = hard_dice(probability, mask)
    return dice / (2 - dice)


def in_mask_probability(probability: Tensor, mask: Tensor) -> Tensor:
    """Mean probability within the baseline mask, in [0, 1]."""
    return _overlap(probability, mask) / mask.sum(_PLANE)


def boundary_dice(probability: Tensor, mask: Tensor) -> Tensor:
    """Soft Dice within a band around the baseline mask's edge, in [0, 1].

    The band reaches 1/64 of the plane's height to both sides. A mask that fills the plane has no
    edge: 0.
    """
    band = _band(mask)
    both = (probability * band).sum(_PLANE) + (mask * band).sum(_PLANE)
    return 2 * _overlap(probability, mask * band) / both.clamp(min=1)


def false_positive_area(probability: Tensor, mask: Tensor) -> Tensor:
    """Thresholded area outside the baseline mask, as a share of the mask's area; 0 or more."""
    return _overlap(_hard(probability), 1 - mask) / mask.sum(_PLANE)


#: Every value function, by name.
VALUES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    function.__name__: function
    for function in (
        soft_dice,
        hard_dice,
        hard_iou,
        in_mask_probability,
        boundary_dice,
        false_positive_area,
    )
}

#: Those that only jump: their gradient is zero wherever there is one.
FLAT = ("hard_dice", "hard_iou", "false_positive_area")

#: The paper's dual saliency: agreement of the segmentation, and response inside it.
DUAL = ("soft_dice", "in_mask_probability")


def explained(values: tuple[str, ...]) -> tuple[str, ...]:
    """The values that get a map, out of those that are named: the first, and the dual pair."""
    return tuple(dict.fromkeys((values[0], *(name for name in DUAL if name in values))))


@lru_cache(maxsize=4)  # a slice's mask stays the same for all its forwards
def _band(mask: Tensor) -> Tensor:
    import torch
    import torch.nn.functional as F

    # kept for gradients, too, which may not pass a tensor of inference mode
    with torch.inference_mode(False), torch.no_grad():
        reach = max(1, round(mask.shape[-2] / 64))
        grown = F.max_pool2d(mask, 2 * reach + 1, 1, reach)
        shrunk = 1 - F.max_pool2d(1 - mask, 2 * reach + 1, 1, reach)
        return grown - shrunk


def _overlap(probability: Tensor, mask: Tensor) -> Tensor:
    import torch

    return torch.einsum("bohw,ohw->bo", probability, mask)


def _hard(probability: Tensor) -> Tensor:
    return (probability > THRESHOLD).to(probability.dtype)
