"""Code, names and addresses that somebody else's model brings."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
from safetensors.torch import save_file

import test_backbone as small
from foreign_model import MODEL
from test_backbone import COMMIT, TEXT, VISION, small_clip, write_biomed, write_folder
from xaiclip.errors import ConfigError
from xaiclip.localizer import sources
from xaiclip.localizer.backbone import BackboneSettings, load_backbone
from xaiclip.localizer.clip_config import ClipConfig
from xaiclip.published import catalogue


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
