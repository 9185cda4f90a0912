"""A tiny segmenter and the pieces that every test of the explanations needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from xaiclip.explain.engine import ScoreTable
from xaiclip.explain.plan import Context
from xaiclip.explain.runner import Run
from xaiclip.models.segmenters.base import Prompts

ORGANS = ("liver", "spleen")
BOXES = torch.tensor([[0.15, 0.2, 0.55, 0.7], [0.5, 0.4, 0.9, 0.85]])
PROMPTS = Prompts(ORGANS, BOXES)


class FakeSegmenter:
    """Seeded convolutions; sees a neighbourhood and the image's mean, and is drawn to the box."""

    name = "fake"
    dtype = torch.float32
    precision = "fp32"

    def __init__(self, input_size: int = 128) -> None:
        self.input_size = input_size
        self.device = torch.device("cpu")
        self.encoded = 0
        generator = torch.Generator().manual_seed(5)
        self.net = nn.Sequential(
            nn.Conv2d(3, 8, 9, 4, 4), nn.GELU(), nn.Conv2d(8, 8, 5, 1, 2), nn.GELU()
        )
        for parameter in self.net.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2
            parameter.requires_grad_(False)
        self.readout = torch.randn(8, 5, generator=generator)
        self.grey = self.net(torch.full((1, 3, 64, 64), 0.45)).mean((2, 3), keepdim=True)

    def prepare(self, image: np.ndarray) -> Tensor:
        resized = cv2.resize(image.astype(np.float32), (self.input_size, self.input_size))
        return torch.from_numpy((resized - resized.min()) / np.ptp(resized)).expand(3, -1, -1)

    def encode(self, inputs: Tensor) -> Tensor:
        self.encoded += len(inputs)
        features = self.net(inputs) - self.grey
        return features + features.mean((2, 3), keepdim=True)

    def decode(self, embeddings: Tensor, prompts: Prompts) -> Tensor:
        boxes = prompts.boxes
        readout = self.readout @ torch.cat([boxes.clamp(0, 1), torch.ones(len(boxes), 1)], 1).T
        logits = torch.einsum("bchw,co->bohw", embeddings, readout)
        at = (torch.arange(logits.shape[-1]) + 0.5) / logits.shape[-1]
        x0, y0, x1, y1 = boxes.T[..., None]
        rows, columns = (at > y0) & (at < y1), (at > x0) & (at < x1)
        inside = (rows[:, :, None] & columns[:, None, :]).float()
        nowhere = ~inside.any(-1, keepdim=True).any(-2, keepdim=True)
        return 3 * logits + 4 * inside - 3 - 99 * nowhere


def picture(seed: int = 0, shape: tuple[int, int] = (160, 140)) -> np.ndarray:
    """A smooth random slice, uint8 (H, W)."""
    noise = np.random.default_rng(seed).random(shape).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), 6)
    return cv2.normalize(smooth, smooth, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)


def rois() -> np.ndarray:
    """An ROI for each organ: bool (2, 512, 512)."""
    masks = np.zeros((2, 512, 512), dtype=bool)
    masks[0, 120:300, 90:260] = True
    masks[1, 250:400, 270:420] = True
    return masks


def context(guided: bool = False, **changes: Any) -> Context:
    """A slice for the methods; masks and ROIs coincide."""
    known: dict[str, Any] = {
        "image": cv2.resize(picture(), (512, 512)),
        "organs": ORGANS,
        "masks": rois(),
        "rois": rois() if guided else None,
        "seed": 3,
        "settings": {},
    }
    return Context(**{**known, **changes})


def table(scores: np.ndarray, baseline: float | np.ndarray = 1.0) -> ScoreTable:
    """A score table of soft Dice from scores (N, O)."""
    return ScoreTable(
        scores=scores[..., None].astype(np.float32),
        baseline=np.broadcast_to(np.float32(baseline), (scores.shape[1], 1)),
        values=("soft_dice",),
        seconds={"perturb": 0.1, "encode": 1.0, "decode": 0.5, "total": 1.61},
        n_forwards=len(scores),
    )


class LargestTensor(TorchDispatchMode):
    """Watches torch: the number of elements of the largest tensor that was made."""

    numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for one in result if isinstance(result, tuple | list) else [result]:
            if isinstance(one, Tensor):
                self.numel = max(self.numel, one.numel())
        return result


def run_of(
    method: str,
    settings: Mapping[str, Any],
    values: Sequence[str] = ("soft_dice", "in_mask_probability", "hard_dice", "hard_iou"),
    fill: str = "mean",
    batch_size: Any = "auto",
    seed: int = 0,
) -> Run:
    """A `Run` that says what it is about, and no more."""
    return Run(method, settings, values, fill, batch_size, seed)
