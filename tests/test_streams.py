"""Files of many slices are written slice after slice: memory does not grow with them."""

from __future__ import annotations

import weakref
from dataclasses import dataclass

import numpy as np
import pytest

from isolation_study import CLASSES
from stored_maps import load_attributions, load_rois
from xaiclip.data.record import SliceName
from xaiclip.errors import Skip
from xaiclip.explain.attribution import Attribution, _Shared, save_attributions
from xaiclip.explain.recipes import Recipe
from xaiclip.files import load_meta, open_arrays, writing_arrays
from xaiclip.localizer.probabilities import save_probabilities
from xaiclip.masks.roi import Roi, save_rois
from xaiclip.masks.segmented import open_masks, save_masks


def watched(make, count=6):
    """What ``make`` makes, one after the other; fails if more than two are held."""
    alive = []
    for number in range(count):
        one, payload = make(number)
        alive.append(weakref.ref(payload))
        del payload
        held = sum(ref() is not None for ref in alive)
        assert held <= 2, f"{held} of {number + 1} are held"
        yield one
        del one


def an_array(number, shape=(9, 7)):
    return np.random.default_rng(number).random(shape).astype(np.float32)


def test_maps_are_written_one_after_the_other(tmp_path):
    def make(number):
        one = an_array(number, (512, 512))
        return ("a", number, Attribution("liver", "plain", "soft_dice", one, ("p",))), one

    save_attributions(tmp_path / "maps.npz", watched(make))
    maps = load_attributions(tmp_path / "maps.npz")
    assert [index for _, index, _ in maps] == list(range(6))
    for _, index, one in maps:
        np.testing.assert_array_equal(one.map, an_array(index, (512, 512)))


@dataclass(frozen=True, eq=False)
class Doubled(Recipe):
    """A map that is twice its base."""

    base: np.ndarray

    def map(self):
        return 2 * self.base


def test_a_recipe_s_array_is_its_own_wherever_another_lay(tmp_path):
    """Of arrays that are gone, the next ones may take the place in memory."""

    def make(number):
        one = Doubled(an_array(number, (512, 512)))
        many = [
            Attribution(organ, "plain", "soft_dice", one.map(), ("p",), recipe=one)
            for organ in ("liver", "spleen")
        ]
        return [("a", number, each) for each in many], one.base

    save_attributions(tmp_path / "maps.npz", (each for many in watched(make) for each in many))
    maps = load_attributions(tmp_path / "maps.npz")
    assert len(maps) == 12
    for _, index, one in maps:
        np.testing.assert_array_equal(one.map, 2 * an_array(index, (512, 512)))
        assert isinstance(one.recipe, Doubled)
    with open_arrays(tmp_path / "maps.npz") as stored:
        assert sum(name.startswith("shared/") for name in stored) == 6  # two organs share one


def test_a_place_in_memory_is_no_name():
    shared = _Shared()
    first = np.zeros(3)
    assert shared.name(first) == ("shared/0", True)
    assert shared.name(first) == ("shared/0", False)
    place, later = id(first), [np.ones(3)]
    del first
    while id(later[-1]) != place:
        later.append(np.ones(3))
        assert len(later) < 10**6
    assert shared.name(later[-1]) == ("shared/1", True)


def test_rois_masks_and_probabilities_are_written_one_after_the_other(tmp_path):
    skips: list[Skip] = []

    def roi(number):
        if number == 3:  # what is left out on the way is told, too
            skips.append(Skip("a", "roi", "why", number))
        mask = an_array(number) > 0.5
        return (f"a/{number}", {"liver": {"body": Roi(mask, None)}}), mask

    save_rois(tmp_path / "rois.npz", watched(roi), skips)
    rois, told = load_rois(tmp_path / "rois.npz")
    assert list(rois) == [f"a/{number}" for number in range(6)]
    np.testing.assert_array_equal(rois["a/4"]["liver"]["body"].mask, an_array(4) > 0.5)
    assert told == skips != []

    def mask(number):
        one = an_array(number) > 0.5
        return ((SliceName("a", number), "liver", "roi"), one), one

    save_masks(tmp_path / "masks.npz", watched(mask))
    with open_masks(tmp_path / "masks.npz") as masks:
        np.testing.assert_array_equal(
            masks.of(SliceName("a", 5), "liver", "roi"), an_array(5) > 0.5
        )

    def probability(number):
        one = an_array(number).astype(np.float16)
        return (f"a/{number}", one), one

    seconds = {"a/1": 2.0}
    save_probabilities(tmp_path / "found.npz", watched(probability), seconds, CLASSES)
    assert load_meta(tmp_path / "found.npz")["seconds"] == seconds


def test_a_file_whose_writing_fails_is_not_there(tmp_path):
    def write(array, error=None):
        with writing_arrays(tmp_path / "a.npz") as writer:
            writer["one"] = array
            if error:
                raise error

    with pytest.raises(RuntimeError):
        write(np.ones(3), RuntimeError())
    with pytest.raises(TypeError, match="'one' holds Python objects"):
        write(np.array([object()]))
    assert list(tmp_path.iterdir()) == []
