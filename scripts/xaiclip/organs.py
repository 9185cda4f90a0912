"""The classes: background and organs, and the label ids that data sets give them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

BACKGROUND = "background"

#: The paper's Table II, in its order; class index = position.
SIX_CLASSES = (BACKGROUND, "liver", "right kidney", "left kidney", "spleen", "pancreas")

#: The five that the paper's text names.
FIVE_CLASSES = (BACKGROUND, "liver", "right kidney", "left kidney", "spleen")

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


def file_stem(organ: str) -> str:
    """The organ's name as it stands in file names: ``right kidney`` → ``right_kidney``."""
    return organ.replace(" ", "_")


def organs_of(classes: Sequence[str]) -> list[str]:
    """The foreground classes, in order."""
    return [name for name in classes if name != BACKGROUND]
