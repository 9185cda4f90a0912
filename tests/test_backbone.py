"""The frozen backbone gives open_clip's own tokens, from every kind of source."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import open_clip
import open_clip.factory as factory
import pytest
import torch
import transformers
from open_clip.model import CLIP, CustomTextCLIP
from open_clip.tokenizer import SimpleTokenizer
from open_clip.transformer import QuickGELU
from safetensors.torch import save_file

from compact.clip.model import VOCABULARY
from compact.clip.words import write_vocabulary
from xaiclip.errors import ConfigError
from xaiclip.files import sha256
from xaiclip.localizer import clip_weights, sources
from xaiclip.localizer.backbone import (
    Backbone,
    BackboneSettings,
    default_blocks,
    fingerprint,
    load_backbone,
)
from xaiclip.localizer.prompts import Prompts
from xaiclip.published.download import Remote

VISION = {"image_size": 56, "patch_size": 14, "width": 32, "head_width": 16, "layers": 4}
TEXT = {"context_length": 24, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
COMMIT = "0123456789abcdef0123456789abcdef01234567"
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
        (_broken_json, "is no JSON"),
        (_other_weights, "cut off or belongs to another model"),
        (_truncated, "is damaged"),
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
    config = {"embed_dim": 24, "vision_cfg": VISION, "text_cfg": TEXT}
    monkeypatch.setitem(factory._MODEL_CONFIGS, "mini", config)
    clip = small_clip()
    torch.save(clip.state_dict(), tmp_path / "mini.pt")
    backbone = load_backbone(BackboneSettings("mini", str(tmp_path / "mini.pt")))
    assert backbone.fingerprint == fingerprint(clip)


# ------------------------------------------------------------------- published kinds of backbone


def shrunk(name: str) -> dict:
    """open_clip's own configuration with narrow layers: blocks, patch and input as published."""
    config = open_clip.get_model_config(name)
    config["embed_dim"] = 24
    config["vision_cfg"] |= {"width": 32, "head_width": 16}
    config["text_cfg"] |= {"width": 32, "heads": 2, "layers": 2}
    return config


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "blocks", "grid"), [("ViT-L-14", (12, 18, 24), 16), ("ViT-B-16", (6, 9, 12), 14)]
)
@pytest.mark.parametrize("source", ["tag", "hub"])
def test_named_backbones_with_a_tag(
    name: str, blocks: tuple[int, ...], grid: int, source: str, tmp_path: Path, monkeypatch
) -> None:
    """OpenAI's weights get QuickGELU under the plain name; others do not."""
    config = shrunk(name)
    monkeypatch.setitem(factory._MODEL_CONFIGS, name, config)
    torch.manual_seed(0)
    reference = CLIP(**config, quick_gelu=source == "tag").eval()
    asked = []

    def fetch(remote: Remote, target: Path) -> None:
        asked.append(remote)
        target.parent.mkdir(exist_ok=True)
        torch.save(reference.state_dict(), target)

    def snapshot_download(repository: str, *, revision: str, allow_patterns: list[str]) -> str:
        asked.append((repository, revision))
        (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
        torch.save(reference.state_dict(), tmp_path / "open_clip_pytorch_model.bin")
        return str(tmp_path)

    monkeypatch.setattr(sources, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(sources, "fetch", fetch)
    monkeypatch.setattr(sources, "snapshot_download", snapshot_download)
    if source == "tag":
        backbone = load_backbone(BackboneSettings(name, "openai"))
        # the checksum is the one that OpenAI's address tells
        assert asked[0].checksum.removeprefix("sha256:") in asked[0].url
        assert backbone.revisions == ()
    else:
        backbone = load_backbone(BackboneSettings(f"hf-hub:laion/CLIP@{COMMIT}"))
        assert set(asked) == {("laion/CLIP", COMMIT)}
        assert backbone.revisions == (f"laion/CLIP@{COMMIT}",)
    assert (backbone.blocks, backbone.grid, backbone.image_size) == (blocks, grid, 224)
    x = images(1, 224)
    grey = (x[:, None].float() / 255 - backbone.mean) / backbone.std
    seen = []
    reference.visual.transformer.resblocks[-1].register_forward_hook(
        lambda m, i, out: seen.append(out)
    )
    with torch.no_grad():
        reference.encode_image(grey)
        found = backbone(x)[-1].flatten(2).transpose(1, 2)
        torch.testing.assert_close(found, seen[0][:, 1:], atol=1e-5, rtol=1e-5)
        ids = backbone.tokenizer(["the left kidney"])
        torch.testing.assert_close(backbone.clip.encode_text(ids), reference.encode_text(ids))


def test_a_configuration_of_ones_own(tmp_path: Path) -> None:
    config = {"embed_dim": 24, "vision_cfg": VISION, "text_cfg": TEXT, "quick_gelu": True}
    (tmp_path / "mine.json").write_text(json.dumps(config))
    clip = small_clip(quick=True)
    torch.save(clip.state_dict(), tmp_path / "mine.pt")
    settings = BackboneSettings(str(tmp_path / "mine.json"), str(tmp_path / "mine.pt"))
    backbone = load_backbone(settings)
    assert any(isinstance(m, QuickGELU) for m in backbone.clip.modules())
    assert torch.equal(backbone(images())[0], Backbone(clip, TOKENIZER)(images())[0])


def test_a_folder_in_open_clips_layout(tmp_path: Path) -> None:
    config = {"embed_dim": 24, "vision_cfg": VISION, "text_cfg": TEXT}
    norm = {"mean": [0.1] * 3, "std": [0.2] * 3}
    text = json.dumps({"model_cfg": config, "preprocess_cfg": norm})
    (tmp_path / "open_clip_config.json").write_text(text)
    clip = small_clip()
    torch.save(clip.state_dict(), tmp_path / "open_clip_pytorch_model.bin")
    backbone = load_backbone(BackboneSettings(str(tmp_path)))
    assert backbone.fingerprint == fingerprint(clip)
    assert backbone.mean.flatten().tolist() == pytest.approx([0.1] * 3)
    (tmp_path / "open_clip_config.json").unlink()
    with pytest.raises(ConfigError, match=r"neither clip\.json nor open_clip_config\.json"):
        load_backbone(BackboneSettings(str(tmp_path)))


def write_biomed(folder: Path) -> CustomTextCLIP:
    """BiomedCLIP in miniature: a timm tower, a BERT tower with an MLP, a WordPiece tokenizer."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "x", "a", "photo", "of", "the"]
    words += ["background", "liver", "right", "kidney"]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    tokenizer = transformers.BertTokenizerFast(vocab=str(folder / "vocab.txt"))
    tokenizer.save_pretrained(folder)
    bert = transformers.BertConfig(
        vocab_size=len(words),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
    )
    bert.save_pretrained(folder)
    vision = {"timm_model_name": "vit_tiny_patch16_224", "timm_proj": "linear", "timm_pool": ""}
    text = {
        "hf_model_name": "somebody/bert",
        "hf_tokenizer_name": "somebody/bert",
        "hf_proj_type": "mlp",
        "hf_pooler_type": "cls_last_hidden_state_pooler",
        "context_length": 24,
    }
    config = {"embed_dim": 24, "vision_cfg": vision | {"image_size": 224}, "text_cfg": text}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    torch.manual_seed(0)
    local = text | {"hf_model_name": str(folder), "hf_model_pretrained": False}
    clip = CustomTextCLIP(24, config["vision_cfg"], local).eval()
    torch.save(clip.state_dict(), folder / "open_clip_pytorch_model.bin")
    return clip


def test_biomedclip_from_a_folder_alone(tmp_path: Path, monkeypatch) -> None:
    """Tokens and prompted text equal open_clip's forward, and nothing asks the hub."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    clip = write_biomed(tmp_path)
    backbone = load_backbone(BackboneSettings(str(tmp_path)))
    assert (backbone.blocks, backbone.grid, backbone.image_size) == ((6, 9, 12), 14, 224)
    assert backbone.fingerprint == fingerprint(clip)
    x = images(1, 224)
    grey = (x[:, None].float() / 255 - backbone.mean) / backbone.std
    seen = []
    clip.visual.trunk.blocks[-1].register_forward_hook(lambda m, i, out: seen.append(out))
    with torch.no_grad():
        clip.encode_image(grey)
        found = backbone(x)[-1].flatten(2).transpose(1, 2)
        torch.testing.assert_close(found, seen[0][:, 1:], atol=1e-5, rtol=1e-5)
        classes = ("background", "liver", "right kidney")
        ids = backbone.tokenizer([f"a photo of the {name}" for name in classes])
        prompts = Prompts(backbone, classes, context=4)
        words = clip.text.transformer.get_input_embeddings()
        prompts.context.copy_(words(ids)[:, 1:5])
        wanted = clip.encode_text(ids, normalize=True)
        torch.testing.assert_close(prompts(), wanted, atol=1e-5, rtol=1e-5)
    (tmp_path / "config.json").unlink()
    with pytest.raises(ConfigError, match="take it from 'somebody/bert'"):
        load_backbone(BackboneSettings(str(tmp_path)))


def test_openais_own_file_gets_quickgelu(tmp_path: Path, monkeypatch) -> None:
    """OpenAI published TorchScript archives in half precision with three extra numbers."""
    monkeypatch.setitem(
        factory._MODEL_CONFIGS, "mini", {"embed_dim": 24, "vision_cfg": VISION, "text_cfg": TEXT}
    )
    clip = small_clip(quick=True)

    class Archive(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    archive = Archive()
    for name, value in clip.state_dict().items():
        *path, last = name.split(".")
        node: torch.nn.Module = archive
        for part in path:
            if not hasattr(node, part):
                node.add_module(part, torch.nn.Module())
            node = getattr(node, part)
        node.register_buffer(last, value.half())
    for name in ("input_resolution", "context_length", "vocab_size"):
        archive.register_buffer(name, torch.tensor(7))
    torch.jit.save(torch.jit.trace(archive, torch.zeros(1)), tmp_path / "mini.pt")
    published = {sha256(tmp_path / "mini.pt"): "address"}
    monkeypatch.setattr(clip_weights, "openai_checksums", lambda: published)
    backbone = load_backbone(BackboneSettings("mini", str(tmp_path / "mini.pt")))
    assert any(isinstance(m, QuickGELU) for m in backbone.clip.modules())
    assert backbone.fingerprint == fingerprint(clip.half().float())
