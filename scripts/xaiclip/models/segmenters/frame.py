"""A slice of any aspect in the corner of a square input, and the way back."""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from segment_anything.utils.transforms import ResizeLongestSide
from torch import Tensor


def extent(shape: tuple[int, int], size: int) -> tuple[int, int]:
    """(h, w) of a slice (H, W) whose longer side is resized to ``size``; rounded as SAM does."""
    height, width = ResizeLongestSide.get_preprocess_shape(*shape, size)
    return int(height), int(width)


def pad(images: Tensor, size: int) -> Tensor:
    """Images (…, h, w) → (…, size, size), with zeros on the right and below."""
    height, width = images.shape[-2:]
    return F.pad(images, (0, size - width, 0, size - height))


def cut(logits: Tensor, shape: tuple[int, int], size: int) -> Tensor:
    """The part of logits (B, O, g, g) that the slice fills: `pad` undone.

    ``shape`` is the slice's (h, w) in the square of ``size`` pixels that the logits cover. Where
    its edge falls inside a cell, the part is resampled bilinearly.
    """
    if shape == (size, size):
        return logits
    shares = [extent / size for extent in shape]
    # rounded down, so that every sample lies between the centres of two cells
    rows, columns = (
        max(1, int(share * cells + 1e-6))
        for share, cells in zip(shares, logits.shape[-2:], strict=True)
    )
    if shares == [rows / logits.shape[-2], columns / logits.shape[-1]]:  # whole cells
        return logits[..., :rows, :columns]
    where = _corner(*shares, rows, columns, logits.dtype, logits.device)
    where = where.expand(len(logits), -1, -1, -1)
    return F.grid_sample(logits, where, mode="bilinear", align_corners=False)


@lru_cache(maxsize=8)  # a copy to the device for a slice, not for each batch of it
def _corner(
    down: float, right: float, rows: int, columns: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Where `cut` samples: (1, rows, columns, 2)."""
    # kept for gradients, too, which may not pass a tensor of inference mode
    with torch.inference_mode(False), torch.no_grad():
        theta = torch.tensor([[right, 0, right - 1], [0, down, down - 1]], dtype=dtype)
        return F.affine_grid(theta[None].to(device), [1, 1, rows, columns], align_corners=False)
