"""A made-up study of four slices, read with numpy alone, and what a picture holds."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from figure_study import BATCH, CLASSES, ORGANS, drawn_slice, files_of, make_study, settings_of
from stored_maps import load_attributions, load_rois
from xaiclip.explain.store import load_scores
from xaiclip.preprocess import Letterbox
from xaiclip.report.figures import DATA
from xaiclip.report.picture import (
    Fill,
    Heat,
    Outline,
    Panel,
    Picture,
)
from xaiclip.report.sources import Settings

#: By the palette of the documentation: the organ's place among the organs.
COLOUR = dict(zip(ORGANS, ("#E69F00", "#56B4E9", "#0072B2", "#009E73", "#CC79A7"), strict=True))
SHORT = dict(zip(ORGANS, ("Li", "RK", "LK", "Sp", "Pa"), strict=True))
#: The slice that is looked at is the second, and the organ neither the first nor the last.
SPLEEN = settings_of(CLASSES, organ="spleen")
#: Figures that are no panels of pictures.
OTHERS = ("figure08_comparison", "figure11_lime_distributions", "shapley_matrix", "slices",
          "training_curves")  # fmt: skip
PICTURES = [name for name in DATA if name not in OTHERS]


def some_slices() -> dict[str, Any]:
    """In the batch's order: the first two have no spleen, the last will have no reference."""
    return {
        "d": drawn_slice("d", 1, index=7, without="spleen"),
        "b, too": drawn_slice("b", 5, index=1, without="spleen"),
        "b": drawn_slice("b", 2, index=4),
        "c": drawn_slice("c", 3, index=2),
        "a": drawn_slice("a", 4, index=9),
    }


def make_files(slices: dict[str, Any], folder: Path) -> Path:
    """The study's folder."""
    items = list(slices.values())
    return make_study(
        folder / "results" / "demo", [*items[:-1], replace(items[-1], label=None)], truth=items
    )


def at(name: str) -> tuple[str, int]:
    """Case and index of a slice of `some_slices`."""
    return {"d": ("d", 7), "b, too": ("b", 1), "b": ("b", 4), "c": ("c", 2), "a": ("a", 9)}[name]


class Stored:
    """The study's files, read with numpy alone."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def arrays(self, folder: str) -> tuple[dict[str, np.ndarray], Any]:
        with np.load(self.root / folder / f"{BATCH}.npz") as file:
            arrays = {name: file[name] for name in file.files}
        return arrays, json.loads(arrays.pop("__meta__").tobytes())

    def map(self, name: str, of: str, organ: str, variant: str = "") -> np.ndarray:
        """The primary map, or the variant's for the same value function."""
        arrays, rows = self.arrays(f"attributions/{name}")
        (found,) = [
            index
            for index, row in enumerate(rows)
            if (row["case"], row["slice"]) == at(of)
            and (row["organ"], row["value"]) == (organ, "soft_dice")
            and (row["variant"] == variant if variant else row["primary"])
        ]
        if str(found) not in arrays:  # kept as what it is made of: only the library can read it
            return load_attributions(self.root / "attributions" / name / f"{BATCH}.npz")[found][
                2
            ].map
        return arrays[str(found)]

    def details(self, name: str, of: str, organ: str, variant: str) -> dict[str, float]:
        rows = self.arrays(f"attributions/{name}")[1]
        wanted = (*at(of), organ, variant, "soft_dice")
        keys = ("case", "slice", "organ", "variant", "value")
        return next(row["details"] for row in rows if tuple(row[key] for key in keys) == wanted)

    def mask(self, item: Any, organ: str) -> np.ndarray:
        return self.arrays("segmentation")[0][f"{item.key}/{organ}/roi"]

    def roi(self, item: Any, organ: str) -> Any:
        return load_rois(self.root / f"roi/{BATCH}.npz")[0][item.key][organ]["localizer"]

    def scores(self, name: str, of: str) -> Any:
        return next(one for one in load_scores(self.root / f"scores/{name}/{BATCH}.npz")[0]
                    if (one.case, one.index) == at(of))  # fmt: skip

    def windows(self, name: str, of: str, organ: str) -> tuple[np.ndarray, int]:
        """The windows that count for the organ, and how many there are in all."""
        one = self.scores(name, of)
        (plan,) = one.plans.values()
        return plan.windows[plan.members[:, one.context.organs.index(organ)]], plan.n_full

    def probability(self, item: Any) -> np.ndarray:
        maps = self.arrays("localization/text")[0][item.key].astype(np.float32)
        return Letterbox.fit(item.image.shape, maps.shape[-1]).invert(maps)


def picture(root: Path, name: str, settings: Settings = SPLEEN) -> Picture:
    data = DATA[name](files_of(root, name), settings)
    assert isinstance(data, Picture)
    return data


def only(panel: Panel, kind: type) -> Any:
    """The one layer of this kind."""
    (layer,) = [layer for layer in panel.layers if isinstance(layer, kind)]
    return layer


def kinds(panel: Panel) -> list[str]:
    return [type(layer).__name__ for layer in panel.layers]


def limit(*maps: np.ndarray) -> float:
    """The scale's end: all but the most extreme 0.5% of what is defined."""
    values = np.sort(np.abs(np.concatenate([one[np.isfinite(one)] for one in maps])))
    return float(np.interp(0.995 * (len(values) - 1), np.arange(len(values)), values))


def is_symmetric(heat: Heat, *maps: np.ndarray) -> None:
    assert heat.norm.vmax == pytest.approx(limit(*maps), rel=1e-6)
    assert heat.norm.vmax is not None
    assert heat.norm.vmin == -heat.norm.vmax


def is_segmentation(panel: Panel, mask: np.ndarray, organ: str) -> None:
    for kind in (Fill, Outline):
        layer = only(panel, kind)
        assert_array_equal(layer.mask, mask)
        assert layer.colour == COLOUR[organ]


def is_roi(layer: Outline, mask: np.ndarray) -> None:
    assert_array_equal(layer.mask, mask)
    assert layer.colour == "white"
    assert layer.line == (0, (3, 1))


def texts(data: Picture) -> tuple[list[str], list[str], list[str]]:
    """Titles of panels, labels of bars, entries of the legend."""
    return (
        [panel.title for panel in data.panels],
        [bar.label for bar in data.bars],
        [entry.label for entry in data.legend],
    )
