"""The segmenter's masks of a batch: their file. Needs no torch."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from xaiclip.data.record import SliceName
from xaiclip.errors import Skip
from xaiclip.files import Arrays, open_arrays, writing_arrays

Mask = NDArray[np.bool_]
#: Slice, organ, prompt.
Key = tuple[SliceName, str, str]


class StoredMasks:
    """Masks, bool (H, W), of slices, organs and prompts; they are read when they are asked for.

    Attributes:
        skips: what was left out.
    """

    def __init__(self, stored: Arrays) -> None:
        self._stored = stored
        self.skips = [Skip(**skip) for skip in stored.meta["skips"]]

    def of(self, name: SliceName, organ: str, prompt: str) -> Mask | None:
        """The mask of an organ that was prompted by the box of ``prompt``, if there is one."""
        return self._stored.get(_key(name, organ, prompt))


def save_masks(
    path: str | os.PathLike[str],
    masks: Mapping[Key, Mask] | Iterable[tuple[Key, Mask]],
    skips: Sequence[Skip] = (),
) -> None:
    """Write the masks of a batch, by slice, organ and prompt, to one .npz file; none is kept.

    What is left out while they are made may still be added to ``skips``.
    """
    with writing_arrays(path) as writer:
        for key, mask in masks.items() if isinstance(masks, Mapping) else masks:
            writer[_key(*key)] = mask
        writer.meta = {"skips": [skip.to_dict() for skip in skips]}


@contextmanager
def open_masks(path: str | os.PathLike[str]) -> Iterator[StoredMasks]:
    """What `save_masks` wrote, for reading one mask of many."""
    with open_arrays(path) as stored:
        yield StoredMasks(stored)


def _key(name: SliceName, organ: str, prompt: str) -> str:
    return f"{name.key}/{organ}/{prompt}"
