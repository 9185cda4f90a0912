"""A CLIP's configuration, as open_clip writes it: what is read of it, and the model it describes.

A configuration comes from outside with the weights. open_clip hands what it finds there to
transformers, timm and file openers; here only known keys with plain values pass.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from open_clip.coca_model import CoCa
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from open_clip.model import CLIP, CustomTextCLIP
from open_clip.timm_model import timm

from xaiclip.errors import ConfigError
from xaiclip.plain import check_keys, keys, read_json
from xaiclip.weights import shapes_only

_MODEL = keys(
    "embed_dim vision_cfg text_cfg multimodal_cfg quick_gelu custom_text init_logit_scale "
    "init_logit_bias nonscalar_logit_scale"
)
_BOTH = keys(
    "width layers heads mlp_ratio ls_init_value final_ln_after_pool pool_type output_tokens "
    "act_kwargs norm_kwargs block_type qk_norm scaled_cosine_attn scale_heads scale_attn_inner "
    "scale_attn scale_fc"
)
_VISION = _BOTH - {"heads"} | keys(
    "head_width patch_size image_size patch_dropout attentional_pool attn_pooler_queries "
    "attn_pooler_heads no_ln_pre pos_embed_type timm_model_name timm_model_pretrained timm_pool "
    "timm_proj timm_proj_bias timm_drop timm_drop_path"
)
_TEXT = _BOTH | keys(
    "context_length vocab_size hf_tokenizer_name tokenizer_mode tokenizer_kwargs embed_cls pad_id "
    "eos_id no_causal_mask proj_bias proj_type hf_model_name hf_model_pretrained hf_proj_type "
    "hf_pooler_type"
)
_DECODER = _BOTH | keys("context_length vocab_size dim_head n_queries attn_pooler_heads")
#: Arguments of layers and of the tokenizers.
_KWARGS = {
    "act_kwargs": frozenset({"approximate"}),
    "norm_kwargs": frozenset({"eps", "elementwise_affine", "bias"}),
    "tokenizer_kwargs": keys("bpe_path additional_special_tokens clean strip_sep_token language"),
}


@dataclass(frozen=True)
class ClipConfig:
    """A checked configuration.

    Attributes:
        model: arguments of open_clip's class; nothing in them is fetched.
        tokenizer: arguments of the tokenizer.
        mode: open_clip's ``tokenizer_mode``.
        tower: the hub's name of the Hugging Face text tower; None for open_clip's own.
        words: the hub's name of the Hugging Face tokenizer; None for open_clip's own.
        mean, std: of the images in training, three channels in 0…1.
    """

    model: Mapping[str, Any]
    tokenizer: Mapping[str, Any]
    mode: str | None
    tower: str | None
    words: str | None
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def context_length(self) -> int:
        """Tokens of a text."""
        return int(self.model["text_cfg"].get("context_length", 77))

    @classmethod
    def read(cls, path: Path) -> ClipConfig:
        """From a file: a configuration, or one under ``model_cfg`` with ``preprocess_cfg``.

        Raises:
            ConfigError: see `read_json` and `of`.
        """
        content = read_json(path)
        return cls.of(
            content.get("model_cfg", content), content.get("preprocess_cfg") or {}, str(path)
        )

    @classmethod
    def of(cls, model_cfg: object, preprocess_cfg: object, where: str) -> ClipConfig:
        """From open_clip's sections.

        Raises:
            ConfigError: a key or a value that is not read here; names it.
        """
        model = check_keys(f"{where}: model_cfg", model_cfg, _MODEL)
        sections = {"vision_cfg": _VISION, "text_cfg": _TEXT, "multimodal_cfg": _DECODER}
        for name, known in sections.items():
            if name in model or name != "multimodal_cfg":
                section = check_keys(f"{where}: {name}", model.get(name), known)
                for kwargs, allowed in _KWARGS.items():
                    if section.get(kwargs) is not None:
                        check_keys(f"{where}: {name}.{kwargs}", section[kwargs], allowed)
                model[name] = section
        vision, text = model["vision_cfg"], model["text_cfg"]
        timm_name = vision.get("timm_model_name")
        # timm would take hf-hub:… and local-dir:… for names, too
        if timm_name is not None and str(timm_name).split(".")[0] not in timm.list_models():
            raise ConfigError(f"{where}: timm has no model {timm_name!r}.")
        vision.pop("timm_model_pretrained", None)  # the weights come with the whole model
        text.pop("hf_model_pretrained", None)
        tower = text.get("hf_model_name")
        return cls(
            model=model,
            tokenizer=dict(text.pop("tokenizer_kwargs", None) or {}),
            mode=text.pop("tokenizer_mode", None),
            tower=tower,
            words=text.pop("hf_tokenizer_name", None) or tower,
            mean=_norm(where, preprocess_cfg, "mean", OPENAI_DATASET_MEAN),
            std=_norm(where, preprocess_cfg, "std", OPENAI_DATASET_STD),
        )

    def build(self, quick_gelu: bool = False, tower: Path | None = None) -> CLIP | CustomTextCLIP:
        """The untrained model.

        Args:
            quick_gelu: whether the weights want QuickGELU whatever the configuration says.
            tower: a folder with the text tower's ``config.json``, for a Hugging Face tower.
        """
        model = dict(self.model)
        custom = model.pop("custom_text", False) or self.tower is not None
        if quick_gelu:
            model["quick_gelu"] = True
        if self.tower is not None:
            local = {"hf_model_name": str(tower), "hf_model_pretrained": False}
            model["text_cfg"] = model["text_cfg"] | local
        if not custom:
            model.pop("multimodal_cfg", None)
            return CLIP(**model)
        return CoCa(**model) if "multimodal_cfg" in model else CustomTextCLIP(**model)

    def outline(self, tower: Path | None = None) -> torch.nn.Module:
        """The model on the meta device: its tensors' names and shapes, without their memory."""
        with shapes_only():
            return self.build(tower=tower)


def _norm(where: str, section: object, key: str, default: tuple[float, ...]) -> tuple[float, ...]:
    value = section.get(key) if isinstance(section, Mapping) else None
    if value is None:
        return default
    value = check_keys(f"{where}: preprocess_cfg", {key: value}, (key,))[key]
    numbers = isinstance(value, list | tuple) and all(type(one) in (int, float) for one in value)
    if not numbers or len(value) != 3 or (key == "std" and min(value) <= 0):
        raise ConfigError(f"{where}: preprocess_cfg.{key} must be three numbers, as of a colour.")
    return tuple(float(one) for one in value)
