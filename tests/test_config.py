"""The configuration: defaults, drift, and one sentence for each mistake."""

from pathlib import Path

import pytest
import yaml

from xaiclip import config
from xaiclip.constraints import label_table
from xaiclip.errors import ConfigError

ROOT = Path(__file__).parents[1]


def test_demo_config_shows_every_default():
    written = yaml.safe_load((ROOT / "config/config.yaml").read_text(encoding="utf-8"))
    assert written == config.default_config()


def test_readme_is_generated_from_the_schema():
    readme = (ROOT / "config/README.md").read_text(encoding="utf-8")
    assert readme == config.document(), "run `make docs`"


def test_every_key_has_a_description_and_a_default():
    for key, leaf in config.leaves(config.load_schema()):
        assert leaf.get("description"), key
        value = config.default_config()
        for part in key.split("."):
            value = value[part]


@pytest.mark.parametrize("path", sorted((ROOT / "config").glob("*.yaml")), ids=lambda p: p.name)
def test_shipped_configs_are_valid(path):
    assert config.complete(yaml.safe_load(path.read_text(encoding="utf-8")))["run"]


def test_overlay_keeps_the_other_keys_of_a_section():
    full = config.complete({"roi": {"sigma": 3}})
    assert full["roi"] == {**config.default_config()["roi"], "sigma": 3}


def test_a_segmenter_of_ones_own_needs_no_checkpoint():
    full = config.complete({"segmenter": {"factory": "mine.py:make"}})
    assert full["segmenter"]["checkpoint"] is None


def test_complete_is_idempotent_and_leaves_its_input_alone():
    given = {"data": {"labels": {1: "liver"}}, "classes": ["background", "liver"]}
    full = config.complete(given)
    assert config.complete(full) == full
    assert given == {"data": {"labels": {1: "liver"}}, "classes": ["background", "liver"]}
    assert label_table(full) == {1: "liver"}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"sed": 3}, ["'sed'", "did you mean 'seed'"]),
        ({"roi": {"sigm": 1}}, ["'roi.sigm'", "did you mean 'sigma'"]),
        ({"roi": {"sigma": "a"}}, ["'roi.sigma'", "number"]),
        ({"device": "gpu"}, ["'device'", "cuda"]),
        ({"seed": -1}, ["'seed'"]),
        ({"run": "../x"}, ["'run'"]),
        ({"methods": {"lime": {"samples": 0}}}, ["'methods.lime.samples'"]),
        ({"classes": ["liver", "background"]}, ["'classes'", "background"]),
        ({"classes": ["background", "heart"]}, ["'classes'", "heart"]),
        ({"data": {"source": "sheet"}}, ["'data.sheet'"]),
        ({"data": {"labels": {"a": "liver"}}}, ["'data.labels'", "flare22"]),
        ({"data": {"slices": {"test": {"policy": "index"}}}}, ["'data.slices.test.index'"]),
        ({"data": {"percentiles": {"low": 99.9}}}, ["'data.percentiles.low'"]),
        ({"preprocess": {"low": 95}}, ["'preprocess.low'"]),
        ({"explain": {"methods": ["shap"]}}, ["'explain.methods'", "shap"]),
        ({"explain": {"values": ["soft_dice"]}}, ["'explain.values'", "hard_dice"]),
        ({"explain": {"guidances": ["fully"]}}, ["'explain.guidances", "roi"]),
        ({"methods": {"occlusion": {"window": 600}}}, ["'methods.occlusion.window'", "512"]),
        ({"segmenter": {"model": "medsam"}}, ["'segmenter.checkpoint'", "medsam"]),
        ({"segmenter": {"model": "unet"}}, ["'segmenter.model'", "medsam"]),
        ({"segmenter": {"factory": "mine.make"}}, ["'segmenter.factory'"]),
        ({"segmenter": {"options": {"a": 1}}}, ["'segmenter.options'", "factory"]),
        ({"segmenter": {"checksum": "md5:12"}}, ["'segmenter.checksum'"]),
        ({"segmenter": {"checksum": f"md5:{'0' * 32}"}}, ["'segmenter.checksum'", "checkpoint"]),
        (
            {"segmenter": {"adapter": {"channels": {"lever": 1}}}},
            ["'segmenter.adapter.channels'", "lever"],
        ),
        ({"explain": {"batch_size": "big"}}, ["'explain.batch_size'"]),
        ({"segmenter": {"checkpoint": "auto"}}, ["'segmenter.checkpoint'", "'compact'", "medsam"]),
        ({"data": {"source": "flare"}}, ["'data.source'", "flare22"]),
        ({"data": {"cases": []}}, ["'data.cases'"]),
    ],
)
def test_mistakes_get_one_sentence_that_names_the_key(given, words):
    with pytest.raises(ConfigError) as caught:
        config.complete(given)
    message = str(caught.value)
    assert all(word in message for word in words), message
    assert "\n" not in message
