"""Which slice, whose map, whose segmentation, and which scale a figure of slices shows."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from figure_study import files_of
from picture_study import (
    SPLEEN,
    Stored,
    is_symmetric,
    only,
)
from stored_maps import load_attributions
from xaiclip.errors import CaseError
from xaiclip.explain.attribution import Attribution, save_attributions
from xaiclip.report import sources
from xaiclip.report.figures import DATA
from xaiclip.report.picture import (
    Fill,
    Heat,
)


@pytest.mark.slow
def test_each_slice_of_a_case_has_its_own_maps_and_plans(
    root: Path, slices: dict[str, Any], stored: Stored
) -> None:
    files = files_of(root, "figure12_lime_stages")
    found = []
    for of in ("b, too", "b"):
        subject = sources.Subject(slices[of], "liver")
        maps = sources.attributions(files["attributions/lime/roi"], subject.item, "liver")
        assert_array_equal(sources.primary(maps).map, stored.map("lime/roi", of, "liver"))
        for name, plan in stored.scores("lime/roi", of).plans.items():
            arrays = sources.plan(files["scores/lime/roi"], subject, name)
            assert_array_equal(arrays["segments"], plan.segments)
        found.append(arrays["segments"])
    assert (found[0] != found[1]).any()


def test_the_primary_map_is_the_one_that_says_so() -> None:
    maps = [Attribution("liver", name, "soft_dice", np.zeros((2, 2)), (), name == "two")
            for name in ("one", "two", "three")]  # fmt: skip
    assert sources.primary(maps).variant == "two"
    with pytest.raises(CaseError, match="no primary map"):
        sources.primary(maps[:1])


@pytest.mark.parametrize("prompt", ["roi", "reference"])
def test_the_segmentation_is_that_of_the_prompt(
    root: Path, slices: dict[str, Any], tmp_path: Path, prompt: str
) -> None:
    key = f"{slices['b'].key}/spleen"
    masks = {"roi": np.eye(96, 128, dtype=bool), "reference": np.eye(96, 128, 9, dtype=bool)}
    arrays = {f"{key}/{name}": mask for name, mask in masks.items()}
    meta = np.frombuffer(b'{"skips": []}', np.uint8)
    np.savez(tmp_path / "masks.npz", __meta__=meta, **arrays)
    files = {**files_of(root, "figure05_occlusion"), "segmentation": tmp_path / "masks.npz"}
    data = DATA["figure05_occlusion"](files, replace(SPLEEN, prompt=prompt))
    assert_array_equal(only(data.panels[1], Fill).mask, masks[prompt])


@pytest.mark.slow
@pytest.mark.parametrize("louder", ["full", "roi"])
@pytest.mark.parametrize(
    ("name", "method", "organ", "places"),
    [
        ("figure06_selective_occlusion", "occlusion", "spleen", (2, 3)),
        ("figure10_occlusion_maps", "occlusion", "left kidney", (2, 7)),
        ("figure12_lime_stages", "lime", "spleen", (4, 5)),
    ],
)
def test_a_shared_scale_holds_the_larger_map(
    root: Path, tmp_path: Path, name: str, method: str, organ: str, places: Any, louder: str
) -> None:
    files = files_of(root, name)
    key = f"attributions/{method}/{louder}"
    louder_maps = [
        (case, index, replace(one, map=1000 * one.map, recipe=None))
        for case, index, one in load_attributions(files[key])
    ]
    save_attributions(tmp_path / "louder.npz", louder_maps)
    data = DATA[name]({**files, key: tmp_path / "louder.npz"}, replace(SPLEEN, organ=organ))
    heats = [only(data.panels[place], Heat) for place in places]
    for heat in heats:
        is_symmetric(heat, *(one.values for one in heats))
