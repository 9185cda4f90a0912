"""What several tests of segmenters use."""

from functools import partial

import numpy as np
import torch
from segment_anything.modeling import (
    ImageEncoderViT,
    MaskDecoder,
    PromptEncoder,
    Sam,
    TwoWayTransformer,
)
from torch import nn

from xaiclip.models.segmenters.base import Prompts


def tiny(patch: int = 16) -> Sam:
    """segment_anything's own structure (relative positions, windows, three masks), small."""
    return Sam(
        ImageEncoderViT(
            img_size=64,
            patch_size=patch,
            embed_dim=32,
            depth=2,
            num_heads=2,
            out_chans=32,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
            use_rel_pos=True,
            window_size=3,
            global_attn_indexes=(1,),
        ),
        PromptEncoder(32, (64 // patch,) * 2, (64, 64), mask_in_chans=16),
        MaskDecoder(
            num_multimask_outputs=3,
            transformer=TwoWayTransformer(2, 32, 4, 64),
            transformer_dim=32,
            iou_head_depth=3,
            iou_head_hidden_dim=32,
        ),
    )


def some_prompts(organs: int, seed: int = 0) -> Prompts:
    rng = np.random.default_rng(seed)
    low, extent = rng.uniform(0, 0.5, (organs, 2)), rng.uniform(0.1, 0.5, (organs, 2))
    boxes = torch.from_numpy(np.concatenate([low, low + extent], 1).astype(np.float32))
    return Prompts(tuple(f"organ {i}" for i in range(organs)), boxes)
