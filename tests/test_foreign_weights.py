"""Weights that somebody else gives: no code runs, and nothing random loads in silence."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from open_clip.model import CLIP
from safetensors.torch import load_file, save_file

import test_backbone as small
from foreign_model import MODEL
from test_backbone import COMMIT, small_clip
from xaiclip.errors import ConfigError
from xaiclip.localizer import sources
from xaiclip.localizer.backbone import Backbone, BackboneSettings, load_backbone
from xaiclip.localizer.clip_weights import openai_checksums
from xaiclip.localizer.model import (
    Localizer,
    LocalizerSettings,
    load_localizer,
    save_localizer,
)


class Setstate(torch.nn.Module):
    """Writes into a file while it is opened."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.register_buffer("weight", torch.zeros(2))
        self.path = path

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x

    @torch.jit.export
    def __getstate__(self) -> tuple[str, torch.Tensor, bool]:
        return (self.path, self.weight, self.training)

    @torch.jit.export
    def __setstate__(self, state: tuple[str, torch.Tensor, bool]) -> None:
        self.path = state[0]
        self.training = state[2]
        # kept, or the compiler would take the line for one without effect
        self.weight = torch.from_file(state[0], shared=True, size=4, dtype=torch.uint8).fill_(88)


def torchscript(path: Path, victim: Path) -> None:
    torch.jit.save(torch.jit.script(Setstate(str(victim))), path)


class Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("name", ["w.pt", "w.pth", "w.bin", "w.safetensors"])
@pytest.mark.parametrize("kind", ["torchscript", "renamed", "pickle", "old pickle"])
def test_weights_files_run_nothing(kind: str, name: str, folder: Path, ran: Path) -> None:
    victim = folder / "victim"
    victim.write_bytes(b"mine")
    path = folder / name
    match kind:
        case "torchscript":
            torchscript(path, victim)
        case "renamed":  # the member that tells TorchScript by name lies deeper
            torchscript(folder / "script", victim)
            import zipfile

            with zipfile.ZipFile(folder / "script") as old, zipfile.ZipFile(path, "w") as new:
                for member in old.namelist():
                    new.writestr(f"deeper/{member}", old.read(member))
        case "pickle":
            torch.save(small_clip().state_dict() | {"evil": Evil(ran)}, path)
        case "old pickle":
            path.write_bytes(pickle.dumps(Evil(ran), protocol=2) + bytes(200_000))
    (folder / "mine.json").write_text(json.dumps(MODEL))
    with pytest.raises(ConfigError, match=r"TorchScript|pickled|damaged|cut off") as caught:
        load_backbone(BackboneSettings(str(folder / "mine.json"), str(path)))
    assert not ran.exists()
    assert victim.read_bytes() == b"mine"
    if kind == "torchscript" and path.stat().st_size > 150_000:
        assert "safetensors" in str(caught.value)


def test_the_planted_archive_would_have_run(folder: Path) -> None:
    """What the test above plants is live: torch alone runs it."""
    victim = folder / "victim"
    victim.write_bytes(b"mine")
    torchscript(folder / "w.pt", victim)
    torch.jit.load(folder / "w.pt").state_dict()
    assert victim.read_bytes() == b"XXXX"


def test_only_openais_own_archives_are_opened(folder: Path, monkeypatch) -> None:
    assert len(openai_checksums()) == 9
    assert "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836" in openai_checksums()
    victim = folder / "victim"
    victim.write_bytes(b"mine")
    torchscript(folder / "w.pt", victim)
    (folder / "mine.json").write_text(json.dumps(MODEL))
    # too small for the model: looked at all the same
    monkeypatch.setattr("xaiclip.localizer.backbone.check_size", lambda *_: None)
    with pytest.raises(ConfigError, match=r"none of OpenAI.s published ones.*safetensors"):
        load_backbone(BackboneSettings(str(folder / "mine.json"), str(folder / "w.pt")))
    assert victim.read_bytes() == b"mine"


def change(weights: dict[str, torch.Tensor], kind: str) -> dict[str, torch.Tensor]:
    first = "visual.conv1.weight"
    match kind:
        case "one missing":
            del weights[first]
        case "one more":
            weights["extra"] = torch.zeros(3)
        case "other names":
            return {f"my.{name}": value for name, value in weights.items()}
        case "NaN":
            weights[first][0, 0, 0, 0] = float("nan")
        case "infinity":
            weights["ln_final.bias"][-1] = -float("inf")
        case "zeros":
            return {name: torch.zeros_like(value) for name, value in weights.items()}
        case "whole numbers":
            weights[first] = weights[first].to(torch.int8)
        case "turned":
            weights["text_projection"] = weights["text_projection"].T.contiguous()
        case "empty":
            return {}
    return weights


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("one missing", "lacks visual.conv1.weight"),
        ("one more", "holds unexpected extra"),
        ("other names", "holds no weights of this model"),
        ("NaN", "NaN or infinity in visual.conv1.weight"),
        ("infinity", "NaN or infinity in ln_final.bias"),
        ("zeros", "nothing but zeros"),
        ("whole numbers", "another kind of number"),
        ("turned", "in another shape, text_projection"),
        ("empty", "cut off|no tensors"),
    ],
)
def test_random_or_broken_weights_never_load_in_silence(
    kind: str, words: str, suffix: str, folder: Path
) -> None:
    weights = change(dict(small_clip().state_dict()), kind)
    path = folder / f"w.{suffix}"
    if suffix == "pt":
        torch.save(weights, path)
    else:
        save_file(weights, path)
    (folder / "mine.json").write_text(json.dumps(MODEL))
    with pytest.raises(ConfigError, match=words):
        load_backbone(BackboneSettings(str(folder / "mine.json"), str(path)))


@pytest.mark.parametrize("kind", ["/dev/zero", "/dev/stdin", "fifo", "folder", "link", "nothing"])
def test_only_regular_files_are_weights(kind: str, folder: Path) -> None:
    path = folder / "w.pt"
    match kind:
        case "fifo":
            os.mkfifo(path)
        case "folder":
            path.mkdir()
        case "link":
            path.symlink_to("/dev/zero")
        case "nothing":
            pass
        case _:
            path = Path(kind)
    (folder / "mine.json").write_text(json.dumps(MODEL))
    with pytest.raises(ConfigError, match=r"weights file|neither a file nor a tag"):
        load_backbone(BackboneSettings(str(folder / "mine.json"), str(path)))


def test_a_file_beyond_all_models_is_not_read(folder: Path) -> None:
    path = folder / "w.pt"
    with open(path, "wb") as stream:
        stream.write(b"x")
        stream.truncate(1 << 37)  # a hole: it takes no room
    (folder / "mine.json").write_text(json.dumps(MODEL))
    with pytest.raises(ConfigError, match="no weights file"):
        load_backbone(BackboneSettings(str(folder / "mine.json"), str(path)))


@pytest.fixture(scope="module")
def frozen() -> Backbone:
    return Backbone(small_clip(), small.TOKENIZER)


@pytest.fixture
def trained(tmp_path: Path, frozen: Backbone) -> Path:
    path = tmp_path / "localizer.safetensors"
    localizer = Localizer(frozen, ("background", "liver"), LocalizerSettings(context=2, width=32))
    save_localizer(path, localizer)
    return path


def rewrite(path: Path, about: Callable[[dict], None], tensors: Callable[[dict], None]) -> None:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as stored:
        told = json.loads(stored.metadata()["localizer"])
    held = load_file(path)
    about(told)
    tensors(held)
    save_file(held, path, metadata={"localizer": json.dumps(told)})


def nothing(_: dict) -> None:
    pass


@pytest.mark.parametrize(
    ("about", "tensors", "words"),
    [
        (nothing, lambda t: t["sharpness"].fill_(float("nan")), "NaN or infinity in sharpness"),
        (nothing, lambda t: t.pop("sharpness"), "another version"),
        (nothing, lambda t: t.update(more=torch.zeros(1)), "another version"),
        (nothing, lambda t: [v.zero_() for v in t.values()], "nothing but zeros"),
        (lambda a: a["settings"].update(width=1 << 11), nothing, "another version"),
        (lambda a: a["settings"].update(width=10**12), nothing, "another version"),
        (lambda a: a["settings"].update(context=3), nothing, "another version"),
        (lambda a: a["settings"].update(more=1), nothing, "another version"),
        (lambda a: a.update(classes=["x"] * 9), nothing, "another version"),
        (lambda a: a.update(classes=[1, 2]), nothing, "another version"),
        (lambda a: a.pop("backbone"), nothing, "not a trained localizer"),
        (lambda a: a.update(settings="x"), nothing, "not a trained localizer"),
        (lambda a: a["backbone"].update(blocks=["x"]), nothing, "another version"),
    ],
)
def test_a_localizer_is_read_with_care(
    about: Callable, tensors: Callable, words: str, trained: Path, frozen: Backbone
) -> None:
    load_localizer(trained, frozen)
    rewrite(trained, about, tensors)
    with pytest.raises(ConfigError, match=words):
        load_localizer(trained, frozen)


@pytest.mark.parametrize("model", [f"hf-hub:evil/model@{COMMIT}", "ViT-L-14", "no such folder"])
def test_nothing_is_fetched_on_a_localizers_word(model: str, trained: Path, monkeypatch) -> None:
    def never(*_: object, **__: object) -> str:
        raise AssertionError("the hub was asked")

    monkeypatch.setattr(sources, "snapshot_download", never)
    monkeypatch.setattr(sources, "fetch", never)
    rewrite(trained, lambda a: a["backbone"].update(model=model), nothing)
    with pytest.raises(ConfigError, match="lies elsewhere"):
        load_localizer(trained)


def test_the_shipped_model_is_what_its_checksums_say(tmp_path: Path, monkeypatch) -> None:
    from xaiclip.localizer import backbone

    shutil.copytree(backbone.COMPACT_FOLDER, tmp_path / "compact")
    monkeypatch.setattr(backbone, "COMPACT_FOLDER", tmp_path / "compact")
    assert isinstance(load_backbone(BackboneSettings()).clip, CLIP)
    weights = load_file(tmp_path / "compact" / "clip.safetensors")
    weights["logit_scale"] += 1
    save_file(weights, tmp_path / "compact" / "clip.safetensors")
    with pytest.raises(ConfigError, match="has sha256"):
        load_backbone(BackboneSettings())
