"""Methods and models that other packages bring."""

import sys

import numpy as np
import pytest

import xaiclip
from xaiclip import plugins
from xaiclip.config import complete
from xaiclip.config import methods as method_sources
from xaiclip.errors import ConfigError
from xaiclip.explain import method as load_method
from xaiclip.models.segmenters.loading import load_segmenter
from xaiclip.resources import shipped

METHOD = '''
"""Hide one half, then the other."""

from dataclasses import dataclass

import numpy as np

from xaiclip.explain.plan import WindowPlan
from xaiclip.explain.settings import setting


@dataclass(frozen=True)
class PlanSettings:
    """Where it is cut."""

    cut: int = setting(256, "First column of the second half.", minimum=1, maximum=511)


def plans(context):
    cut = context.read(PlanSettings).cut
    windows = np.array([[0, 0, cut, 512], [cut, 0, 512, 512]], np.int32)
    return {"halves": WindowPlan(np.ones((2, len(context.organs)), bool), 2, windows)}


def aggregate(plans, tables, context):
    cut, table = context.read(PlanSettings).cut, tables["halves"]
    drop = table.baseline_of(context.explained) - table.of(context.explained)
    maps = np.empty((*drop.shape[1:], 512, 512), np.float32)
    maps[..., :cut] = drop[0][..., None, None]
    maps[..., cut:] = drop[1][..., None, None]
    return context.attributions("half", ["halves"], maps, primary=True)
'''
MODEL = """
from torch import nn


def make(device, width=2):
    return nn.Conv2d(1, width, 1, bias=False).to(device)


nothing = 3
"""
ENTRIES = """
[xaiclip.methods]
halves = brought.halves

[xaiclip.models]
pointwise = brought.models:make
nothing = brought.models:nothing
absent = brought.models:absent
"""


def distribution(folder, name, entries):
    metadata = folder / f"{name}-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(entries)


@pytest.fixture
def brought(tmp_path, monkeypatch):
    """An installed package with a method and models."""
    package = tmp_path / "brought"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "halves.py").write_text(METHOD)
    (package / "models.py").write_text(MODEL)
    distribution(tmp_path, "brought", ENTRIES)
    monkeypatch.syspath_prepend(tmp_path)
    method_sources._brought.cache_clear()
    yield tmp_path
    method_sources._brought.cache_clear()
    for name in [name for name in sys.modules if name.partition(".")[0] == "brought"]:
        del sys.modules[name]


def test_a_method_that_a_package_brings_explains(brought):
    scan = shipped("compact", "example_ct.nii.gz")
    maps = xaiclip.explain(
        "compact", scan, {"liver": (19, 48, 148, 164)}, "halves", cut=128, device="cpu"
    )
    assert (maps.n_forwards, maps.variants) == (3, ("half",))
    left, right = np.unique(maps["liver"][:, :50]), np.unique(maps["liver"][:, 70:])
    assert len(left) == len(right) == 1
    # the liver lies on the left of the picture, most of it right of the first quarter
    assert left != right
    with pytest.raises(ConfigError, match=r"setting 'halves\.cut' is not valid: 600"):
        xaiclip.explain("compact", scan, {"liver": (19, 48, 148, 164)}, "halves", cut=600)


def test_the_config_knows_it(brought):
    assert complete({"methods": {"halves": {}}})["methods"]["halves"] == {"cut": 256}
    with pytest.raises(ConfigError, match=r"'methods\.halves\.cutt' is unknown; did you mean"):
        complete({"methods": {"halves": {"cutt": 3}}})


def test_a_model_that_a_package_brings_is_loaded_with_its_options(brought):
    made = xaiclip.load_model("pointwise", channels={"liver": 1}, width=4, device="cpu")
    assert made.name == "pointwise"
    assert made.module.out_channels == 4
    with pytest.raises(ConfigError, match=r"model 'pointwise'.*do not fit the function"):
        xaiclip.load_model("pointwise", channels={"liver": 1}, depht=4)


def test_the_config_knows_a_model_that_a_package_brings(brought):
    section = {"model": "pointwise", "options": {"width": 4}, "adapter": {"channels": {"liver": 1}}}
    full = complete({"segmenter": section})["segmenter"]
    made = load_segmenter({**full, "checkpoint": None}, "cpu", "fp32")
    assert (made.name, made.module.out_channels) == ("pointwise", 4)
    with pytest.raises(ConfigError, match=r"'segmenter\.options' is set"):
        complete({"segmenter": {"options": {"width": 4}}})
    with pytest.raises(ConfigError, match=r"'segmenter\.model' is 'pointwize'"):
        complete({"segmenter": {**section, "model": "pointwize"}})


def test_a_study_notices_another_version_of_the_package(brought):
    first = plugins.stated(plugins.MODELS, "pointwise")
    assert first == "brought.models:make of brought 1.0"
    metadata = brought / "brought-1.0.dist-info" / "METADATA"
    metadata.write_text(metadata.read_text().replace("Version: 1.0", "Version: 1.1"))
    assert plugins.stated(plugins.MODELS, "pointwise") == first.replace("1.0", "1.1")
    assert plugins.stated(plugins.MODELS, "compact") is None


def test_what_is_no_model_is_refused(brought):
    with pytest.raises(ConfigError, match=r"'nothing' is unknown: use compact.*pointwise"):
        xaiclip.load_model("nothing")
    with pytest.raises(ConfigError, match=r"'absent'.*cannot be imported.*uninstall the package"):
        xaiclip.load_model("absent")


def test_two_packages_with_one_name_are_refused(brought):
    distribution(brought, "other", "[xaiclip.models]\npointwise = brought.halves:plans\n")
    with pytest.raises(ConfigError, match="two packages bring 'pointwise'"):
        plugins.brought(plugins.MODELS)


def test_the_same_thing_brought_twice_is_no_conflict(brought):
    """As where a package lies in two folders of Python's path."""
    distribution(brought, "other", "[xaiclip.models]\npointwise = brought.models:make\n")
    assert plugins.brought(plugins.MODELS)["pointwise"].value == "brought.models:make"


def test_two_packages_with_one_method_are_refused(brought):
    distribution(brought, "other", "[xaiclip.methods]\nhalves = brought.models\n")
    for look in (lambda: load_method("halves"), lambda: complete({"methods": {"halves": {}}})):
        with pytest.raises(ConfigError, match="two packages bring 'halves'"):
            look()


def test_a_method_that_cannot_be_imported_is_told_in_a_sentence(brought):
    (brought / "brought" / "halves.py").write_text("raise RuntimeError('too old')")
    sys.modules.pop("brought.halves", None)
    with pytest.raises(ConfigError, match=r"'halves'.*cannot be imported \(RuntimeError: too old"):
        load_method("halves")


def test_where_nothing_is_installed_nothing_is_brought():
    assert "pointwise" not in plugins.brought(plugins.MODELS)
    assert plugins.load(plugins.MODELS, "pointwise") is None
