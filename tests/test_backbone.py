"""The frozen backbone gives open_clip's own tokens, from every kind of source."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from open_clip.model import CLIP, CustomTextCLIP
from open_clip.tokenizer import SimpleTokenizer
from open_clip.transformer import QuickGELU
from safetensors.torch import save_file

from xaiclip.errors import ConfigError
from xaiclip.localizer.backbone import (
    Backbone,
    BackboneSettings,
    default_blocks,
    fingerprint,
    load_backbone,
)
from xaiclip.localizer.compact_clip import VOCABULARY, write_vocabulary

VISION = {"image_size": 56, "patch_size": 14, "width": 32, "head_width": 16, "layers": 4}
TEXT = {"context_length": 24, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
TOKENIZER = SimpleTokenizer(context_length=24)
RESNET = {"image_size": 64, "width": 8, "layers": [1, 1, 1, 1], "head_width": 8}


def small_clip(kind: type = CLIP, quick: bool = False, **vision: object) -> CLIP | CustomTextCLIP:
    """Random weights; with ``quick`` a ViT-L/14 in miniature, QuickGELU included."""
    torch.manual_seed(0)
    return kind(24, VISION | vision, dict(TEXT), quick_gelu=quick)


def write_folder(folder: Path, **text: object) -> CLIP:
    """A folder as the compact CLIP's, in half precision."""
    size = write_vocabulary(folder / VOCABULARY)
    text_cfg = TEXT | {"vocab_size": size, "tokenizer_kwargs": {"bpe_path": VOCABULARY}} | text
    model_cfg = {"embed_dim": 24, "vision_cfg": VISION, "text_cfg": text_cfg}
    norm = {"mean": [0.2] * 3, "std": [0.4] * 3}
    (folder / "clip.json").write_text(json.dumps({"model_cfg": model_cfg, "preprocess_cfg": norm}))
    torch.manual_seed(0)
    model = CLIP(**model_cfg)
    save_file(
        {k: v.half().contiguous() for k, v in model.state_dict().items()},
        folder / "clip.safetensors",
    )
    return model


def images(count: int = 2, size: int = 56) -> torch.Tensor:
    rng = np.random.default_rng(0)
    return torch.from_numpy(rng.integers(0, 256, (count, size, size), dtype=np.uint8))


@pytest.mark.parametrize("kind", [CLIP, CustomTextCLIP])
@pytest.mark.parametrize("quick", [False, True])
def test_tokens_are_those_after_the_blocks(kind: type, quick: bool) -> None:
    clip = small_clip(kind, quick)
    seen: dict[int, torch.Tensor] = {}
    for i, block in enumerate(clip.visual.transformer.resblocks, start=1):
        block.register_forward_hook(lambda m, x, out, i=i: seen.__setitem__(i, out))
    backbone = Backbone(clip, TOKENIZER, (4, 2))
    found = backbone(images())
    grey = images()[:, None].float() / 255
    clip.encode_image((grey - backbone.mean) / backbone.std)
    for block, tokens in zip((4, 2), found, strict=True):
        assert tokens.shape == (2, 32, 4, 4)
        # token 1 + r·4 + c lies in row r, column c; token 0 is CLS
        assert torch.allclose(tokens.flatten(2).transpose(1, 2), seen[block][:, 1:], atol=1e-5)
    assert quick == any(isinstance(m, QuickGELU) for m in clip.visual.modules())


def test_other_image_sizes_are_resized_and_nothing_trains() -> None:
    backbone = Backbone(small_clip(), TOKENIZER).train()
    assert [t.shape for t in backbone(images(size=224))] == [(2, 32, 4, 4)] * 3
    assert not backbone.training
    assert not any(p.requires_grad for p in backbone.parameters())
    assert (backbone.width, backbone.grid, backbone.embed_dim) == (32, 4, 24)


@pytest.mark.parametrize(
    ("depth", "blocks"), [(24, (12, 18, 24)), (12, (6, 9, 12)), (6, (1, 4, 6)), (1, (1,))]
)
def test_default_blocks(depth: int, blocks: tuple[int, ...]) -> None:
    assert default_blocks(depth) == blocks


def test_timm_tower() -> None:
    vision = {"timm_model_name": "vit_tiny_patch16_224", "timm_proj": "linear", "timm_pool": ""}
    torch.manual_seed(0)
    clip = CustomTextCLIP(24, vision | {"image_size": 224}, dict(TEXT))
    backbone = Backbone(clip, TOKENIZER, (3, 12))
    shallow, last = backbone(images(1, 224))
    assert shallow.shape == last.shape == (1, 192, 14, 14)


@pytest.mark.parametrize(
    ("vision", "blocks", "message"),
    [
        ({}, (5,), "blocks 1 to 4"),
        ({}, (0, 2), "blocks 1 to 4"),
        (RESNET, None, "no vision transformer"),
    ],
)
def test_unusable_towers(vision: dict, blocks: tuple[int, ...] | None, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Backbone(small_clip(**vision), TOKENIZER, blocks)


def test_folder_is_read_with_its_vocabulary_and_norm(tmp_path: Path) -> None:
    original = write_folder(tmp_path)
    backbone = load_backbone(BackboneSettings(str(tmp_path), blocks=(4,)))
    ids = backbone.tokenizer(["the left kidney"])
    assert ids.shape == (1, 24)
    assert ids.max() == backbone.clip.vocab_size - 1  # the end token
    assert backbone.mean.flatten().tolist() == pytest.approx([0.2] * 3)
    half = original.half().float().eval()
    assert fingerprint(half) == backbone.fingerprint
    assert torch.allclose(half.encode_text(ids), backbone.clip.encode_text(ids), atol=1e-6)


def _no_weights(folder: Path) -> None:
    (folder / "clip.safetensors").unlink()


def _broken_json(folder: Path) -> None:
    (folder / "clip.json").write_text("{")


def _other_weights(folder: Path) -> None:
    save_file({"logit_scale": torch.zeros(())}, folder / "clip.safetensors")


def _truncated(folder: Path) -> None:
    path = folder / "clip.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_no_weights, "clip.safetensors is missing"),
        (_broken_json, "does not hold a usable CLIP"),
        (_other_weights, "does not hold a usable CLIP"),
        (_truncated, "does not hold a usable CLIP"),
    ],
)
def test_damaged_folders(tmp_path: Path, damage, message: str) -> None:
    write_folder(tmp_path)
    damage(tmp_path)
    with pytest.raises(ConfigError, match=message) as caught:
        load_backbone(BackboneSettings(str(tmp_path)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (BackboneSettings("ViT-Z-99"), "neither a folder nor a model"),
        (BackboneSettings("ViT-L-14"), "needs weights"),
        (BackboneSettings("ViT-B-32", "no_such_tag"), "could not be loaded"),
    ],
)
def test_unknown_models(settings: BackboneSettings, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_backbone(settings)


def test_named_model_with_a_checkpoint_file(tmp_path: Path, monkeypatch) -> None:
    import open_clip.factory

    config = {"embed_dim": 24, "vision_cfg": VISION, "text_cfg": TEXT}
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "mini", config)
    clip = small_clip()
    torch.save(clip.state_dict(), tmp_path / "mini.pt")
    backbone = load_backbone(BackboneSettings("mini", str(tmp_path / "mini.pt")))
    assert backbone.fingerprint == fingerprint(clip)
