"""segment_anything's image encoder: the same numbers from the same weights, in less time.

The stock attention writes every query–key product of every head to memory (at 1024 pixels
12 × 4096² of them in a layer), adds relative positions in a second pass, and normalises in a third.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from segment_anything.modeling import ImageEncoderViT
from segment_anything.modeling.common import LayerNorm2d
from segment_anything.modeling.image_encoder import (
    Attention,
    get_rel_pos,
    window_partition,
    window_unpartition,
)
from torch import Tensor

# positions' values held at once: 16 MB in float32 on a CPU, for its caches; a GPU wants large calls
_BIAS, _BIAS_GPU = 2**22, 2**27


class ChannelNorm(LayerNorm2d):
    """A LayerNorm2d that reads its (B, C, H, W) once."""

    def forward(self, x: Tensor) -> Tensor:
        return normalise_channels(self, x)


def normalise_channels(norm: LayerNorm2d, x: Tensor) -> Tensor:
    """Equal to ``norm(x)`` for (B, C, H, W); without a copy where channels are last in memory."""
    x = x.permute(0, 2, 3, 1)
    return F.layer_norm(x, x.shape[-1:], norm.weight, norm.bias, norm.eps).permute(0, 3, 1, 2)


def encode_images(encoder: ImageEncoderViT, images: Tensor) -> Tensor:
    """Equal to ``encoder(images)`` up to rounding: (B, 3, S, S) → (B, C, g, g)."""
    x = encoder.patch_embed(images.contiguous(memory_format=torch.channels_last))
    if encoder.pos_embed is not None:
        x = x + encoder.pos_embed
    for block in encoder.blocks:
        y = block.norm1(x)
        if block.window_size:
            windows, padded = window_partition(y, block.window_size)
            windows = attend(block.attn, windows)
            y = window_unpartition(windows, block.window_size, padded, x.shape[1:3])
        else:
            y = attend(block.attn, y)
        x = x + y
        x = x + block.mlp(block.norm2(x))
    narrow, norm, smooth, last = encoder.neck
    x = normalise_channels(norm, narrow(x.permute(0, 3, 1, 2)))
    return normalise_channels(last, smooth(x))


def attend(attention: Attention, x: Tensor) -> Tensor:
    """Equal to ``attention(x)`` up to rounding: (B, H, W, C) → (B, H, W, C)."""
    images, height, width, _ = x.shape
    q, k, v = (
        attention.qkv(x)
        .view(images, height * width, 3, attention.num_heads, -1)
        .permute(2, 0, 3, 1, 4)
    )
    if not attention.use_rel_pos:
        y = F.scaled_dot_product_attention(q, k, v)
    else:
        y = _attend_with_positions(attention, q, k, v, (height, width))
    return attention.proj(y.transpose(1, 2).reshape(x.shape))


def _attend_with_positions(
    attention: Attention, q: Tensor, k: Tensor, v: Tensor, grid: tuple[int, int]
) -> Tensor:
    """Attention (B, heads, H·W, d) whose bias is drawn for some query rows at a time."""
    height, width = grid
    with q.device:  # it looks its tables up by indices, which a GPU would wait for
        rows = get_rel_pos(height, height, attention.rel_pos_h).to(q)  # (H, H, d)
        columns = get_rel_pos(width, width, attention.rel_pos_w).to(q)
    at = q.unflatten(2, grid)
    held = _BIAS if q.is_cpu else _BIAS_GPU
    step = max(1, held // (q.shape[0] * q.shape[1] * width * k.shape[2]))
    parts = []
    for top in range(0, height, step):
        some = at[:, :, top : top + step]
        bias = (
            (
                torch.einsum("bnhwc,hkc->bnhwk", some, rows[top : top + step])[..., None]
                + torch.einsum("bnhwc,wkc->bnhwk", some, columns)[..., None, :]
            )
            .flatten(4)
            .flatten(2, 3)
        )
        parts.append(F.scaled_dot_product_attention(some.flatten(2, 3), k, v, attn_mask=bias))
    return torch.cat(parts, dim=2)
