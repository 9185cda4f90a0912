"""What the compact SAM is made of; `compact_sam` trains it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from segment_anything.modeling import (
    ImageEncoderViT,
    MaskDecoder,
    PromptEncoder,
    Sam,
    TwoWayTransformer,
)
from torch import nn

from xaiclip.models.segmenters.encoder import ChannelNorm

CONFIG: dict[str, Any] = {
    "image_size": 256,
    "patch_size": 16,
    "stem": [32, 64, 128],
    "embed_dim": 192,
    "depth": 6,
    "num_heads": 6,
    "mlp_ratio": 3.0,
    "window_size": 0,
    "global_blocks": [],
    "prompt_dim": 128,
    "decoder_depth": 2,
    "decoder_heads": 4,
    "decoder_mlp": 256,
}


def _stem(widths: Sequence[int], out: int) -> nn.Sequential:
    """Strided convolutions in place of the single patch convolution: one halving each."""
    layers: list[nn.Module] = []
    before = 3
    for width in widths:
        layers += [nn.Conv2d(before, width, 3, 2, 1), nn.ReLU(inplace=True)]
        before = width
    return nn.Sequential(*layers, ChannelNorm(before), nn.Conv2d(before, out, 3, 2, 1))


def build(config: Mapping[str, Any] = CONFIG) -> Sam:
    """An untrained compact SAM of segment_anything's modules, with two changes.

    Patches are embedded by a few strided convolutions, which learn far sooner than one of 16 × 16;
    and the decoder's second upscaling is fourfold, so that logits are image_size / 2 wide.
    """
    size, patch, width = config["image_size"], config["patch_size"], config["prompt_dim"]
    if patch != 2 ** (len(config["stem"]) + 1):
        raise ValueError(f"a stem of {len(config['stem'])} widths does not make patches of {patch}")
    grid = size // patch
    sam = Sam(
        image_encoder=ImageEncoderViT(
            img_size=size,
            patch_size=patch,
            embed_dim=config["embed_dim"],
            depth=config["depth"],
            num_heads=config["num_heads"],
            mlp_ratio=config["mlp_ratio"],
            out_chans=width,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
            window_size=config["window_size"],
            global_attn_indexes=tuple(config["global_blocks"]),
        ),
        prompt_encoder=PromptEncoder(
            embed_dim=width,
            image_embedding_size=(grid, grid),
            input_image_size=(size, size),
            mask_in_chans=16,
        ),
        mask_decoder=MaskDecoder(
            num_multimask_outputs=0,
            transformer=TwoWayTransformer(
                depth=config["decoder_depth"],
                embedding_dim=width,
                num_heads=config["decoder_heads"],
                mlp_dim=config["decoder_mlp"],
            ),
            transformer_dim=width,
            # a third of GELU's time on the fine grid
            activation=partial(nn.ReLU, inplace=True),
            iou_head_depth=2,
            iou_head_hidden_dim=width,
        ),
    )
    sam.image_encoder.patch_embed.proj = _stem(config["stem"], config["embed_dim"])
    sam.mask_decoder.output_upscaling[3] = nn.ConvTranspose2d(width // 4, width // 8, 4, 4)
    return sam
