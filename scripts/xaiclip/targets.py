"""What is explained: a model's answer to one slice as numbers, one for each target and value.

Methods, engine, runner and metrics see a `Scorer` alone. Another kind of model is one more class of
this file; `scorer_type` says which kind takes which model.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Protocol, Self, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from xaiclip.clock import Clock
from xaiclip.explain.attribution import GRID
from xaiclip.explain.values import FLAT, THRESHOLD, VALUES
from xaiclip.models.segmenters.base import Prompts, Segmenter, decode, networks_of, to_mask
from xaiclip.models.segmenters.predict import plain_slice


class Model(Protocol):
    """What a model of any kind has: where it runs, and its input's longer side in pixels."""

    device: torch.device
    input_size: int


class Scorer(ABC):
    """Images (B, C, h, w) → scores float32 (B, T, V) of T targets under V value functions.

    It belongs to one slice and holds what the scores are measured against. Gradients flow from the
    scores to the images where autograd is on; under ``torch.inference_mode`` nothing is kept.

    Attributes:
        targets: names of what is explained: organs, or classes.
        values: names of the value functions.
        inputs: float32 (C, h, w) on the model's device, the unperturbed slice as the model takes
            it: this is what gets perturbed.
        n_forwards: images that went through the model.
        n_backwards, n_backwards_to_input: gradients of an image that left the scores, and those of
            them that went as far as the image itself. All three are counted as they are made.
        flat: value functions that have no gradient to speak of.
        layer: the layer that Grad-CAM takes where it is told none, as `layers` has it.
    """

    flat: tuple[str, ...] = ()
    layer: str | None = None

    def __init__(self, targets: Sequence[str], values: Sequence[str], inputs: Tensor) -> None:
        self.targets, self.values, self.inputs = tuple(targets), tuple(values), inputs
        self.n_forwards = self.n_backwards = self.n_backwards_to_input = 0

    @property
    def device(self) -> torch.device:
        """Where the model runs."""
        return self.inputs.device

    def __call__(self, images: Tensor, clock: Clock | None = None) -> Tensor:
        """Score images that lie on the model's device; the phases go to the clock."""
        scores = self.score(images, clock or Clock(self.device))
        self.n_forwards += len(images)
        if scores.requires_grad:
            scores.register_hook(self._left)
        if images.requires_grad:
            images.register_hook(self._arrived)
        return scores

    def _left(self, gradient: Tensor) -> None:
        self.n_backwards += len(gradient)

    def _arrived(self, gradient: Tensor) -> None:
        self.n_backwards_to_input += len(gradient)

    def layers(self) -> dict[str, nn.Module]:
        """The layers of the model, by name."""
        return {}

    def place(self, maps: Tensor) -> Tensor:
        """Maps (…, h, w) over the model's own frame as maps over the whole slice, as displayed."""
        return maps

    @abstractmethod
    def score(self, images: Tensor, clock: Clock) -> Tensor:
        """(B, C, h, w) → (B, T, V); seconds go to ``encode`` and ``decode``."""

    @property
    @abstractmethod
    def baseline(self) -> Tensor:
        """Scores of the unperturbed slice: float32 (T, V)."""

    @property
    @abstractmethod
    def masks(self) -> NDArray[np.bool_]:
        """Where each target lies in the unperturbed slice: bool (T, 512, 512).

        Nowhere, for a target that has no place in the image.
        """

    @abstractmethod
    def refused(self) -> dict[str, str]:
        """The targets that cannot be explained in this slice, each with the reason."""

    @abstractmethod
    def select(self, chosen: NDArray[np.bool_]) -> Self:
        """The same with some of the targets: bool (T,). It counts anew."""

    @classmethod
    @abstractmethod
    def of_slice(
        cls,
        model: Any,
        image: NDArray[np.uint8],
        prompts: Mapping[str, Any],
        values: Sequence[str],
        clock: Clock | None = None,
    ) -> Self:
        """Ask a model about a slice.

        Args:
            model: of the kind that this scorer takes.
            image: uint8 (H, W).
            prompts: by target, what the model needs to be asked for it.
            values: names of value functions.
            clock: for the seconds of what is done here.
        """

    @classmethod
    def plain(
        cls, prompts: Mapping[str, Any]
    ) -> tuple[NDArray[np.uint8], NDArray[np.bool_], dict[str, Any]]:
        """A slice that any model should take, for the same targets.

        Returns:
            Its image, uint8 (H, W); where it shows something, bool (H, W); and its prompts.
        """
        image, shown, _ = plain_slice()
        return image, shown, dict(prompts)


class SegmenterScorer(Scorer):
    """A promptable segmenter's masks: targets are organs, values those of `explain.values`.

    Each image is encoded once and decoded for all organs in one call; the scores compare what comes
    out with the segmentation of the unperturbed slice, which is made here: one forward.

    Args:
        segmenter: the model.
        prompts: the organs and their boxes.
        inputs: float32 (C, h, w), what ``segmenter.prepare`` gave.
        values: names of `VALUES`.
        clock: for the seconds of the unperturbed forward.
        logits: float32 (T, h, w), the unperturbed segmentation, where it is known.
    """

    def __init__(
        self,
        segmenter: Segmenter,
        prompts: Prompts,
        inputs: Tensor,
        values: Sequence[str] = ("soft_dice",),
        clock: Clock | None = None,
        *,
        logits: Tensor | None = None,
    ) -> None:
        self.flat = FLAT
        self.layer = getattr(segmenter, "layer", None)
        super().__init__(prompts.organs, values, inputs.to(segmenter.device))
        self.segmenter, self.prompts = segmenter, prompts
        # not inference_mode, whose tensors no gradient may pass
        with torch.no_grad():
            if logits is None:
                logits = self._logits(self.inputs[None], clock or Clock(self.device))[0]
                self.n_forwards = 1
            self.logits = logits
            self.mask = (logits.sigmoid() > THRESHOLD).float()

    def score(self, images: Tensor, clock: Clock) -> Tensor:
        logits = self._logits(images, clock)
        with clock("decode"):
            return self._values(logits.sigmoid())

    def _logits(self, images: Tensor, clock: Clock) -> Tensor:
        with clock("encode"):
            embeddings = self.segmenter.encode(images)
        with clock("decode"):
            return decode(self.segmenter, embeddings, self.prompts)

    def _values(self, probability: Tensor) -> Tensor:
        return torch.stack([VALUES[name](probability, self.mask) for name in self.values], dim=-1)

    def layers(self) -> dict[str, nn.Module]:
        networks = networks_of(self.segmenter)
        return {
            f"{prefix}{name}": module
            for attribute, network in networks.items()
            for prefix in ["" if len(networks) == 1 else f"{attribute}."]
            for name, module in network.named_modules()
            if name
        }

    def place(self, maps: Tensor) -> Tensor:
        place = getattr(self.segmenter, "place", None)
        return place(maps, self.prompts.shape) if place else maps

    @cached_property
    def baseline(self) -> Tensor:
        with torch.no_grad():
            return self._values(self.logits.sigmoid()[None])[0]

    @cached_property
    def masks(self) -> NDArray[np.bool_]:
        return to_mask(self.logits, (GRID, GRID)).cpu().numpy()

    def refused(self) -> dict[str, str]:
        there = self.masks.any((1, 2)) & self.mask.flatten(1).any(1).cpu().numpy()
        return {
            organ: "the unperturbed segmentation is empty"
            for organ, one in zip(self.targets, there, strict=True)
            if not one
        }

    def select(self, chosen: NDArray[np.bool_]) -> Self:
        at = torch.from_numpy(np.flatnonzero(chosen))
        organs = tuple(self.targets[i] for i in at.tolist())
        prompts = Prompts(organs, self.prompts.boxes[at], self.prompts.shape)
        logits = self.logits[at.to(self.logits.device)]
        return type(self)(self.segmenter, prompts, self.inputs, self.values, logits=logits)

    @classmethod
    def of_slice(
        cls,
        model: Segmenter,
        image: NDArray[np.uint8],
        prompts: Mapping[str, NDArray[np.floating[Any]]],
        values: Sequence[str],
        clock: Clock | None = None,
    ) -> Self:
        """``prompts`` are boxes, float (4,) XYXY in pixels of the slice."""
        clock = clock or Clock(model.device)
        with clock("encode"):
            inputs = model.prepare(image)
        height, width = image.shape
        boxes = Prompts.from_pixels(list(prompts), np.stack([*prompts.values()]), (height, width))
        return cls(model, boxes, inputs, values, clock)

    @classmethod
    def plain(
        cls, prompts: Mapping[str, Any]
    ) -> tuple[NDArray[np.uint8], NDArray[np.bool_], dict[str, Any]]:
        image, shown, box = plain_slice()
        return image, shown, dict.fromkeys(prompts, box)


def scorer_type(model: Model) -> type[Scorer]:
    """The kind of scorer that takes a model.

    Raises:
        TypeError: nothing here knows what to ask it.
    """
    own = getattr(model, "scorer", None)  # a model of a kind of its own brings it
    if own is not None:
        return cast(type[Scorer], own)
    if isinstance(model, Segmenter):
        return SegmenterScorer
    raise TypeError(f"{type(model).__name__} is no segmenter: nothing is known to explain of it")
