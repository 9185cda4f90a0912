"""Weights of segmenters: which files load, and what is said of others."""

import hashlib
import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from segment_anything.modeling import (
    Sam,
)
from torch import nn

from segmenter_models import some_prompts, tiny
from xaiclip.errors import ConfigError
from xaiclip.models.segmenters import loading
from xaiclip.models.segmenters.sam import SamSegmenter


@pytest.fixture
def as_vit_b(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("medsam", "sam_vit_b"):
        monkeypatch.setitem(loading.BUILDERS, name, tiny)


def test_vit_b_has_the_published_314_tensors() -> None:
    with torch.device("meta"):
        assert len(loading.BUILDERS["medsam"]().state_dict()) == 314


FORMS: dict[str, Any] = {
    "plain": lambda state: state,
    "nested": lambda state: {"model": state, "optimizer": {"step": 3}, "epoch": 7},
    "parallel": lambda state: {f"module.{k}": v for k, v in state.items()},
    "nested parallel": lambda state: {"model": {f"module.{k}": v for k, v in state.items()}},
    "half": lambda state: {k: v.half() for k, v in state.items()},
}


@pytest.mark.usefixtures("as_vit_b")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("model", ["medsam", "sam_vit_b"])
def test_every_form_of_file_gives_the_same_model(
    form: str, model: str, sam: Sam, tmp_path: Path
) -> None:
    path = tmp_path / "w.pth"
    torch.save(FORMS[form](sam.state_dict()), path)
    loaded = loading.load_segmenter({"model": model, "checkpoint": str(path)}, "cpu")
    assert isinstance(loaded, SamSegmenter)
    assert loaded.name == model
    # stock SAM was trained on normalised colours, MedSAM on 0…1
    expected = SamSegmenter(sam, model, stock=model == "sam_vit_b")
    x, prompts = torch.rand(1, 3, 64, 64), some_prompts(2)
    tolerance = 2e-2 if form == "half" else 1e-6
    torch.testing.assert_close(
        loaded.decode(loaded.encode(x), prompts),
        expected.decode(expected.encode(x), prompts),
        atol=tolerance,
        rtol=tolerance,
    )


@pytest.mark.usefixtures("as_vit_b")
def test_safetensors_are_read_too(sam: Sam, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file(sam.state_dict(), path)
    loaded = loading.load_segmenter({"model": "medsam", "checkpoint": path}, "cpu")
    x = torch.rand(1, 3, 64, 64)
    torch.testing.assert_close(loaded.encode(x), SamSegmenter(sam, "x").encode(x))


class Evil:
    def __reduce__(self) -> Any:
        return (exec, ("raise SystemExit('this code ran')",))


def _write(kind: str, state: dict[str, torch.Tensor], path: Path) -> None:
    first, second = list(state)[:2]
    match kind:
        case "missing key":
            torch.save({k: v for k, v in state.items() if k != first}, path)
        case "unexpected key":
            torch.save(state | {"extra.weight": torch.zeros(1)}, path)
        case "other shape":
            torch.save(state | {second: torch.zeros(2, 2)}, path)
        case "pickled object":
            torch.save({"model": state, "args": Evil()}, path)
        case "old pickle":
            path.write_bytes(pickle.dumps(Evil(), protocol=2))
        case "web page":
            path.write_text("\n<!DOCTYPE html><html><title>Zenodo</title></html>")
        case "lfs pointer":
            path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
        case "empty":
            path.write_bytes(b"")
        case "truncated":
            torch.save(state, path)
            path.write_bytes(path.read_bytes()[:5000])
        case "noise":
            path.write_bytes(bytes(range(256)) * 8)
        case "list":
            torch.save([torch.zeros(2)], path)
        case "no tensors":
            torch.save({"epoch": 3}, path)


@pytest.mark.usefixtures("as_vit_b")
@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing key", r"lacks image_encoder\.pos_embed:"),
        ("unexpected key", r"holds unexpected extra\.weight:"),
        ("other shape", r"in another shape, image_encoder\.patch_embed\.proj\.weight:"),
        ("pickled object", "pickled objects besides tensors"),
        ("web page", "web page"),
        ("lfs pointer", "git lfs pull"),
        ("empty", "is empty"),
        ("truncated", "cut off or belongs to another model"),
        ("noise", "cut off or belongs to another model"),
        ("absent", "does not exist"),
    ],
)
def test_a_bad_file_is_explained(kind: str, message: str, sam: Sam, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    _write(kind, dict(sam.state_dict()), path)
    with pytest.raises(ConfigError, match=message) as caught:
        loading.load_segmenter({"model": "medsam", "checkpoint": str(path)}, "cpu")
    assert "weights.pth" in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("old pickle", "pickled objects besides tensors"),
        ("truncated", "damaged"),
        ("noise", "damaged"),
        ("list", "no tensors by name"),
        ("no tensors", "no tensors by name"),
    ],
)
def test_reading_explains_too(kind: str, message: str, sam: Sam, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    _write(kind, dict(sam.state_dict()), path)
    with pytest.raises(ConfigError, match=message):
        loading.read_weights(path)


@pytest.mark.usefixtures("as_vit_b")
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: {}, "cut off|no tensors"),
        (lambda w: {f"x.{k}": v for k, v in w.items()}, "holds no weights of this model"),
        (lambda w: {k: torch.full_like(v, torch.nan) for k, v in w.items()}, "NaN or infinity"),
        (lambda w: {k: torch.zeros_like(v) for k, v in w.items()}, "nothing but zeros"),
        (lambda w: {k: v.to(torch.int16) for k, v in w.items()}, "another kind of number"),
    ],
)
def test_weights_that_are_none_never_load(
    change: Any, message: str, suffix: str, sam: Sam, tmp_path: Path
) -> None:
    path = tmp_path / f"w.{suffix}"
    weights = {k: v.contiguous() for k, v in change(sam.state_dict()).items()}
    torch.save(weights, path) if suffix == "pth" else save_file(weights, path)
    with pytest.raises(ConfigError, match=message):
        loading.load_segmenter({"model": "medsam", "checkpoint": str(path)}, "cpu")


@pytest.mark.usefixtures("as_vit_b")
@pytest.mark.parametrize("checksum", [None, f"sha256:{'0' * 64}"])
@pytest.mark.parametrize("kind", ["/dev/zero", "pipe", "folder", "hole"])
def test_only_files_of_a_models_size_are_read(
    kind: str, checksum: str | None, tmp_path: Path
) -> None:
    path = Path(kind) if kind.startswith("/") else tmp_path / "w.pth"
    match kind:
        case "pipe":
            os.mkfifo(path)
        case "folder":
            path.mkdir()
        case "hole":
            path.write_bytes(b"x")
            os.truncate(path, 1 << 37)
    settings = {"model": "medsam", "checkpoint": str(path), "checksum": checksum}
    with pytest.raises(ConfigError, match="weights file"):
        loading.load_segmenter(settings, "cpu")


def test_torchscript_is_not_opened(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)), path)
    with pytest.raises(ConfigError, match=r"TorchScript archive.*safetensors"):
        loading.read_weights(path)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("embed_dim", 1 << 19, "cut off|describes no model"),
        ("depth", 10**9, "none that a model can have"),
        ("stem", "x", "describes no model"),
        ("num_heads", 0, "describes no model"),
        ("more", 1, "not read here"),
    ],
)
def test_a_compact_folder_is_read_with_care(
    key: str, value: Any, message: str, tmp_path: Path
) -> None:
    for name in ("sam.json", "sam.safetensors"):
        (tmp_path / name).write_bytes((loading.COMPACT / name).read_bytes())
    loading.load_compact(tmp_path)
    config = json.loads((tmp_path / "sam.json").read_text())
    config["model"][key] = value
    (tmp_path / "sam.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=message):
        loading.load_compact(tmp_path)


def test_damaged_safetensors_are_explained(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(b"\x08\x00\x00\x00\x00\x00\x00\x00{broken}")
    with pytest.raises(ConfigError, match="damaged"):
        loading.read_weights(path)


@pytest.mark.usefixtures("as_vit_b")
@pytest.mark.parametrize("kind", ["sha256", "md5"])
def test_checksums(kind: str, sam: Sam, tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save(sam.state_dict(), path)
    good = hashlib.new(kind, path.read_bytes()).hexdigest()
    settings = {"model": "medsam", "checkpoint": str(path)}
    loading.load_segmenter(settings | {"checksum": f"{kind}:{good}"}, "cpu")
    with pytest.raises(ConfigError, match="fetch it again"):
        loading.load_segmenter(settings | {"checksum": f"{kind}:{'0' * len(good)}"}, "cpu")
    with pytest.raises(ConfigError, match="should be"):
        loading.load_segmenter(settings | {"checksum": good}, "cpu")


@pytest.mark.usefixtures("as_vit_b")
def test_other_than_the_published_medsam_is_only_remarked(
    sam: Sam, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "tuned.pth"
    torch.save(sam.state_dict(), path)
    loading.load_segmenter({"model": "medsam", "checkpoint": str(path)}, "cpu")
    assert "not MedSAM's published weights" in caplog.text


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": "unet"}, "'unet' is unknown"),
        ({"model": "medsam", "checkpoint": None}, "needs a weights file"),
        ({"model": "compact", "checkpoint": "nowhere"}, "make compact"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        loading.load_segmenter(settings, "cpu")
