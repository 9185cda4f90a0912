"""Files and names that a configuration leads to, looked at before the first job."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from xaiclip.config import prechecks
from xaiclip.config.prechecks import check_backbone, check_factory, check_file, check_phantom
from xaiclip.errors import ConfigError

ROOT = Path(__file__).parents[1]
COMPACT = ROOT / "resources" / "compact"
MODEL = {"embed_dim": 8, "vision_cfg": {"layers": 4}, "text_cfg": {}}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Backbones of every kind, good and bad."""
    monkeypatch.chdir(tmp_path)
    for name, content in {
        "good.json": MODEL,
        "bad.json": None,
        "list.json": [1],
        "part.json": {"embed_dim": 8},
        "own/clip.json": {"model_cfg": MODEL},
        "own/clip.safetensors": "weights",
        "hub/open_clip_config.json": {"model_cfg": MODEL},
        "hub/open_clip_pytorch_model.bin": "weights",
        "bare/open_clip_config.json": {"model_cfg": MODEL},
        "lone/clip.json": {"model_cfg": MODEL},
        "broken/clip.json": None,
        "other/clip.json": {},
        "empty/readme": "x",
        "weights.pt": "weights",
    }.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        text = "{" if content is None else content
        path.write_text(text if isinstance(text, str) else json.dumps(text))
    (tmp_path / "empty.pt").touch()
    (tmp_path / "page.pt").write_text("<!DOCTYPE html><html>")
    (tmp_path / "pointer.pt").write_text("version https://git-lfs.github.com/spec/v1")
    return tmp_path


@pytest.mark.parametrize(
    ("backbone", "pretrained", "blocks"),
    [
        ("compact", None, [1, 6]),
        ("ViT-B-32", "openai", None),
        ("ViT-B-32", "laion2b-s34b-b79K", [12]),
        ("ViT-B-32-quickgelu", "openai", None),
        ("ViT-B-32", "weights.pt", None),
        ("ViT-B-16-SigLIP", "webli", None),
        ("good.json", "weights.pt", [4]),
        ("own", None, [4]),
        ("hub", None, None),
        ("hf-hub:microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224", None, None),
    ],
)
def test_backbones_that_are_fine(folder, backbone, pretrained, blocks):
    check_backbone(backbone, pretrained, blocks, COMPACT)


@pytest.mark.parametrize(
    ("backbone", "pretrained", "blocks", "words"),
    [
        ("compact", "openai", None, ["'localizer.pretrained'", "brings its weights"]),
        ("compact", None, [7], ["'localizer.blocks'", "block 7", "has 6"]),
        ("own", "weights.pt", None, ["'localizer.pretrained'"]),
        ("hf-hub:a/b", "openai", None, ["'localizer.pretrained'"]),
        ("hf-hub:x", None, None, ["'localizer.backbone'", "owner/name@commit"]),
        ("hf-hub:a/b", None, None, ["'localizer.backbone'", "the commit"]),
        ("hf-hub:a/b@main", None, None, ["'localizer.backbone'", "the commit"]),
        ("hf-hub:{os.environ}", None, None, ["'localizer.backbone'", "owner/name"]),
        ("ViT-B-33", "openai", None, ["'localizer.backbone'", "did you mean", "ViT-B-32"]),
        ("qwertz", "openai", None, ["'localizer.backbone'", "nor a model of open_clip"]),
        ("ViT-B-32", None, None, ["'localizer.pretrained'", "is empty", "openai"]),
        ("ViT-B-32", "opnai", None, ["'localizer.pretrained'", "'opnai'", "openai"]),
        ("ViT-B-32", "gone.pt", None, ["'localizer.pretrained'", "no file 'gone.pt'"]),
        ("ViT-B-32", "gone/weights", None, ["'localizer.pretrained'", "no file"]),
        ("ViT-B-32", "empty.pt", None, ["'localizer.pretrained'", "is empty"]),
        ("ViT-B-32", "page.pt", None, ["'localizer.pretrained'", "web page"]),
        ("ViT-B-32", "pointer.pt", None, ["'localizer.pretrained'", "git lfs pull"]),
        ("ViT-B-32", "openai", [13], ["'localizer.blocks'", "has 12"]),
        ("gone.json", "openai", None, ["'localizer.backbone'", "no file 'gone.json'"]),
        ("gone/folder", None, None, ["'localizer.backbone'", "no file 'gone/folder'"]),
        ("bad.json", "weights.pt", None, ["'localizer.backbone'", "bad.json is no JSON"]),
        ("list.json", "weights.pt", None, ["'localizer.backbone'", "no configuration"]),
        ("part.json", "weights.pt", None, ["'localizer.backbone'", "lacks 'vision_cfg'"]),
        ("good.json", None, None, ["'localizer.pretrained'", "is empty"]),
        ("good.json", "openai", None, ["'localizer.pretrained'", "none known"]),
        ("weights.pt", None, None, ["'localizer.backbone'", "JSON file"]),
        ("lone", None, None, ["'localizer.backbone'", "lacks clip.safetensors"]),
        ("bare", None, None, ["'localizer.backbone'", "lacks *.safetensors or *.bin"]),
        ("broken", None, None, ["'localizer.backbone'", "clip.json is no JSON"]),
        ("other", None, None, ["'localizer.backbone'", "'model_cfg'"]),
        ("empty", None, None, ["'localizer.backbone'", "neither clip.json"]),
    ],
)
def test_backbones_that_could_not_be_loaded(folder, backbone, pretrained, blocks, words):
    with pytest.raises(ConfigError) as caught:
        check_backbone(backbone, pretrained, blocks, COMPACT)
    message = str(caught.value)
    assert all(word in message for word in words), message
    assert "\n" not in message


def test_models_and_tags_are_those_that_open_clip_lists():
    open_clip = pytest.importorskip("open_clip")
    assert set(prechecks._names()) == set(open_clip.list_models())
    tags = prechecks._tags()
    listed = {}
    for model, tag in open_clip.list_pretrained():
        listed.setdefault(model, set()).add(tag)
    assert {model: set(own) for model, own in tags.items()} == listed


def test_looking_loads_no_model_library():
    text = (
        "import sys; from pathlib import Path; from xaiclip.config import prechecks; "
        f"prechecks.check_backbone('ViT-L-14', 'openai', [12], Path({str(COMPACT)!r})); "
        "assert not {'torch', 'open_clip', 'scipy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", text], check=True, cwd=ROOT / "scripts")


FACTORY = """
import functools
def make(level, other=1, *, checkpoint=None):
    pass
def any_(**options):
    pass
made = functools.partial(make, 1)
"""


@pytest.mark.parametrize(
    ("factory", "options", "words"),
    [
        ("gone.py:make", {}, ["no file 'gone.py'"]),
        ("own.py:mak", {}, ["no function 'mak'"]),
        ("own.py:make", {"levl": 1}, ["'segmenter.options'", "'levl'", "none of 'make'"]),
        ("own.py:make", {"checkpoint": 1}, ["'checkpoint' is given by itself"]),
        ("bad.py:make", {}, ["'bad.py' is no Python"]),
        ("own.py:make", {"level": 1, "other": 2}, None),
        ("own.py:any_", {"what": 1}, None),
        ("own.py:made", {}, None),
    ],
)
def test_factories(tmp_path, monkeypatch, factory, options, words):
    monkeypatch.chdir(tmp_path)
    Path("own.py").write_text(FACTORY)
    Path("bad.py").write_text("def make(:\n")
    if words is None:
        assert check_factory(factory, options) == Path("own.py")
        return
    with pytest.raises(ConfigError) as caught:
        check_factory(factory, options)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_phantoms_and_files(tmp_path):
    check_phantom({"max_inplane": 100}, ["max_inplane", "noise"])
    with pytest.raises(ConfigError, match=r"settings\.max_inplan'.*did you mean 'max_inplane'"):
        check_phantom({"max_inplan": 100}, ["max_inplane", "noise"])
    with pytest.raises(ConfigError, match=r"'segmenter\.checkpoint': there is no file"):
        check_file(str(tmp_path / "none.pt"), "segmenter.checkpoint")
    with pytest.raises(ConfigError, match=r"'segmenter\.checkpoint'"):
        check_file(str(tmp_path), "segmenter.checkpoint")
