"""The untrained compact CLIP, and its patches as tokens in the space of the words."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from open_clip.model import CLIP
from torch import Tensor

VOCABULARY = "bpe_abdomen.txt.gz"

#: ``clip.json``: the layout of open_clip's own ``open_clip_config.json``.
CONFIG: Mapping[str, Any] = {
    "model_cfg": {
        "embed_dim": 128,
        "vision_cfg": {
            "image_size": 224,
            "patch_size": 14,
            "width": 192,
            "head_width": 64,
            "layers": 6,
            "mlp_ratio": 3.0,
            "pool_type": "avg",
            "pos_embed_type": "sin_cos_2d",
        },
        "text_cfg": {
            "context_length": 48,
            "vocab_size": 0,  # known once the vocabulary is written
            "width": 128,
            "heads": 4,
            "layers": 2,
            "tokenizer_kwargs": {"bpe_path": VOCABULARY},
        },
    },
    "preprocess_cfg": {"mean": [0.25, 0.25, 0.25], "std": [0.3, 0.3, 0.3]},
}


def encode_patches(model: CLIP, images: Tensor, keep: Tensor | None = None) -> Tensor:
    """Projected patch tokens (B, K, D) whose mean is ``model.encode_image(images)``.

    ``keep`` (B, K) are the patches to look at; None for all of them.
    """
    visual = model.visual
    x = visual._embeds(images)
    if keep is not None:
        patches = x[:, 1:].gather(1, keep[..., None].expand(-1, -1, x.shape[2]))
        x = torch.cat([x[:, :1], patches], 1)
    return visual.ln_post(visual.transformer(x))[:, 1:] @ visual.proj


def to_inputs(images: NDArray[np.uint8], device: torch.device | str = "cpu") -> Tensor:
    """uint8 (B, S, S) → normalised float32 (B, 3, S, S) on ``device``."""
    norm = CONFIG["preprocess_cfg"]
    x = (
        torch.from_numpy(images)
        .to(device)
        .float()
        .div(255)
        .sub(norm["mean"][0])
        .div(norm["std"][0])
    )
    return x[:, None].expand(-1, 3, -1, -1)


def region_loss(tokens: Tensor, share: Tensor, names: Tensor, scale: Tensor) -> Tensor:
    """Contrast every patch with the names of all regions: softmax cross-entropy.

    tokens (B, K, D), share (B, K, C) of each patch that a region fills, which is the target,
    names (C, D) unit vectors. A region weighs with the root of its area, so that small organs are
    learnt and large ones stay precise.
    """
    chances = (scale * F.normalize(tokens, dim=-1) @ names.T).log_softmax(-1)
    weight = share * share.sum((0, 1)).clamp(min=1).rsqrt()
    return -(weight * chances).sum() / weight.sum()


def build(vocab_size: int) -> CLIP:
    """The untrained model, float32."""
    model_cfg = json.loads(json.dumps(CONFIG["model_cfg"]))
    model_cfg["text_cfg"]["vocab_size"] = vocab_size
    return CLIP(**model_cfg)
