"""LiteMedSAM (Ma et al. 2024): a TinyViT (Wu et al. 2022) before segment_anything's decoder."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from segment_anything.modeling import MaskDecoder, PromptEncoder, Sam, TwoWayTransformer

# the package first: where it is deferred, a part that is asked for alone would load it half-way
from timm import models as _first  # noqa: F401
from timm.models.tiny_vit import ConvNorm, TinyVit
from torch import Tensor, nn
from torch.nn.utils import fuse_conv_bn_eval

from xaiclip.models.segmenters.encoder import ChannelNorm
from xaiclip.weights import check_size, fill, read_weights

CONFIG: dict[str, Any] = {
    "image_size": 256,
    "widths": (64, 128, 160, 320),
    "depths": (2, 2, 6, 2),
    "heads": (2, 4, 5, 10),
    "windows": (7, 7, 14, 7),
    "prompt_dim": 256,
    "decoder_mlp": 2048,
}


class LiteEncoder(nn.Module):
    """timm's TinyViT, changed as LiteMedSAM has it, and SAM's neck: (B, 3, S, S) → (B, C, g, g).

    Pixels are embedded one by one, not in patches of 4 × 4, and the last stage does not halve its
    grid again: of 256 pixels, 64 × 64 places are left.
    """

    def __init__(self, config: Mapping[str, Any] = CONFIG) -> None:
        super().__init__()
        widths, out = config["widths"], config["prompt_dim"]
        net: Any = TinyVit(  # typed, its parts would be tensors or modules
            num_classes=0,
            embed_dims=widths,
            depths=config["depths"],
            num_heads=config["heads"],
            window_sizes=config["windows"],
            drop_path_rate=0.0,
        )
        net.patch_embed.conv1 = ConvNorm(3, widths[0] // 2)
        net.patch_embed.conv2 = ConvNorm(widths[0] // 2, widths[0])
        net.stages[-1].downsample.conv2.conv.stride = (1, 1)
        self.img_size: int = config["image_size"]
        self.patch_embed: Any = net.patch_embed
        self.stages: Any = net.stages
        self.neck = nn.Sequential(
            nn.Conv2d(widths[-1], out, 1, bias=False),
            ChannelNorm(out),
            nn.Conv2d(out, out, 3, padding=1, bias=False),
            ChannelNorm(out),
        )

    def forward(self, images: Tensor) -> Tensor:
        x: Tensor = self.neck(self.stages(self.patch_embed(images)))
        return x


def build(config: Mapping[str, Any] = CONFIG) -> Sam:
    """An untrained LiteMedSAM."""
    size, width = config["image_size"], config["prompt_dim"]
    grid = size // 4
    return Sam(
        image_encoder=LiteEncoder(config),
        prompt_encoder=PromptEncoder(
            embed_dim=width,
            image_embedding_size=(grid, grid),
            input_image_size=(size, size),
            mask_in_chans=16,
        ),
        mask_decoder=MaskDecoder(
            num_multimask_outputs=3,
            transformer=TwoWayTransformer(
                depth=2, embedding_dim=width, num_heads=8, mlp_dim=config["decoder_mlp"]
            ),
            transformer_dim=width,
            iou_head_depth=3,
            iou_head_hidden_dim=width,
        ),
    )


def load(path: Path) -> Sam:
    """LiteMedSAM with the weights of a file, under the published names.

    Raises:
        ConfigError: see `read_weights` and `fill`.
    """
    sam = build()
    check_size(sam, path)
    fill(sam, renamed(read_weights(path)), path)
    fold_norms(sam.eval().image_encoder)
    return sam


def renamed(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The published file's tensors under the names that they have here."""
    return {_name(name): value for name, value in weights.items()}


def _name(name: str) -> str:
    """The published name of a tensor as timm's."""
    for old, new in (
        (r"^image_encoder\.patch_embed\.seq\.0\.", "image_encoder.patch_embed.conv1."),
        (r"^image_encoder\.patch_embed\.seq\.2\.", "image_encoder.patch_embed.conv2."),
        (r"^(image_encoder\..*)\.c\.", r"\1.conv."),
    ):
        name = re.sub(old, new, name)
    # there each stage but the last ends with a step down; here each but the first begins with it
    return re.sub(
        r"^image_encoder\.layers\.(\d+)\.(downsample\.)?",
        lambda m: f"image_encoder.stages.{int(m[1]) + bool(m[2])}.{m[2] or ''}",
        name,
    )


def fold_norms(module: nn.Module) -> None:
    """Put every batch norm into the convolution before it, in place; for evaluation only."""
    for name, child in module.named_children():
        if isinstance(child, ConvNorm):
            setattr(module, name, fuse_conv_bn_eval(child.conv, child.bn))
        else:
            fold_norms(child)


#: Values held at once by a CPU, so that they stay in its cache.
_HELD = 2**21


def encode_lite(encoder: LiteEncoder, images: Tensor) -> Tensor:
    """Equal to ``encoder(images)`` up to rounding, in less time: (B, 3, S, S) → (B, C, g, g).

    For an encoder without batch norms, see `fold_norms`. Channels come last throughout. A CPU takes
    one image, and few rows of it, at a time: at 256 × 256 places with 256 channels the stock way
    reads and writes each layer's 67 MB from memory. Windows are padded behind the projection to
    queries, keys and values: what stands there is the same for each padded place.
    """
    if images.device.type == "cpu":
        return torch.cat([_encode(encoder, image[None]) for image in images])
    return _encode(encoder, images)


def _encode(encoder: LiteEncoder, images: Tensor) -> Tensor:
    embed = encoder.patch_embed
    x = images.permute(0, 2, 3, 1)
    x = _by_rows(
        lambda some: _pointwise(embed.conv2, F.gelu(_pointwise(embed.conv1, some))),
        x,
        _rows(x, embed.conv2.out_channels),
    )
    for stage in encoder.stages:
        if hasattr(stage, "downsample"):
            x = _bottleneck(stage.downsample, x)
            for block in stage.blocks:
                x = _by_rows(
                    partial(_attend, block), x, _rows(x, 4 * x.shape[3], block.window_size)
                )
                x = block.local_conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
                widest = block.mlp.fc1.out_features
                x = _by_rows(partial(_beside, block.mlp), x, _rows(x, widest))
        else:
            for block in stage.blocks:
                x = _bottleneck(block, x, residual=True)
    embedding: Tensor = encoder.neck(x.permute(0, 3, 1, 2))
    return embedding


def _beside(layer: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return x + layer(x)


def _rows(x: Tensor, channels: int, multiple: int = 1) -> int:
    """Rows of (B, H, W, C) to take at a time, where each place will hold so many channels."""
    if x.device.type != "cpu":
        return x.shape[1]
    return multiple * max(1, _HELD // (len(x) * x.shape[2] * channels * multiple))


def _by_rows(function: Callable[[Tensor], Tensor], x: Tensor, rows: int) -> Tensor:
    """``function`` of (B, H, W, C), some rows at a time."""
    return torch.cat([function(some) for some in x.split(rows, dim=1)], dim=1)


def _pointwise(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """A convolution of 1 × 1 of (B, H, W, C)."""
    return F.linear(x, conv.weight.flatten(1), conv.bias)


def _bottleneck(block: Any, x: Tensor, residual: bool = False) -> Tensor:
    """Widen, convolve each channel in 3 × 3 places, narrow: timm's PatchMerging, or its MBConv.

    (B, H, W, C) → (B, H / stride, W / stride, C').
    """
    conv = block.conv2
    height, stride = x.shape[1], conv.stride[0]
    rows, parts = _rows(x, conv.out_channels, 2), []
    for top in range(0, height, rows):
        end = min(top + rows, height)
        # and the rows above and below, which the convolution reads; beyond the image stand zeros
        above, below = int(top > 0), int(end < height)
        y = F.gelu(_pointwise(block.conv1, x[:, top - above : end + below]))
        if not (above and below):
            y = F.pad(y, (0, 0, 0, 0, 1 - above, 1 - below))
        y = F.conv2d(y.permute(0, 3, 1, 2), conv.weight, conv.bias, stride, (0, 1), 1, conv.groups)
        y = _pointwise(block.conv3, F.gelu(y).permute(0, 2, 3, 1))
        parts.append(F.gelu(y + x[:, top:end]) if residual else y)
    return torch.cat(parts, dim=1)


def _attend(block: Any, x: Tensor) -> Tensor:
    """``x`` and its attention within windows, of whole rows of windows: (B, H, W, C)."""
    attention, side = block.attn, block.window_size
    images, height, width, _ = x.shape
    rows, columns = -(-height // side), -(-width // side)
    qkv = attention.qkv(attention.norm(x))
    if (rows * side, columns * side) != (height, width):
        # a padded place is zero before its norm, and the norm's bias behind it
        padded = attention.qkv(attention.norm.bias).to(qkv)
        padded = padded.repeat(images, rows * side, columns * side, 1)
        padded[:, :height, :width] = qkv
        qkv = padded
    # (B, rows, side, columns, side, heads, 3, d) → (3, B, rows, columns, heads, side · side, d)
    qkv = qkv.view(images, rows, side, columns, side, attention.num_heads, 3, -1)
    q, k, v = qkv.permute(6, 0, 1, 3, 5, 2, 4, 7).flatten(5, 6)
    y = _weigh(q, k, v, attention.get_attention_biases(x.device), attention.scale)
    y = y.unflatten(4, (side, side)).permute(0, 1, 4, 2, 5, 3, 6)
    y = y.reshape(images, rows * side, columns * side, -1)[:, :height, :width]
    return x + attention.proj(y)


def _weigh(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float) -> Tensor:
    """Attention of (B, rows, columns, heads, N, d); ``bias`` (heads, N, N) joins the products."""
    if q.device.type != "cpu":
        windows = q.shape[:3]
        q, k, v = (one.flatten(0, 2) for one in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype), scale=scale)
        return y.unflatten(0, windows)
    # torch's fused kernel takes half as long again for windows as small as these
    weights = (q * scale) @ k.transpose(-2, -1)
    return weights.add_(bias).softmax(-1) @ v
