"""The localizer's probability maps of a batch: their file. Needs no torch."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from xaiclip.errors import Skip
from xaiclip.files import Arrays, load_meta, open_arrays, writing_arrays

Maps = NDArray[np.float16]


class StoredProbabilities(Mapping[str, Maps]):
    """Maps, float16 (C, S, S), by the slice's key; they are read when they are asked for.

    Attributes:
        classes: the C names.
        seconds: that each slice took, by its key.
        skips: what was left out.
    """

    def __init__(self, stored: Arrays) -> None:
        self._stored = stored
        self.classes: list[str] = stored.meta["classes"]
        self.seconds: dict[str, float] = stored.meta["seconds"]
        self.skips = [Skip(**skip) for skip in stored.meta["skips"]]

    def __getitem__(self, key: str) -> Maps:
        return self._stored[key]

    def __contains__(self, key: object) -> bool:
        return key in self._stored

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def __len__(self) -> int:
        return len(self._stored)


def save_probabilities(
    path: str | os.PathLike[str],
    maps: Mapping[str, Maps] | Iterable[tuple[str, Maps]],
    seconds: Mapping[str, float],
    classes: Sequence[str],
    skips: Sequence[Skip] = (),
) -> None:
    """Write the maps of a batch, by the slices' keys, to one .npz file; none is kept.

    While they are made, ``seconds`` and ``skips`` may still grow.
    """
    with writing_arrays(path) as writer:
        for key, found in maps.items() if isinstance(maps, Mapping) else maps:
            writer[key] = found
        meta = {"seconds": dict(seconds), "classes": list(classes)}
        writer.meta = {**meta, "skips": [skip.to_dict() for skip in skips]}


def localized_keys(path: str | os.PathLike[str]) -> set[str]:
    """The slices in the file of `save_probabilities`; no map is read."""
    return set(load_meta(path)["seconds"])


@contextmanager
def open_probabilities(path: str | os.PathLike[str]) -> Iterator[StoredProbabilities]:
    """What `save_probabilities` wrote, for reading slice by slice."""
    with open_arrays(path) as stored:
        yield StoredProbabilities(stored)
