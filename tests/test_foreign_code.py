"""Models from outside: payloads are planted for real, and none of them runs or is read."""

from __future__ import annotations

import gzip
import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from open_clip.model import CLIP
from safetensors.torch import load_file, save_file

import test_backbone as small
from test_backbone import COMMIT, TEXT, VISION, small_clip, write_biomed, write_folder
from xaiclip.errors import ConfigError
from xaiclip.localizer import sources
from xaiclip.localizer.backbone import Backbone, BackboneSettings, load_backbone
from xaiclip.localizer.clip_config import ClipConfig
from xaiclip.localizer.clip_weights import openai_checksums
from xaiclip.localizer.model import (
    Localizer,
    LocalizerSettings,
    load_localizer,
    save_localizer,
)
from xaiclip.published import catalogue

MODEL = {"embed_dim": 24, "vision_cfg": VISION, "text_cfg": TEXT}


@pytest.fixture
def ran(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that a payload would make; and no way to the hub."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    return tmp_path / "payload-ran"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "model"
    made.mkdir()
    return made


def edit(path: Path, **values: Any) -> None:
    """Set keys, each named by the way to it."""
    content = json.loads(path.read_text()) if path.is_file() else {}
    for way, value in values.items():
        *above, last = way.split("__")
        place = content
        for key in above:
            place = place.setdefault(key, {})
        place[last] = value
    path.write_text(json.dumps(content))


def payload(folder: Path, ran: Path) -> None:
    """Python files that transformers would import, with every class that it may look for."""
    code = f"open({str(ran)!r}, 'w').write('ran')\n"
    code += "class Evil:\n    from_pretrained = classmethod(lambda cls, *a, **k: cls())\n"
    (folder / "evil.py").write_text(code)


def open_clip_folder(folder: Path, **text: Any) -> None:
    """In open_clip's layout, its text tower its own."""
    config = {"embed_dim": 24, "vision_cfg": VISION, "text_cfg": TEXT | text}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    save_file(small_clip().state_dict(), folder / "open_clip_model.safetensors")


# ----------------------------------------------------------------------------- code beside a model

AUTO = {
    "AutoConfig": "evil.Evil",
    "AutoModel": "evil.Evil",
    "AutoTokenizer": ["evil.Evil", "evil.Evil"],
}
PLACES: dict[str, Callable[[Path], None]] = {
    "tokenizer_kwargs": lambda f: edit(
        f / "open_clip_config.json",
        model_cfg__text_cfg__tokenizer_kwargs={"trust_remote_code": True},
    ),
    "both": lambda f: (
        edit(
            f / "open_clip_config.json",
            model_cfg__text_cfg__tokenizer_kwargs={"trust_remote_code": True},
        ),
        edit(f / "tokenizer_config.json", auto_map=AUTO),
    ),
    "tokenizer_config": lambda f: edit(f / "tokenizer_config.json", auto_map=AUTO),
    "config": lambda f: edit(f / "config.json", auto_map=AUTO, model_type="evil"),
    "deep inside": lambda f: edit(f / "config.json", a__b={"c": [{"auto_map": AUTO}]}),
    "processor": lambda f: edit(f / "preprocessor_config.json", auto_map=AUTO),
    "top of the file": lambda f: edit(f / "open_clip_config.json", trust_remote_code=True),
}


@pytest.mark.slow
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", ["folder", "hub"])
def test_python_files_beside_a_model_do_not_run(
    place: str, kind: str, folder: Path, ran: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_biomed(folder)
    payload(folder, ran)
    PLACES[place](folder)
    monkeypatch.setattr(sources, "snapshot_download", lambda *_, **__: str(folder))
    name = str(folder) if kind == "folder" else f"hf-hub:some/model@{COMMIT}"
    with pytest.raises(ConfigError, match=r"auto_map|trust_remote_code"):
        load_backbone(BackboneSettings(name))
    assert not ran.exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "section", "key", "value"),
    [
        ("'trust_remote_code'", "text_cfg", "tokenizer_kwargs", {"trust_remote_code": True}),
        ("not read here", "text_cfg", "tokenizer_kwargs", {"tokenizer_file": "/etc/passwd"}),
        ("not read here", "text_cfg", "tokenizer_kwargs", {"gguf_file": "x.gguf"}),
        # would fetch a pickle with nltk
        ("not read here", "text_cfg", "tokenizer_kwargs", {"reduction_mask": "syntax"}),
        ("beside the configuration", "text_cfg", "tokenizer_kwargs", {"bpe_path": "/dev/zero"}),
        ("none that a model", "text_cfg", "tokenizer_kwargs", {"bpe_path": "../vocab.gz"}),
        ("beside the configuration", "text_cfg", "tokenizer_kwargs", {"bpe_path": "a/b.gz"}),
        ("words like", "text_cfg", "tokenizer_kwargs", {"additional_special_tokens": ["a|+b"]}),
        ("not among the commits", "text_cfg", "hf_model_name", "somebody/evil"),
        ("not among the commits", "text_cfg", "hf_tokenizer_name", "somebody/evil"),
        ("none that a model", "text_cfg", "hf_model_name", "../../evil"),
        ("timm has no model", "vision_cfg", "timm_model_name", "local-dir"),
        ("none that a model", "vision_cfg", "timm_model_name", "hf-hub:somebody/evil"),
        ("none that a model", "vision_cfg", "timm_model_name", "local-dir:/tmp/evil"),
        ("not read here", "vision_cfg", "pretrained_image_path", "evil.pt"),
        ("not read here", "vision_cfg", "cache_dir", "/tmp"),
        ("not read here", "vision_cfg", "act_kwargs", {"inplace": True}),
        ("none that a model", "vision_cfg", "layers", 10**9),
        ("none that a model", "vision_cfg", "layers", [4, 10**9]),
        ("none that a model", "vision_cfg", "width", 1e300),
        ("none that a model", "text_cfg", "vocab_size", float("inf")),
        ("cut off or belongs", "vision_cfg", "width", 1 << 20),
        ("cut off or belongs", "text_cfg", "vocab_size", 1 << 20),
        ("none that a model", None, "vision_cfg", "hf-hub:somebody/evil"),
        ("no section", None, "vision_cfg", None),
        ("not read here", None, "_target_", "os.system"),
    ],
)
@pytest.mark.parametrize("kind", ["folder", "clip.json", "file"])
def test_a_configuration_passes_key_by_key(
    words: str, section: str | None, key: str, value: Any, kind: str, folder: Path, ran: Path
) -> None:
    config: dict[str, Any] = json.loads(json.dumps(MODEL))
    (config[section] if section else config)[key] = value
    settings = BackboneSettings(str(folder))
    weights = small_clip().state_dict()
    match kind:
        case "folder":
            (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
            save_file(weights, folder / "open_clip_model.safetensors")
        case "clip.json":
            (folder / "clip.json").write_text(json.dumps({"model_cfg": config}))
            save_file(weights, folder / "clip.safetensors")
        case "file":
            (folder / "mine.json").write_text(json.dumps(config))
            save_file(weights, folder / "w.safetensors")
            settings = BackboneSettings(f"{folder}/mine.json", f"{folder}/w.safetensors")
    with pytest.raises(ConfigError, match=words) as caught:
        load_backbone(settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("file", "values", "words"),
    [
        ("tokenizer_config.json", {"tokenizer_class": "RagTokenizer"}, "RagTokenizer"),
        ("tokenizer_config.json", {"tokenizer_class": "../evil"}, "is not known here"),
        ("config.json", {"model_type": "llama"}, "a text tower 'llama'"),
        ("config.json", {"num_hidden_layers": 10**7}, "none that a model"),
        ("config.json", {"hidden_size": 1 << 19}, "cut off or belongs"),
    ],
)
def test_a_text_tower_and_tokenizer_are_of_a_known_kind(
    file: str, values: dict[str, Any], words: str, folder: Path, ran: Path
) -> None:
    write_biomed(folder)
    edit(folder / file, **values)
    with pytest.raises(ConfigError, match=words):
        load_backbone(BackboneSettings(str(folder)))


def test_paths_in_a_tokenizers_settings_are_not_followed(folder: Path, ran: Path) -> None:
    """transformers opens some of them as they stand, a pipe for ever."""
    clip = write_biomed(folder)
    os.mkfifo(folder / "pipe")
    pipe = str(folder / "pipe")
    edit(
        folder / "tokenizer_config.json",
        **dict.fromkeys(("vocab_file", "tokenizer_file", "merges_file", "init_inputs"), pipe),
        chat_template="{{ 1 }}",
        name_or_path=pipe,
    )
    edit(folder / "config.json", _name_or_path=pipe, attn_implementation="somebody/kernel")
    payload(folder, ran)
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "somebody/evil"}')
    backbone = load_backbone(BackboneSettings(str(folder)))
    assert backbone.fingerprint == small.fingerprint(clip)
    assert not ran.exists()


def test_a_vocabulary_that_unpacks_to_gigabytes(folder: Path) -> None:
    write_folder(folder)
    with gzip.open(folder / small.VOCABULARY, "wb") as stream:
        for _ in range(20):
            stream.write(bytes(1 << 20))
    with pytest.raises(ConfigError, match="more than a vocabulary"):
        load_backbone(BackboneSettings(str(folder)))


# ------------------------------------------------------------------------------------- what is had


@pytest.mark.parametrize(
    ("backbone", "words"),
    [
        ("hf-hub:some/model", "may mean other files tomorrow"),
        ("hf-hub:some/model@main", "may mean other files tomorrow"),
        ("hf-hub:some/model@v1.0", "may mean other files tomorrow"),
        (f"hf-hub:some/model@{COMMIT[:12]}", "may mean other files tomorrow"),
        (f"hf-hub:some/model@{COMMIT}\n", "must be like"),
        (f"hf-hub:../../model@{COMMIT}", "must be like"),
        ("hf-hub:model", "must be like"),
        ("hf-hub:{os.environ}", "must be like"),
    ],
)
def test_names_on_the_hub_are_pinned(backbone: str, words: str, monkeypatch) -> None:
    def never(*_: object, **__: object) -> str:
        raise AssertionError("the hub was asked")

    monkeypatch.setattr(sources, "snapshot_download", never)
    with pytest.raises(ConfigError, match=words) as caught:
        load_backbone(BackboneSettings(backbone))
    assert "\n" not in str(caught.value)


def test_known_names_have_their_commit() -> None:
    name = "microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224"
    assert catalogue.pinned(f"hf-hub:{name}") == (name, catalogue.REVISIONS[name])
    assert all(len(commit) == 40 for commit in catalogue.REVISIONS.values())


def test_a_model_on_the_hub_with_a_tower_in_another_repository(
    tmp_path: Path, folder: Path, ran: Path, monkeypatch
) -> None:
    """As BiomedCLIP: the text model's config.json is of the repository that it names."""
    clip = write_biomed(folder)
    tower = "microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract"
    edit(folder / "open_clip_config.json", model_cfg__text_cfg__hf_model_name=tower)
    other = tmp_path / "tower"
    other.mkdir()
    shutil.move(folder / "config.json", other / "config.json")
    asked = []

    def snapshot_download(repository: str, *, revision: str, allow_patterns: list[str]) -> str:
        asked.append(f"{repository}@{revision}")
        assert not any(name.endswith(".py") or "*" in name for name in allow_patterns)
        return str(other if repository == tower else folder)

    monkeypatch.setattr(sources, "snapshot_download", snapshot_download)
    backbone = load_backbone(BackboneSettings(f"hf-hub:some/model@{COMMIT}"))
    assert backbone.fingerprint == small.fingerprint(clip)
    wanted = (f"some/model@{COMMIT}", f"{tower}@{catalogue.REVISIONS[tower]}")
    assert backbone.revisions == wanted
    assert backbone.revision == " + ".join(wanted)
    assert set(asked) == set(wanted)


def test_what_lies_in_the_hubs_cache_is_checked(tmp_path: Path, folder: Path, monkeypatch) -> None:
    open_clip_folder(folder)
    weights = folder / "open_clip_model.safetensors"
    blob = tmp_path / ("0" * 64)
    weights.rename(blob)
    weights.symlink_to(blob)
    monkeypatch.setattr(sources, "snapshot_download", lambda *_, **__: str(folder))
    with pytest.raises(ConfigError, match="has sha256"):
        load_backbone(BackboneSettings(f"hf-hub:some/model@{COMMIT}"))


@pytest.mark.parametrize(
    ("name", "tag", "words"),
    [
        ("ViT-B-16", "laion2b_s34b_b88k", "hf-hub:laion/CLIP-ViT-B-16-laion2B-s34B-b88K@"),
        ("ViT-B-32-quickgelu", "metaclip_400m", "replaced unnoticed"),
        ("ViT-B-16-SigLIP", "webli", "hf-hub:timm/ViT-B-16-SigLIP@"),
    ],
)
def test_tags_whose_weights_could_change_are_refused(name: str, tag: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load_backbone(BackboneSettings(name, tag))


@pytest.mark.parametrize("name", open_clip.list_models())
def test_every_published_configuration_passes(name: str) -> None:
    published = open_clip.get_model_config(name)
    config = ClipConfig.of(published, {}, name)
    for section in ("vision_cfg", "text_cfg"):
        for key, value in config.model[section].items():
            assert published[section][key] == value
    assert config.tower == published["text_cfg"].get("hf_model_name")


# ----------------------------------------------------------------------------------------- weights


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


# --------------------------------------------------------------------------------------- localizer


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


@pytest.mark.slow
def test_no_module_of_a_models_folder_can_be_imported(folder: Path, ran: Path) -> None:
    """In a process of its own, with nothing loaded before, and a terminal's prompt answered."""
    write_biomed(folder)
    payload(folder, ran)
    for place in ("both", "config"):
        PLACES[place](folder)
    code = (
        "from xaiclip.localizer.backbone import load_backbone, BackboneSettings\n"
        f"load_backbone(BackboneSettings({str(folder)!r}))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        input="y\n" * 9,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1] / "scripts")},
    )
    assert "ConfigError" in done.stderr
    assert not ran.exists()


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


def test_a_tokenizer_of_the_hub_beside_open_clips_own_text_tower(folder: Path, ran: Path) -> None:
    """As SigLIP: no config.json is there or needed."""
    write_biomed(folder)
    words = TEXT | {"hf_tokenizer_name": "some/tokenizer", "vocab_size": 14}
    config = {"embed_dim": 24, "vision_cfg": VISION, "text_cfg": words, "init_logit_bias": -10}
    edit(folder / "open_clip_config.json", model_cfg=config)
    (folder / "config.json").unlink()
    (folder / "open_clip_pytorch_model.bin").unlink()
    built = ClipConfig.of(config, {}, "test").build()
    save_file(built.state_dict(), folder / "open_clip_model.safetensors")
    backbone = load_backbone(BackboneSettings(str(folder)))
    assert backbone.fingerprint == small.fingerprint(built)
    ids = backbone.tokenizer(["a photo of the liver"])
    assert ids.shape == (1, 24)
    assert ids[0, :7].tolist() == [2, 6, 7, 8, 9, 11, 3]
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.txt").unlink(missing_ok=True)
    with pytest.raises(ConfigError, match="not among the commits"):
        load_backbone(BackboneSettings(str(folder)))
