"""The classes: background and organs, and the label ids that data sets give them."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence

BACKGROUND = "background"

#: The paper's Table II, in its order; class index = position.
SIX_CLASSES = (BACKGROUND, "liver", "right kidney", "left kidney", "spleen", "pancreas")

#: What an image holds beside the organs.
REST, OUTSIDE = "rest of the body", "outside the body"

#: Label ids of the FLARE22 challenge.
FLARE22: Mapping[int, str] = {
    1: "liver",
    2: "right kidney",
    3: "spleen",
    4: "pancreas",
    5: "aorta",
    6: "inferior vena cava",
    7: "right adrenal gland",
    8: "left adrenal gland",
    9: "gallbladder",
    10: "oesophagus",
    11: "stomach",
    12: "duodenum",
    13: "left kidney",
}

#: Other names of a side, and words after which nothing of a name is left but the organ.
_WORDS = {"l": "left", "r": "right", "lt": "left", "rt": "right"}
_NOISE = {"mask", "seg", "segmentation", "label"}


def file_stem(organ: str) -> str:
    """The organ's name as it stands in file names: ``right kidney`` → ``right_kidney``."""
    return organ.replace(" ", "_")


def organs_of(classes: Sequence[str]) -> list[str]:
    """The foreground classes, in order."""
    return [name for name in classes if name != BACKGROUND]


def name_key(name: str | os.PathLike[str]) -> frozenset[str]:
    """The words of a name in any order, case and spelling: ``kidney_right``, ``RightKidney``.

    By it masks and segments are told; it is empty for a name without any word of its own.
    """
    apart = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", os.fspath(name))
    words = re.findall(r"[^\W_]+", apart.casefold())
    return frozenset(_WORDS.get(word, word) for word in words if word not in _NOISE)
