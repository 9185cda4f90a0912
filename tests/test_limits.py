"""The least that the schema allows is enough: no method, map maker or mask crashes on it."""

from importlib import import_module

import numpy as np
import pytest

from explain_fakes import context, picture, table
from xaiclip.config import default_config, leaves, load_schema
from xaiclip.masks.roi import RoiSettings, roi_mask
from xaiclip.preprocess import Letterbox, PreprocessSettings, enhance

pytestmark = pytest.mark.slow

LIMITS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
SMALL = {
    "occlusion": {"window": 128, "stride": 128},
    "lime": {"samples": 8, "min_samples": 4, "superpixels": ["slic"]},
    "rise": {"masks": 8},
}


def least(section):
    """Every number of a section at its lower limit, and just above an open one."""
    for key, leaf in leaves(load_schema()):
        if key.startswith(section) and any(name in leaf for name in LIMITS):
            name = key.removeprefix(f"{section}.")
            if "minimum" in leaf:
                yield name, leaf["minimum"]
            elif "exclusiveMinimum" in leaf:
                yield name, leaf["exclusiveMinimum"] + 1e-6


def nested(settings, name, value):
    *sections, last = name.split(".")
    node = settings
    for section in sections:
        node[section] = {**node[section]}
        node = node[section]
    node[last] = value
    return settings


CASES = [
    (method, *one)
    for method in SMALL
    for one in least(f"methods.{method}")
    # how small a stride may be hangs on the window (test_config.py)
    if one[0] != "stride"
]


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize(("method", "name", "value"), CASES)
def test_a_method_at_a_limit(method, name, value, guided):
    settings = {**default_config()["methods"][method], **SMALL[method]}
    settings = nested(settings, name, value)
    if name == "window":
        settings["stride"] = value
    if name.startswith("quickshift"):
        settings["superpixels"] = ["quickshift"]
    elif name in ("scale", "sigma", "min_size"):
        settings["superpixels"] = ["felzenszwalb"]
    module = import_module(f"xaiclip.explain.{method}")
    ctx = context(guided=guided, settings=settings)
    made = module.plans(ctx)
    rng = np.random.default_rng(0)
    tables = {key: table(rng.random((plan.n_forwards, 2))) for key, plan in made.items()}
    maps = module.aggregate(made, tables, ctx)
    assert {one.organ for one in maps} == set(ctx.organs)
    for one in maps:
        assert np.isfinite(one.map).any()


@pytest.mark.parametrize(("name", "value"), list(least("preprocess")))
def test_preprocessing_at_a_limit(name, value):
    settings = {**default_config()["preprocess"], name: value}
    made = enhance(picture(shape=(settings["size"],) * 2), PreprocessSettings(**settings))
    assert made.shape == (settings["size"],) * 2
    assert np.ptp(made) > 0


@pytest.mark.parametrize(("name", "value"), list(least("roi")))
@pytest.mark.parametrize("rule", ["threshold", "top_fraction"])
def test_an_roi_at_a_limit(name, value, rule):
    probability = picture(shape=(64, 64)) / np.float32(255)
    settings = {**default_config()["roi"], "rule": rule, name: value}
    mask = roi_mask(probability, Letterbox.fit((64, 64), 64), RoiSettings(**settings))
    assert mask.any()
