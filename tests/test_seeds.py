"""Seeds: nothing that is tested on was drawn with the seed of anything that was trained on."""

from pathlib import Path

import numpy as np
import pytest
import yaml

from compact import phantom
from xaiclip.config import complete
from xaiclip.seeds import derived

CONFIG = Path(__file__).parents[1] / "config"


def study(name):
    return complete(yaml.safe_load((CONFIG / name).read_text(encoding="utf-8")))


def phantoms(name, split):
    """Seeds of a study's phantoms, by case."""
    config = study(name)
    cases = [
        f"{split}_{modality.lower()}_{number:03d}"
        for modality, count in config["data"]["phantom"][split].items()
        for number in range(count)
    ]
    return {case: derived(config["seed"], "phantom", case) for case in cases}


def pool():
    """Seeds of the phantoms that the compact CLIP and the compact SAM were trained on."""
    settings = study("config.yaml")["compact"]["pool"]
    return range(settings["seed"], settings["seed"] + settings["volumes"])


@pytest.mark.parametrize("name", ["config.yaml", "locked.yaml"])
def test_no_model_was_trained_on_a_test_phantom(name):
    trained = {*pool(), *phantoms("config.yaml", "train").values()}
    tested = phantoms(name, "test")
    assert len(trained) == 400 + 96
    assert len({*tested.values()}) == len(tested) > 0
    assert trained.isdisjoint(tested.values())


def test_no_setting_was_chosen_on_a_locked_phantom():
    seen, locked = (phantoms(name, "test").values() for name in ("config.yaml", "locked.yaml"))
    assert set(seen).isdisjoint(locked)


def test_the_locked_study_trains_nothing_and_changes_nothing_else():
    demo, locked = study("config.yaml"), study("locked.yaml")
    assert not phantoms("locked.yaml", "train")
    assert locked["localizer"].pop("weights") == (
        f"results/{demo['run']}/localizer/text/localizer.safetensors"
    )
    del demo["localizer"]["weights"]
    for one in (demo, locked):
        del one["run"], one["seed"]
        for split in ("train", "test"):
            del one["data"]["phantom"][split]
    assert locked == demo


@pytest.mark.parametrize(
    ("seed", "parts", "value"),
    [
        (2026, ("phantom", "test_ct_000"), 1173926909),
        (2026, ("explain", "rise"), 3585118959),
        (314159265, ("phantom", "test_mr_011"), 1435038663),
    ],
)
def test_seeds_stay_what_they_were(seed, parts, value):
    """Another seed is another study: its published numbers could not be made again."""
    assert derived(seed, *parts) == value


def test_other_seeds_draw_other_phantoms():
    small = phantom.PhantomSettings(spacing=(6.0, 7.0), thickness=(12.0, 14.0), slices=(8, 9))
    first, second = (
        phantom.generate(phantoms(name, "test")["test_ct_000"], "CT", small)
        for name in ("config.yaml", "locked.yaml")
    )
    assert first.image.shape != second.image.shape or not np.array_equal(first.label, second.label)
