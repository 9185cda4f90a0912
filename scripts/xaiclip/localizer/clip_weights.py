"""A CLIP's weights: from OpenAI's own archives or from files of tensors, and all of them."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import torch
from open_clip.convert import convert_state_dict
from open_clip.model import (
    CLIP,
    CustomTextCLIP,
    convert_to_custom_text_state_dict,
    resize_pos_embed,
    resize_text_pos_embed,
)
from open_clip.pretrained import get_pretrained_url, list_pretrained_models_by_tag
from torch import Tensor

from xaiclip.errors import ConfigError
from xaiclip.files import sha256
from xaiclip.weights import check_weights, fill, is_torchscript, read_weights

SUFFIXES = (".safetensors", ".bin", ".pth")
#: Weights in open_clip's layout, the first that is there.
NAMES = tuple(
    f"{stem}{suffix}"
    for suffix in SUFFIXES
    for stem in ("open_clip_model", "open_clip_pytorch_model")
)


@cache
def openai_checksums() -> dict[str, str]:
    """SHA-256 → address of the archives that OpenAI published: the one is part of the other."""
    urls = (get_pretrained_url(name, "openai") for name in list_pretrained_models_by_tag("openai"))
    found = (re.search(r"openaipublic.*/([0-9a-f]{64})/", url) for url in urls)
    return {match[1]: match.string for match in found if match}


def load_weights(clip: CLIP | CustomTextCLIP, path: Path) -> None:
    """Fill a model from a file: every one of its tensors, and no other.

    Older names of tensors, and positions of another image size or text length, are converted as
    open_clip does it.

    Raises:
        ConfigError: see `read_weights`, `fill` and `read_openai`.
    """
    weights = read_openai(path) if is_torchscript(path) else read_weights(path)
    try:
        fill(clip, _converted(clip, weights), path)
    except ConfigError:
        raise
    except Exception as error:  # what open_clip's conversion raises for foreign tensors
        raise ConfigError(f"{path} does not hold the weights of this model.") from error


def read_openai(path: Path) -> dict[str, Tensor]:
    """The tensors of one of OpenAI's own archives, in single precision.

    Opening a TorchScript archive runs what it brings along (``__setstate__``), so only files that
    are OpenAI's to the byte are opened.

    Raises:
        ConfigError: another file.
    """
    check_weights(path)
    if sha256(path) not in openai_checksums():
        raise ConfigError(
            f"{path} is a TorchScript archive, but none of OpenAI's published ones, and opening "
            "one runs its code: save its weights as safetensors on a machine that may run it."
        )
    weights = torch.jit.load(str(path), map_location="cpu").state_dict()
    for name in ("input_resolution", "context_length", "vocab_size"):
        weights.pop(name, None)
    return {name: value.float() for name, value in weights.items()}


def _converted(clip: CLIP | CustomTextCLIP, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """As open_clip's own `load_checkpoint`, which reads a file by itself."""
    weights = dict(convert_state_dict(clip, weights))
    if "positional_embedding" in weights and not hasattr(clip, "positional_embedding"):
        weights = convert_to_custom_text_state_dict(weights)
    for name in ("logit_scale", "logit_bias"):
        own = getattr(clip, name, None)
        if name in weights and own is not None and weights[name].numel() == 1:
            weights[name] = weights[name].reshape(own.shape)
    # buffers that newer text towers no longer store
    if "text.transformer.embeddings.position_ids" not in clip.state_dict():
        weights.pop("text.transformer.embeddings.position_ids", None)
    resize_pos_embed(weights, clip)
    resize_text_pos_embed(weights, clip)
    return weights
