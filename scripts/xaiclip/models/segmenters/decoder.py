"""segment_anything's prompt encoder and mask decoder for every image with every box."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from segment_anything.modeling import Sam
from segment_anything.modeling.transformer import Attention, TwoWayTransformer
from torch import Tensor


def box_masks(boxes: Tensor, size: int, side: int) -> Tensor:
    """Boxes (N, 4) in pixels of 0…size as mask prompts (N, 1, side, side).

    Each value is the share of its cell that the box covers.
    """
    edges = torch.arange(side + 1, device=boxes.device, dtype=boxes.dtype)
    low, high = (boxes.float() * (side / size)).unflatten(-1, (2, 2)).unbind(-2)
    covered = torch.minimum(high[..., None], edges[1:]) - torch.maximum(low[..., None], edges[:-1])
    x, y = covered.clamp(0, 1).unbind(-2)
    return (y[:, None, :, None] * x[:, None, None, :]).to(boxes.dtype)


def decode_pairs(sam: Sam, embeddings: Tensor, boxes: Tensor, *, as_masks: bool = False) -> Tensor:
    """Mask logits (B, O, h, w) of image b with its box o.

    ``embeddings`` is (B, C, g, g); ``boxes`` (B, O, 4) in pixels of the model's input, or (1, O, 4)
    where all images have the same; ``as_masks`` gives each box a second time, as a mask prompt.

    Equal to ``sam.prompt_encoder`` and ``sam.mask_decoder``, ``multimask_output=False``, for each
    pair, up to rounding. That decoder repeats *every* embedding for *every* box it gets and then
    pairs them by position, computes three masks that nobody reads, and the masks' quality; this
    does the wanted pairs only. And as there are a handful of tokens but hundreds of places, what
    the stock decoder projects at each place is here projected at each token, which is the same by
    associativity.
    """
    images, organs = len(embeddings), boxes.shape[1]
    prompts, decoder = sam.prompt_encoder, sam.mask_decoder
    flat = boxes.flatten(0, 1)
    masks = None
    if as_masks:
        masks = box_masks(flat, prompts.input_image_size[0], prompts.mask_input_size[0])
    sparse, dense = prompts(points=None, boxes=flat, masks=masks)
    own = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
    tokens = torch.cat([own.expand(len(sparse), -1, -1), sparse], dim=1)
    tokens = tokens.unflatten(0, (-1, organs)).expand(images, -1, -1, -1).flatten(0, 1)
    places = embeddings.flatten(2).transpose(1, 2)[:, None]
    places = (places + dense.flatten(2).transpose(1, 2).unflatten(0, (-1, organs))).flatten(0, 1)
    positions = prompts.get_dense_pe().flatten(2).transpose(1, 2)
    out, places = _transform(decoder.transformer, tokens, places, positions)
    # token 0 is the quality's, token 1 the single mask's
    kernels = decoder.output_hypernetworks_mlps[0](out[:, 1])
    logits = _upscale(decoder.output_upscaling, places, kernels, embeddings.shape[-1])
    return logits.float().unflatten(0, (images, organs))


def _transform(
    transformer: TwoWayTransformer, tokens: Tensor, places: Tensor, positions: Tensor
) -> tuple[Tensor, Tensor]:
    """``TwoWayTransformer`` for tokens (P, T, C) and places (P, n, C) at positions (1, n, C)."""
    first = tokens
    for layer in transformer.layers:
        if layer.skip_first_layer_pe:
            tokens = layer.self_attn(q=tokens, k=tokens, v=tokens)
        else:
            q = tokens + first
            tokens = tokens + layer.self_attn(q=q, k=q, v=tokens)
        tokens = layer.norm1(tokens)
        placed = places + positions
        read = _read(layer.cross_attn_token_to_image, tokens + first, placed, places)
        tokens = layer.norm2(tokens + read)
        tokens = layer.norm3(tokens + layer.mlp(tokens))
        places = layer.norm4(
            _write(layer.cross_attn_image_to_token, places, placed, tokens + first, tokens)
        )
    last = transformer.final_attn_token_to_image
    tokens = tokens + _read(last, tokens + first, places + positions, places)
    return transformer.norm_final_attn(tokens), places


def _read(attention: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """``attention(q, k, v)`` of few queries (P, T, C) to many keys (P, n, C)."""
    heads = attention.num_heads
    # the keys' bias adds the same to a query's every product: the softmax does not see it
    queries = _into(attention.q_proj(q), attention.k_proj.weight, heads)
    weights = (queries @ k.transpose(1, 2)).softmax(-1)
    seen = (weights @ v).unflatten(1, (-1, heads))  # (P, T, heads, C)
    values = torch.einsum("pthc,hdc->pthd", seen, _by_head(attention.v_proj.weight, heads))
    return attention.out_proj(values.flatten(2) + attention.v_proj.bias)


def _write(attention: Attention, onto: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """``onto + attention(q, k, v)`` of many queries (P, n, C) to few keys (P, T, C)."""
    heads = attention.num_heads
    k, v = attention.k_proj(k), attention.v_proj(v)
    keys = _into(k, attention.q_proj.weight, heads)
    bias = (k.unflatten(-1, (heads, -1)) * attention.q_proj.bias.view(heads, -1)).sum(-1)
    scale = math.sqrt(k.shape[-1] // heads)
    products = torch.baddbmm(bias.flatten(1)[..., None] / scale, keys, q.transpose(1, 2))
    weights = products.unflatten(1, (-1, heads)).softmax(1).flatten(1, 2)  # (P, T · heads, n)
    written = torch.einsum(
        "pthd,hdc->pthc",
        v.unflatten(-1, (heads, -1)),
        _by_head(attention.out_proj.weight.T, heads),
    )
    written = (written + attention.out_proj.bias / heads).flatten(1, 2)
    return torch.baddbmm(onto, weights.transpose(1, 2), written)


def _by_head(weight: Tensor, heads: int) -> Tensor:
    return weight.unflatten(0, (heads, -1))


def _into(x: Tensor, weight: Tensor, heads: int) -> Tensor:
    """Bring (P, T, D) through the other side's projection (D, C): (P, T · heads, C), scaled."""
    x = x.unflatten(-1, (heads, -1))
    there = torch.einsum("pthd,hdc->pthc", x, _by_head(weight, heads) / math.sqrt(x.shape[-1]))
    return there.flatten(1, 2)


def _upscale(upscaling: Any, places: Tensor, kernels: Tensor, grid: int) -> Tensor:
    """``output_upscaling`` of places (P, g · g, C), weighted by kernels (P, c): (P, h, w).

    Its transposed convolutions do not overlap: each is a matrix product at each place. Pixels are
    brought into rows only when one number is left of each.
    """
    coarse, norm, activate, fine, activate_fine = upscaling
    first, second = coarse.kernel_size[0], fine.kernel_size[0]
    if coarse.stride != coarse.kernel_size or fine.stride != fine.kernel_size:
        raise ValueError("the decoder's transposed convolutions overlap")
    parts = []
    count = 8 if places.is_cpu else 64  # a CPU's caches hold a few; a GPU wants large calls
    for some, kernel in zip(places.split(count), kernels.split(count), strict=True):
        x = _grow(coarse, some)
        x = activate(F.layer_norm(x, x.shape[-1:], norm.weight, norm.bias, norm.eps))
        x = activate_fine(_grow(fine, x))
        parts.append((x.flatten(1, -2) @ kernel[..., None]).squeeze(-1))
    shape = (len(kernels), grid, grid, first, first, second, second)
    side = grid * first * second
    return torch.cat(parts).view(shape).permute(0, 1, 3, 5, 2, 4, 6).reshape(-1, side, side)


def _grow(convolution: Any, x: Tensor) -> Tensor:
    """(…, C) → (…, s · s, c): what a transposed convolution of stride s makes of a place."""
    weight = convolution.weight.permute(2, 3, 1, 0).flatten(0, 2)  # (s · s · c, C)
    bias = convolution.bias.repeat(len(weight) // len(convolution.bias))
    return F.linear(x, weight, bias).unflatten(-1, (-1, len(convolution.bias)))
