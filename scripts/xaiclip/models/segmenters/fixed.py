"""A network with fixed classes as a `Segmenter`: an organ is a channel, and boxes are not read."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from xaiclip.device import autocast
from xaiclip.errors import ConfigError
from xaiclip.models.segmenters.base import Prompts
from xaiclip.models.segmenters.frame import cut, extent, pad

_log = logging.getLogger(__name__)

#: Logit of an organ that the network does not know: its segmentation is empty.
_UNKNOWN = -30.0


class FixedClassSegmenter:
    """A `Segmenter` over any network from images to class logits.

    One encoding is the whole forward; decoding picks the organ's channel. An organ that is not in
    ``channels`` gets an empty segmentation, and so stands in the list of what was left out.

    Args:
        module: images (B, C, S, S) → class logits (B, K, h, w); with ``depth``, a stack of equal
            slices (B, C, S, S, D) → (B, K, h, w, d). A list (deep supervision) counts by its
            first entry, a dictionary by its entry ``out``.
        channels: output channel of each organ, from 0, or several that are one organ together.
        size: S, the side of the network's input in pixels.
        in_channels: C; the grey slice is repeated.
        mean: subtracted from the input in 0…1 before the network sees it; one number or C.
        std: divides it afterwards.
        output: ``softmax``, classes exclude each other; ``sigmoid``, each channel by itself.
        depth: D, for a network that was trained on volumes: the slice is repeated D times and the
            middle plane of the answer taken; 0, it takes images.
        depth_axis: ``last``, stacks are (…, H, W, D), as MONAI has them; ``first``, (…, D, H, W).
        orientation: ``display``, rows run from anterior to posterior and columns from the
            patient's right to left, as in this project and in arrays of LPS order (nnU-Net);
            ``ras``, the first image axis runs to the patient's right and the second one to
            anterior, as after MONAI's ``Orientation(axcodes="RAS")``.
        keep_aspect: resize the longer side to S and pad with zeros, after mean and deviation, on
            the right and below; else the slice is stretched to the square.
        name: for the record.
        device: where it runs.
        precision: in which it computes.
    """

    def __init__(
        self,
        module: nn.Module,
        channels: Mapping[str, int | Sequence[int]],
        *,
        size: int = 256,
        in_channels: int = 1,
        mean: float | Sequence[float] = 0.0,
        std: float | Sequence[float] = 1.0,
        output: Literal["softmax", "sigmoid"] = "softmax",
        depth: int = 0,
        depth_axis: Literal["first", "last"] = "last",
        orientation: Literal["display", "ras"] = "display",
        keep_aspect: bool = False,
        name: str = "fixed-class",
        device: torch.device | str = "cpu",
        precision: str = "fp32",
    ) -> None:
        for option, value, allowed in (
            ("output", output, ("softmax", "sigmoid")),
            ("depth_axis", depth_axis, ("first", "last")),
            ("orientation", orientation, ("display", "ras")),
        ):
            if value not in allowed:
                raise ConfigError(f"{option} is '{value}': use {' or '.join(allowed)}.")
        if not channels:
            raise ConfigError("channels is empty: give the output channel of each organ.")
        self.module = module.to(device).eval().requires_grad_(False)
        self.channels = {
            organ: [found] if isinstance(found, int) else list(found)
            for organ, found in channels.items()
        }
        self.name, self.input_size = name, size
        self.device, self.precision = torch.device(device), precision
        self.in_channels = in_channels
        self.mean, self.std = (
            torch.as_tensor(value, dtype=torch.float32, device=device).reshape(1, -1, 1, 1)
            for value in (mean, std)
        )
        self.output, self.depth, self.depth_axis = output, depth, depth_axis
        self.orientation, self.keep_aspect = orientation, keep_aspect
        self._remarked: set[str] = set()

    def prepare(self, image: NDArray[np.uint8]) -> Tensor:
        """Slice uint8 (H, W) → (C, h, w) float32 in 0…1, bilinear and antialiased."""
        size = self.input_size
        height, width = image.shape
        shape = extent((height, width), size) if self.keep_aspect else (size, size)
        grey = torch.from_numpy(np.ascontiguousarray(image)).float()[None, None] / 255
        grey = F.interpolate(grey, shape, mode="bilinear", align_corners=False, antialias=True)
        return grey[0].clamp(0, 1).expand(self.in_channels, -1, -1).contiguous().to(self.device)

    def encode(self, inputs: Tensor) -> Tensor:
        """What `prepare` gave, (B, C, h, w), → class logits float32 (B, K, h', w') as they come."""
        x = pad((inputs - self.mean) / self.std, self.input_size)
        if self.orientation == "ras":
            x = _turn(x)
        axis = -1 if self.depth_axis == "last" else 2
        if self.depth:
            x = x.unsqueeze(axis)
            shape = list(x.shape)
            shape[axis] = self.depth
            x = x.expand(shape)
        with autocast(self.device, self.precision):
            found = _tensor(self.module(x.contiguous()), self.name)
        if self.depth and found.ndim == 5:
            found = found.select(axis, found.shape[axis] // 2)
        highest = max(max(one) for one in self.channels.values())
        if found.ndim != 4 or len(found) != len(inputs) or found.shape[1] <= highest:
            raise ConfigError(
                f"segmenter '{self.name}' gave {tuple(found.shape)} for {len(inputs)} images: it "
                f"must give (B, K, h, w) class logits with more than {highest} channels."
            )
        return found.float()

    def decode(self, embeddings: Tensor, prompts: Prompts) -> Tensor:
        """Class logits (B, K, h', w') → float32 logits (B, O, h, w); only the organs count."""
        logits = torch.stack([self._organ(embeddings, organ) for organ in prompts.organs], dim=1)
        return self.place(logits, prompts.shape)

    def place(self, maps: Tensor, shape: tuple[int, int]) -> Tensor:
        """What a slice of ``shape`` fills of the network's maps (B, K, h, w), as displayed."""
        if self.orientation == "ras":
            maps = _turn(maps)
        if self.keep_aspect:
            maps = cut(maps, extent(shape, self.input_size), self.input_size)
        return maps

    def _organ(self, classes: Tensor, organ: str) -> Tensor:
        """Logit of the organ's probability: (B, h, w)."""
        own = self.channels.get(organ)
        if own is None:
            if organ not in self._remarked:
                _log.warning("segmenter '%s' has no channel for %s", self.name, organ)
                self._remarked.add(organ)
            return torch.full_like(classes[:, 0], _UNKNOWN)
        if self.output == "sigmoid":
            return classes[:, own].amax(1)
        others = [k for k in range(classes.shape[1]) if k not in own]
        # log p − log(1 − p) of the softmax, without computing p
        return classes[:, own].logsumexp(1) - classes[:, others].logsumexp(1)


def _turn(x: Tensor) -> Tensor:
    """(…, H, W) as displayed ↔ (…, X, Y) to the right and to anterior; its own inverse."""
    return x.transpose(-1, -2).flip(-1, -2)


def _tensor(answer: Any, name: str) -> Tensor:
    """The logits in what a network returned."""
    if isinstance(answer, Mapping) and "out" in answer:
        answer = answer["out"]
    elif isinstance(answer, list | tuple) and answer:
        answer = answer[0]
    if not isinstance(answer, Tensor):
        raise ConfigError(
            f"segmenter '{name}' returned {type(answer).__name__}: it must return class logits as "
            "one tensor, a list that begins with it, or a dictionary with 'out'."
        )
    return answer
