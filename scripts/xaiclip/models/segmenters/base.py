"""What a segmenter is, for everything that uses one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from xaiclip.errors import ConfigError


@dataclass(frozen=True)
class Prompts:
    """One box per organ, for one slice.

    ``boxes`` is float32 (O, 4), XYXY in fractions (0…1) of the slice's width and height;
    ``shape`` is the slice's (H, W) in pixels, for models that keep its aspect (any square if not
    given).

    Raises:
        ValueError: the shapes do not fit, or a box is empty, not finite or outside the slice.
    """

    organs: tuple[str, ...]
    boxes: Tensor
    shape: tuple[int, int] = (1, 1)

    def __post_init__(self) -> None:
        if self.boxes.shape != (len(self.organs), 4):
            raise ValueError(
                f"{len(self.organs)} organs need boxes of shape ({len(self.organs)}, 4), "
                f"not {tuple(self.boxes.shape)}"
            )
        low, high = self.boxes[:, :2], self.boxes[:, 2:]
        inside = (low >= 0).all(1) & (high <= 1).all(1) & (high > low).all(1)
        for organ, fine in zip(self.organs, inside.tolist(), strict=True):
            if not fine:
                raise ValueError(f"the box of {organ} is empty or reaches outside the slice")

    @classmethod
    def from_pixels(
        cls, organs: Sequence[str], boxes: ArrayLike, shape: tuple[int, int]
    ) -> Prompts:
        """From boxes (O, 4) in pixels of a slice of ``shape`` (H, W); clipped to the slice."""
        height, width = shape
        size = np.array((width, height, width, height), np.float32)
        fractions = np.asarray(boxes, np.float32).reshape(-1, 4) / size
        return cls(tuple(organs), torch.from_numpy(fractions.clip(0, 1)), shape)


@runtime_checkable
class Segmenter(Protocol):
    """A model that is given an image and boxes.

    Encoding depends on the image alone, so one encoding serves every prompt. All tensors live
    on ``device``; logits and inputs are float32 whatever ``precision`` the model computes in.
    Who calls decides about autograd: leave it alone, and methods that need gradients work, too.
    ``input_size`` is the longer side of the input in pixels.

    It may have ``layer``, the name of the layer that Grad-CAM takes by default, and ``place(maps,
    shape)``, which cuts maps (B, K, h, w) of such a layer to what a slice of ``shape`` fills, and
    turns them as displayed.
    """

    name: str
    input_size: int
    device: torch.device
    precision: str

    def prepare(self, image: NDArray[np.uint8]) -> Tensor:
        """Slice (H, W) → model input (C, h, w), float32 in 0…1. Done once per slice.

        The input must show the whole slice and nothing else, in the slice's own orientation: it
        is what gets perturbed. Padding and normalisation belong into `encode`.
        """
        ...

    def encode(self, inputs: Tensor) -> Tensor:
        """Inputs (B, C, h, w) → embeddings (B, …)."""
        ...

    def decode(self, embeddings: Tensor, prompts: Prompts) -> Tensor:
        """Embeddings (B, …) and O boxes → float32 logits (B, O, h, w): every image with every box.

        The boxes mean the same place in each of the B images (perturbations of one slice). The
        logits cover the whole slice at any resolution; their sigmoid is the probability that the
        pixel belongs to the organ.
        """
        ...


def decode(segmenter: Segmenter, embeddings: Tensor, prompts: Prompts) -> Tensor:
    """``segmenter.decode``, with the shape of its answer checked.

    Raises:
        ConfigError: it is not (B, O, h, w); segmenters of the user's own come through here.
    """
    logits = segmenter.decode(embeddings, prompts)
    images, organs = len(embeddings), len(prompts.organs)
    if logits.ndim != 4 or logits.shape[:2] != (images, organs):
        raise ConfigError(
            f"segmenter '{segmenter.name}' gave logits of shape {tuple(logits.shape)} for {images} "
            f"images and {organs} organs: decode must give ({images}, {organs}, h, w)."
        )
    return logits.float()


def to_mask(logits: Tensor, shape: tuple[int, int]) -> Tensor:
    """Logits (…, h, w) → bool (…, H, W): sigmoid, bilinear resize, > 0.5 (as MedSAM does)."""
    flat = torch.sigmoid(logits.float()).reshape(-1, 1, *logits.shape[-2:])
    resized = F.interpolate(flat, size=shape, mode="bilinear", align_corners=False)
    return (resized > 0.5).reshape(*logits.shape[:-2], *shape)


def networks_of(holder: object) -> dict[str, nn.Module]:
    """The networks that an object's attributes hold, by attribute; itself, if it is one."""
    if isinstance(holder, nn.Module):
        return {"": holder}
    return {name: one for name, one in vars(holder).items() if isinstance(one, nn.Module)}
