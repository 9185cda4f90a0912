"""The configuration: defaults, drift, and one sentence for each mistake."""

import datetime
import re
from pathlib import Path

import numpy as np
import pytest
import yaml

from xaiclip import config
from xaiclip.config.constraints import label_table
from xaiclip.errors import ConfigError

ROOT = Path(__file__).parents[1]


def test_demo_config_shows_every_default():
    written = yaml.safe_load((ROOT / "config/config.yaml").read_text(encoding="utf-8"))
    assert written == config.default_config()


def test_readme_is_generated_from_the_schema():
    readme = (ROOT / "config/README.md").read_text(encoding="utf-8")
    assert readme == config.document(), "run `make docs`"


@pytest.mark.slow
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
        ({"explain": {"values": ["dice"]}}, ["'explain.values", "hard_dice"]),
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
        (
            {"localizer": {"weights": "compact", "backbone": "ViT-L-14", "pretrained": "openai"}},
            ["'localizer.weights'", "'ViT-L-14'", "train one"],
        ),
        (
            {"localizer": {"weights": "compact"}, "classes": ["background", "liver"]},
            ["'localizer.weights'", "right kidney", "'classes'"],
        ),
        ({"data": {"source": "flare"}}, ["'data.source'", "flare22"]),
        ({"data": {"cases": []}}, ["'data.cases'"]),
        # sources, and what is given and not read
        ({"data": {"sheet": "a.tsv", "source": "phantom"}}, ["'data.sheet'", "'phantom'"]),
        ({"data": {"sheet": "a.tsv", "source": "chaos"}}, ["'data.sheet'", "'chaos'"]),
        ({"data": {"sheet": "a.tsv", "phantom": {"test": {"CT": 3}}}}, ["'data.phantom.test'"]),
        ({"data": {"source": "saros", "phantom": {"settings": {"bias": 0}}}}, ["settings'"]),
        ({"data": {"slices": {"test": {"index": 3}}}}, ["'data.slices.test.index'", "policy"]),
        ({"data": {"slices": {"test": {"every": 2}}}}, ["'data.slices.test.every'", "policy"]),
        ({"data": {"slices": {"test": {"count": 2}}}}, ["'data.slices.test.count'", "policy"]),
        ({"data": {"slices": {"train": {"policy": "found"}}}}, ["train.policy'", "localizer"]),
        (
            {"data": {"labels": {1: "spleen", 2: "liver"}}, "classes": ["background", "liver"]},
            ["1"],
        ),
        ({"segmenter": {"factory": "a.py:b", "model": "sam_vit_b"}}, ["'segmenter.model'"]),
        ({"segmenter": {"factory": "a.py:b", "attention": "stock"}}, ["'segmenter.attention'"]),
        ({"segmenter": {"adapter": {"depth": 3}}}, ["'segmenter.adapter.depth'", "factory"]),
        ({"methods": {"limee": {"samples": 9}}}, ["'methods.limee'", "did you mean 'lime'"]),
        ({"methods": {"../rise": {}}}, ["'methods.../rise'"]),
        ({"methods": {"rise": {"mask": 9}}}, ["'methods.rise.mask'", "did you mean 'masks'"]),
        ({"methods": {"lime": {"slic": {"sigma": 1}}}}, ["'methods.lime.slic.sigma'"]),
        # numbers that look like others
        ({"localizer": {"learning_rate": "1e-3"}}, ["'localizer.learning_rate'", "write 0.001"]),
        ({"roi": {"sigma": "1,5"}}, ["'roi.sigma'", "write 1.5"]),
        ({"run": 10}, ["'run' is 10", "quotes"]),
        ({"run": datetime.date(2024, 1, 1)}, ["'run' is 2024-01-01", "quotes"]),
        ({"run": True}, ["'run' is True", "quotes"]),
        ({"data": {"cases": [10]}}, ["'data.cases.0' is 10", "quotes"]),
        ({"figures": {"case": 12}}, ["'figures.case' is 12", "quotes"]),
        ({"roi": {"sigma": float("nan")}}, ["'roi.sigma'", "finite"]),
        ({"data": {"window": {"level": float("inf")}}}, ["'data.window.level'", "finite"]),
        ({"data": {"labels": {1: "liver", "1": "spleen"}}}, ["'data.labels'", "'1' twice"]),
        ({"data": {"labels": {0: "liver"}}, "classes": ["background", "liver"]}, ["id 0"]),
        # keys that have to fit each other
        ({"methods": {"occlusion": {"window": 64, "stride": 65}}}, ["stride'", "window (64)"]),
        ({"methods": {"occlusion": {"window": 8, "stride": 1}}}, ["stride'", "windows"]),
        ({"methods": {"lime": {"samples": 8}}}, ["'methods.lime.min_samples'", "(8)"]),
        (
            {"methods": {"lime": {"superpixels": ["slic"], "variants": ["quickshift"]}}},
            ["'methods.lime.variants'", "'quickshift'", "'methods.lime.superpixels'"],
        ),
        ({"preprocess": {"size": 64, "tiles": 17}}, ["'preprocess.tiles'"]),
        (
            {"segmenter": {"factory": "a.py:b", "adapter": {"in_channels": 3, "mean": [1, 2]}}},
            ["'segmenter.adapter.mean'", "in_channels"],
        ),
        (
            {
                "segmenter": {
                    "factory": "a.py:b",
                    "adapter": {"channels": {"liver": 1, "spleen": [1]}},
                }
            },
            ["channel 1", "'liver'", "'spleen'"],
        ),
        ({"figures": {"organ": "heart"}}, ["'figures.organ'", "liver"]),
    ],
)
def test_mistakes_get_one_sentence_that_names_the_key(given, words):
    with pytest.raises(ConfigError) as caught:
        config.complete(given)
    message = str(caught.value)
    assert all(word in message for word in words), message
    assert "\n" not in message


def test_a_sheet_without_a_source_is_the_source():
    assert config.complete({"data": {"sheet": "a.tsv"}})["data"]["source"] == "sheet"
    shown = config.default_config()
    shown["data"]["sheet"] = "a.tsv"
    given = {"data": {"sheet": "a.tsv"}}
    assert config.complete(shown, given=given)["data"]["source"] == "sheet"
    with pytest.raises(ConfigError, match=r"'data\.sheet' is set"):
        config.complete(shown, given={"data": {"sheet": "a.tsv", "source": "phantom"}})
    shown["data"]["source"] = "saros"
    with pytest.raises(ConfigError, match=r"'data\.sheet' is set"):
        config.complete(shown, given=given)


def test_whole_numbers_become_integers():
    window = config.complete({"methods": {"occlusion": {"window": 64.0}}})
    assert isinstance(window["methods"]["occlusion"]["window"], int)


#: Key → values that would crash a job, or give numbers without meaning.
NONSENSE = {
    "run": ["", "a/b", "..", "demo\n", "a b", "a|b", "<b>", "x" * 81, "{a}"],
    "seed": [-1, 2**32, 0.5],
    "classes": [["background"], [], ["background", "liver", "liver"]],
    "data.window.level": [1e6],
    "data.window.width": [0, -1, 0.001],
    "data.percentiles.low": [-1, 101, 99.5],
    "data.percentiles.high": [0, 0.5, 101],
    "data.slices.test.every": [0, -1],
    "data.slices.test.count": [0, -1],
    "data.phantom.test.CT": [-1, 0.5],
    "downloads": ["", "a$(b)", "a{b}", "a`b`", 'a"b', "a'b", "a\\b", "a\nb", "a\x1bb", "a<b>"],
    "cases_per_job": [0, -1],
    "preprocess.size": [0, 1, 31, 100000],
    "preprocess.background_threshold": [-1, 255, 256],
    "preprocess.low": [-1, 101, 95],
    "preprocess.high": [0, 5, 101],
    "preprocess.clip": [-1],
    "preprocess.tiles": [0, 65],
    "localizer.weights": ["a{1}", "$HOME/x", ""],
    "localizer.backbone": ["", "a{os.environ}", "x\n"],
    "localizer.blocks": [[], [0], [1, 1]],
    "localizer.context": [0, 65],
    "localizer.epochs": [0],
    "localizer.batch_size": [0],
    "localizer.learning_rate": [0, -1, 2],
    "localizer.validation_fraction": [-0.1, 0.95, 1],
    "localizer.views": [0],
    "roi.threshold": [0, 1, -1],
    "roi.top_fraction": [0, 1],
    "roi.sigma": [-1, 1000],
    "roi.margin": [-1, 1000],
    "roi.min_pixels": [-1],
    "segmenter.checkpoint": ["$(x)", "a\nb"],
    "segmenter.checksum": ["md5:" + "0" * 32 + "\n", "sha256:00"],
    "segmenter.factory": ["a.py:b\n", "a$b.py:c", "a.py", "a.py:1"],
    "segmenter.adapter.size": [0, 8],
    "segmenter.adapter.in_channels": [0],
    "segmenter.adapter.std": [0, -1, [1, 0]],
    "segmenter.adapter.channels": [{}, {"liver": -1}, {"liver": []}, {"li/ver": 1}],
    "segmenter.adapter.depth": [-1],
    "explain.methods": [[], ["lime", "lime"], ["lime\n"]],
    "explain.guidances": [[]],
    "explain.values": [[]],
    "explain.batch_size": [0, "auto\n"],
    "methods.occlusion.window": [0, 1, 513],
    "methods.occlusion.stride": [0, -1, 513],
    "methods.occlusion.min_overlap": [-0.1, 1],
    "methods.occlusion.budget": [0, 1.1],
    "methods.lime.superpixels": [[], ["sticks"], ["slic", "slic"]],
    "methods.lime.variants": [[], ["sticks"]],
    "methods.lime.samples": [0, 1, 3],
    "methods.lime.min_samples": [0, 1],
    "methods.lime.scale": [0, 1e-6],
    "methods.lime.sigma": [-1],
    "methods.lime.min_size": [0, 1],
    "methods.lime.scales": [[], [0]],
    "methods.lime.slic.n_segments": [0, 1],
    "methods.lime.slic.compactness": [0],
    "methods.lime.quickshift.kernel_size": [0, 0.5],
    "methods.lime.quickshift.max_dist": [0, 0.5],
    "methods.lime.quickshift.ratio": [-0.1, 1.1],
    "methods.lime.stop": [0, 1],
    "methods.integrated_gradients.steps": [0, 1],
    "methods.integrated_gradients.noise": ["smooth"],
    "methods.integrated_gradients.samples": [0, 1],
    "methods.integrated_gradients.deviation": [0, 1.1],
    "methods.integrated_gradients.variants": [[], ["unsigned"]],
    "methods.gradient_shap.samples": [0, 1],
    "methods.gradient_shap.deviation": [-0.1, 1.1],
    "methods.grad_cam.variants": [["absolute"]],
    "methods.rise.masks": [0, 1],
    "methods.rise.probability": [0, 1, 0.001],
    "methods.rise.cells": [0, 1, 65],
    "methods.rise.estimators": [[], ["median"]],
    "methods.rise.stop": [0, 1],
    "methods.shapley.units": ["organ"],
    "methods.shapley.regions": ["body"],
    "methods.shapley.exact": [0, 17],
    "methods.shapley.samples": [0, 3],
    "methods.shapley.slic.n_segments": [0, 1],
    "methods.shapley.slic.compactness": [0],
    "methods.shapley.variants": [[]],
    "statistics.resamples": [0, 1, 99],
    "statistics.confidence": [0, 1],
    "figures.case": ["../x", "a\n", "</script>"],
    "figures.organ": ["</script><script>", "liver\n", ""],
    "figures.dpi": [0, 1, 10**6],
}


@pytest.mark.parametrize(
    ("key", "value"),
    [(key, value) for key, values in NONSENSE.items() for value in values],
    ids=lambda value: str(value)[:40].encode("unicode_escape").decode(),
)
def test_a_value_without_meaning_is_refused_by_its_key(key, value):
    given = value
    for part in reversed(key.split(".")):
        given = {part: given}
    with pytest.raises(ConfigError) as caught:
        config.complete(given)
    message = str(caught.value)
    assert key.split(".")[-1] in message or key.rpartition(".")[0] in message
    assert "\n" not in message
    assert "\x1b" not in message


def test_every_number_of_a_study_has_values_that_are_refused():
    """But for those that no study reads, or that may be any index."""
    numbers = {
        key
        for key, leaf in config.leaves(config.load_schema())
        if {"integer", "number"} & set(np.atleast_1d(leaf.get("type", [])))
    }
    without = {key for key in numbers if key.startswith("compact.")}
    without |= {"data.slices.train.index", "data.slices.train.every", "data.slices.test.index"}
    without |= {"data.slices.train.count"}
    without |= {"data.phantom.train.CT", "data.phantom.train.MR", "data.phantom.test.MR"}
    without |= {"segmenter.adapter.mean"}
    assert numbers - without <= set(NONSENSE)


def test_patterns_of_the_schema_are_matched_whole():
    def patterns(node):
        if isinstance(node, dict):
            if isinstance(node.get("pattern"), str):
                yield node["pattern"]
            for child in node.values():
                yield from patterns(child)
        elif isinstance(node, list):
            for child in node:
                yield from patterns(child)

    found = list(patterns(config.load_schema()))
    assert len(found) > 5
    for pattern in found:
        assert re.fullmatch(r"\^.*\$", pattern)


CLASSES = [
    *("prostate/uterus", "../../x", "..", ".", "", " liver", "liver ", "a  b", "a\nb", "liver\n"),
    *("it's", 'a"b', "a|b", "<b>", "{x}", "a\\b", "$x", "`x`", "a*", "-a", "_a", "a/", "\u202eb"),
    "x" * 61,
]


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("place", ["classes", "labels", "channels"])
def test_class_names_that_are_no_file_names(name, place):
    given = {
        "classes": {"classes": ["background", name], "data": {"labels": {1: name}}},
        "labels": {"data": {"sheet": "s.tsv", "labels": {1: "liver", 2: name}}},
        "channels": {"segmenter": {"factory": "a.py:b", "adapter": {"channels": {name: 1}}}},
    }[place]
    if place == "labels":
        given["classes"] = ["background", "liver"]
    with pytest.raises(ConfigError) as caught:
        config.complete(given)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("right kidney", "right_kidney"),
        ("liver", "Liver"),
        ("STRASSE", "straße"),
        ("ﬁbula", "fibula"),  # a ligature
    ],
)
def test_class_names_whose_files_would_be_one(one, other):
    labels = {1: one, 2: other}
    given = {"classes": ["background", one, other], "data": {"sheet": "s.tsv", "labels": labels}}
    with pytest.raises(ConfigError, match="would have the same name"):
        config.complete(given)


@pytest.mark.parametrize(
    "name", ["liver", "right kidney", "L1", "v_cava", "T-12", "Leber ü", "肝臓"]
)
def test_class_names_of_any_language(name):
    given = {"classes": ["background", name], "data": {"sheet": "s.tsv", "labels": {7: name}}}
    assert config.complete(given)["classes"] == ["background", name]


@pytest.mark.parametrize("text", ["<script>", "a\x00b", "a\u2028b", "\x1b[31m"])
def test_text_that_is_more_than_words_is_refused_wherever_it_stands(text):
    for given in (
        {"segmenter": {"factory": "a.py:b", "options": {"x": [{"y": text}]}}},
        {"segmenter": {"factory": "a.py:b", "options": {text: 1}}},
        {"data": {"cases": [text]}},
        {"localizer": {"pretrained": text}},
        {text: 1},
    ):
        with pytest.raises(ConfigError) as caught:
            config.complete(given)
        assert text not in str(caught.value)
