"""The Segment Anything family (Kirillov et al. 2023; MedSAM, Ma et al. 2024) as a `Segmenter`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from segment_anything.modeling import Sam
from segment_anything.utils.transforms import ResizeLongestSide
from torch import Tensor, nn

from xaiclip.device import PRECISIONS, autocast, bring
from xaiclip.errors import ConfigError
from xaiclip.models.segmenters.base import Prompts
from xaiclip.models.segmenters.decoder import decode_pairs
from xaiclip.models.segmenters.encoder import encode_images
from xaiclip.models.segmenters.frame import cut, extent, pad


def fit_input(image: NDArray[np.uint8], size: int) -> Tensor:
    """MedSAM's input: resized to size × size whatever the aspect, then min–max; (size, size).

    The resize is bicubic and antialiased. A constant image becomes zeros.
    """
    grey = torch.from_numpy(np.ascontiguousarray(image)).float()[None, None]
    grey = F.interpolate(grey, (size, size), mode="bicubic", align_corners=False, antialias=True)
    return _stretched(grey.clamp(0, 255)[0, 0])


def fit_longest_side(image: NDArray[np.uint8], size: int) -> Tensor:
    """LiteMedSAM's input: the longer side resized to ``size``, then min–max; (h, w) of its aspect.

    The resize is OpenCV's area interpolation. A constant image becomes zeros.
    """
    height, width = extent((image.shape[0], image.shape[1]), size)
    resized = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    return _stretched(torch.from_numpy(resized).float())


def _stretched(grey: Tensor) -> Tensor:
    low, high = grey.min(), grey.max()
    # MedSAM floors the range at 1e-8, which would blow rounding noise of a flat image up to 0…1
    return (grey - low) / (high - low) if high - low > 1e-3 else torch.zeros_like(grey)


class SamSegmenter:
    """A `Segmenter` over any of segment_anything's models.

    ``stock`` prepares the slice as segment_anything's own predictor does: the longer side resized,
    SAM's mean and deviation, zeros on the right and below. MedSAM and the compact model were
    trained without; see `fit_input`. ``keep_aspect``: as LiteMedSAM was trained, see
    `fit_longest_side`; with the zeros, without mean and deviation. ``box_masks``: give boxes as
    mask prompts too, for a model that was trained so. ``attention``: ``fast``, the encoder runs by
    ``encode``, a function of encoder and images (by default `encode_images`); or ``stock``, by its
    own modules. It computes in ``precision``; the decoder, a small part of the time, in float32:
    its rounding would move the scores more than the encoder's. ``sam`` is taken over, and changed.
    Where the input asks for a gradient, the encoder's own modules run, whatever ``attention`` says:
    a faster way would keep as much for the backward, and pass their hooks by.
    """

    layer = "image_encoder.neck"

    def __init__(
        self,
        sam: Sam,
        name: str,
        *,
        device: torch.device | str = "cpu",
        precision: str = "fp32",
        stock: bool = False,
        keep_aspect: bool = False,
        box_masks: bool = False,
        attention: str = "fast",
        encode: Callable[[Any, Tensor], Tensor] | None = None,
    ) -> None:
        if attention not in ("fast", "stock"):
            raise ConfigError(f"segmenter.attention '{attention}' is unknown: use fast or stock.")
        self.sam = sam.to(device).eval().requires_grad_(False)
        self.name = name
        self.device = torch.device(device)
        self.precision = precision
        self.stock = stock
        self.keep_aspect = keep_aspect
        self.box_masks = box_masks
        self.attention = attention
        self._encode_fast = encode
        self.input_size: int = sam.image_encoder.img_size
        if precision != "fp32":  # autocast would round them anew for each batch
            for module in sam.image_encoder.modules():
                if isinstance(module, nn.Linear | nn.Conv2d):
                    module.to(PRECISIONS[precision])

    def prepare(self, image: NDArray[np.uint8]) -> Tensor:
        """Slice uint8 (H, W) → float32 in 0…1, (3, S, S), or (3, h, w) of its aspect."""
        if self.stock:
            colours = np.repeat(image[..., None], 3, axis=2)
            resized = ResizeLongestSide(self.input_size).apply_image(colours)
            grey = torch.from_numpy(resized[..., 0]).float() / 255
        else:
            grey = (fit_longest_side if self.keep_aspect else fit_input)(image, self.input_size)
        return grey.expand(3, -1, -1).contiguous().to(self.device)

    def encode(self, inputs: Tensor) -> Tensor:
        """What `prepare` gave, (B, 3, h, w), → float32 (B, C, g, g)."""
        if self.stock:
            inputs = (inputs * 255 - self.sam.pixel_mean) / self.sam.pixel_std
        if self.stock or self.keep_aspect:
            inputs = pad(inputs, self.input_size)
        encoder = self.sam.image_encoder
        with autocast(self.device, self.precision):
            stock = self.attention == "stock" or (torch.is_grad_enabled() and inputs.requires_grad)
            fast = self._encode_fast or encode_images
            return (encoder(inputs) if stock else fast(encoder, inputs)).float()

    def decode(self, embeddings: Tensor, prompts: Prompts) -> Tensor:
        """(B, C, g, g) and O boxes → float32 logits (B, O, 4g, 4g), less what was padded."""
        height, width = self._filled(prompts.shape)
        boxes = prompts.boxes * torch.tensor([width, height, width, height])
        boxes = bring(boxes, self.device)[None]
        with autocast(self.device, "fp32"):
            logits = decode_pairs(self.sam, embeddings, boxes, as_masks=self.box_masks)
        return self.place(logits, prompts.shape)

    def place(self, maps: Tensor, shape: tuple[int, int]) -> Tensor:
        """What a slice of ``shape`` fills of maps (B, K, g, g) over the square input."""
        return cut(maps, self._filled(shape), self.input_size)

    def _filled(self, shape: tuple[int, int]) -> tuple[int, int]:
        size = self.input_size
        return extent(shape, size) if self.stock or self.keep_aspect else (size, size)
