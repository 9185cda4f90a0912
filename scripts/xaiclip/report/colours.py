"""What figures are coloured with: maps, guidances, organs.

Brighter always means more, in colour and in grey print: the lightness of both colour maps rises
steadily. Organs differ in colour (Okabe and Ito's palette), in line style and by their name.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import cycle
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import ListedColormap
from matplotlib.lines import Line2D
from skimage.color import lab2rgb

from xaiclip.organs import organs_of
from xaiclip.report.words import plain

_COLOURS = ("#E69F00", "#56B4E9", "#0072B2", "#009E73", "#CC79A7", "#D55E00", "#F0E442")
_LINES = ("-", (0, (4, 1)), (0, (1, 1)), (0, (5, 1, 1, 1)), (0, (2, 1)), (0, (7, 2)), "-")
_MARKERS = "osD^vPX"

#: Guidances and sources of the ROI: colour, hatch, words. Dark and light alternate in grey.
GUIDANCES: Mapping[str, tuple[str, str, str]] = {
    "full": ("#4D4D4D", "", "without guidance"),
    "roi": ("#56B4E9", "///", "guided by the ROI"),
    "roi_reference": ("#009E73", "...", "guided by the reference"),
    "roi_body": ("#F0E442", "xxx", "guided by the body"),
}


def _signed_colours() -> ListedColormap:
    anchors = np.array(
        [(30, 25, -62), (45, 10, -38), (60, 0, 0), (77, 12, 52), (93, -9, 70)], dtype=float
    )
    at = np.linspace(0, len(anchors) - 1, 255)
    lab = [np.interp(at, np.arange(len(anchors)), channel) for channel in anchors.T]
    return ListedColormap(np.clip(lab2rgb(np.stack(lab, axis=-1)), 0, 1), "signed")


#: From CIELAB: dark blue (negative), grey (0), bright yellow (positive).
SIGNED = _signed_colours()
UNSIGNED = colormaps["cividis"]


def shades() -> Iterator[str]:
    """Colours of whatever stands in a legend, again and again."""
    return cycle(_COLOURS)


def strokes() -> Iterator[Any]:
    """Line styles, as `shades`."""
    return cycle(_LINES)


class Organs:
    """Colour, line style, marker and short name of each organ; by its place among the classes."""

    def __init__(self, classes: Sequence[str]) -> None:
        self.names = organs_of(classes)

    def colour(self, organ: str) -> str:
        return _COLOURS[self._place(organ) % len(_COLOURS)]

    def line(self, organ: str) -> Any:
        return _LINES[self._place(organ) % len(_LINES)]

    def marker(self, organ: str) -> str:
        return _MARKERS[self._place(organ) % len(_MARKERS)]

    @staticmethod
    def short(organ: str) -> str:
        """``right kidney`` → ``RK``, ``liver`` → ``Li``."""
        words = plain(organ).split()
        letters = [word[0].upper() for word in words]
        return "".join(letters) if len(words) > 1 else "".join(words)[:2].capitalize()

    def handles(self, organs: Iterable[str]) -> list[Line2D]:
        """Legend entries with each organ's marker."""
        return [
            Line2D(
                [],
                [],
                color=self.colour(organ),
                linestyle="none",
                marker=self.marker(organ),
                markeredgecolor="black",
                markeredgewidth=0.4,
                markersize=4.5,
                label=plain(organ),
            )
            for organ in organs
        ]

    def _place(self, organ: str) -> int:
        return self.names.index(organ)
