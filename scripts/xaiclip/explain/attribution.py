"""The result of an explanation: a map of one organ, and its file. Needs no torch."""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from xaiclip.explain.packing import is_smooth, pack, unpack
from xaiclip.explain.recipes import Recipe, from_facts
from xaiclip.files import Arrays, ArrayWriter, open_arrays, writing_arrays

#: Side of the canonical grid: a slice stretched to a square, without padding.
GRID = 512
#: Arrays that recipes share and that are kept while maps are read.
_KEPT = 16


@dataclass(frozen=True, eq=False)
class Attribution:
    """How much each pixel matters for the segmentation of one organ.

    Attributes:
        organ: the organ.
        variant: what tells the maps of one method apart, for example ``slic``.
        value: the value function that is explained.
        map: float32 (512, 512) on the canonical grid, larger = more important (for value
            functions that grow with agreement), NaN = undefined.
        plans: names of the perturbation plans that the map rests on.
        primary: whether the tables show this map; one of an organ's maps.
        details: further numbers, for example LIME's ``r2``.
        error: float32 (s, s), the map's standard error at the centres of s × s equal parts of the
            grid, NaN = undefined; None = the method does not sample, or gives none.
        units: the value of each named unit that the map is painted with; empty if they have no
            names, or another variant's map of this organ and value holds them.
        recipe: what the map is made of, where a file should hold that instead.
    """

    organ: str
    variant: str
    value: str
    map: NDArray[np.float32]
    plans: tuple[str, ...]
    primary: bool = False
    details: dict[str, float] = field(default_factory=dict)
    error: NDArray[np.float32] | None = None
    units: dict[str, float] = field(default_factory=dict)
    recipe: Recipe | None = None


def to_slice_grid(canonical: NDArray[Any], shape: tuple[int, int]) -> NDArray[Any]:
    """Bring a map (512, 512) to the slice's own (H, W): nearest pixel, so NaN stays where it is."""
    return _nearest(canonical, (shape[1], shape[0]))


def to_canonical_mask(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Bring a mask (H, W) to the canonical grid: bool (512, 512), nearest pixel."""
    return _nearest(mask.astype(np.uint8), (GRID, GRID)).astype(bool)


def to_canonical_image(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Bring a slice, uint8 (H, W), to the canonical grid: uint8 (512, 512)."""
    shrinks = max(image.shape) > GRID
    resized = cv2.resize(
        image, (GRID, GRID), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    )
    return np.asarray(resized, dtype=np.uint8)


def save_attributions(
    path: str | os.PathLike[str], attributions: Iterable[tuple[str, int, Attribution]]
) -> None:
    """Write the maps of a batch: triples of case, slice index and attribution; none is kept.

    A map comes out again to the last bit. Where its recipe gives the very same map, the file holds
    the recipe.
    """
    shared = _Shared()
    with writing_arrays(path) as writer:
        writer.meta = []
        for i, (case, index, one) in enumerate(attributions):
            facts = {k: v for k, v in vars(one).items() if k not in ("map", "error", "recipe")}
            if one.recipe is not None and _same(one.recipe.map(), one.map):
                facts["recipe"] = _put_recipe(writer, shared, one.recipe)
            else:
                _put(writer, f"{i}", one.map)
            if one.error is not None:
                writer[f"{i}/error"] = one.error
            writer.meta.append({"case": case, "slice": index, **facts})


class _Shared:
    """The names of arrays that several recipes hold, for as long as the arrays live."""

    def __init__(self) -> None:
        self._names: dict[int, tuple[weakref.ref[Any], str]] = {}
        self._count = 0

    def name(self, array: NDArray[Any]) -> tuple[str, bool]:
        """Its name, and whether it is a new one."""
        known, name = self._names.get(id(array), (None, ""))
        if known is not None and known() is array:  # else another array once lay there
            return name, False
        name = f"shared/{self._count}"
        self._count += 1
        self._names[id(array)] = weakref.ref(array), name
        return name, True


def _same(one: NDArray[np.float32], other: NDArray[np.float32]) -> bool:
    return np.array_equal(one.view(np.uint32), other.view(np.uint32))


def _put(writer: ArrayWriter, name: str, array: NDArray[Any]) -> None:
    if array.dtype == np.float32 and array.ndim == 2 and is_smooth(array):
        writer[f"{name}/packed"] = pack(array)
    else:
        writer[name] = array


def _put_recipe(writer: ArrayWriter, shared: _Shared, recipe: Recipe) -> dict[str, Any]:
    facts: dict[str, Any] = {"kind": type(recipe).__name__}
    for key, value in vars(recipe).items():
        if isinstance(value, np.ndarray):
            name, new = shared.name(value)
            if new:
                _put(writer, name, value)
            value = {"array": name}
        facts[key] = value
    return facts


class StoredAttributions:
    """What `save_attributions` wrote: a map is read when it is asked for."""

    def __init__(self, stored: Arrays) -> None:
        self._stored = stored
        # the maps of a slice share arrays; those of many slices would fill the memory
        self._shared = lru_cache(maxsize=_KEPT)(self._array)

    def find(self, **wanted: Any) -> list[tuple[int, Mapping[str, Any]]]:
        """Number and facts of the maps of, say, ``case="a", slice=3, organ="liver"``.

        The facts are all but the arrays: ``case``, ``slice``, and the fields of `Attribution`.
        """
        return [
            (i, row)
            for i, row in enumerate(self._stored.meta)
            if all(row[key] == value for key, value in wanted.items())
        ]

    def read(self, number: int) -> Attribution:
        """The map of that number."""
        facts = {k: v for k, v in self._stored.meta[number].items() if k not in ("case", "slice")}
        facts["plans"] = tuple(facts["plans"])
        if "recipe" in facts:
            recipe = from_facts({k: self._value(v) for k, v in facts.pop("recipe").items()})
            map_ = recipe.map()
        else:
            recipe, map_ = None, self._array(f"{number}")
        error = self._stored.get(f"{number}/error")
        return Attribution(map=map_, error=error, recipe=recipe, **facts)

    def _value(self, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return self._shared(value["array"])

    def _array(self, name: str) -> NDArray[Any]:
        packed = self._stored.get(f"{name}/packed")
        return self._stored[name] if packed is None else unpack(packed)


@contextmanager
def open_attributions(path: str | os.PathLike[str]) -> Iterator[StoredAttributions]:
    """The maps of a batch, for reading a few of many."""
    with open_arrays(path) as stored:
        yield StoredAttributions(stored)


def _nearest(array: NDArray[Any], size: tuple[int, int]) -> NDArray[Any]:
    if array.shape == size[::-1]:
        return array
    return np.asarray(cv2.resize(array, size, interpolation=cv2.INTER_NEAREST_EXACT))
