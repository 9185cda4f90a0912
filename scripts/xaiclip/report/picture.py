"""Figures of slices as data: what stands in which panel; and the one function that draws them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from xaiclip.data.record import Slice
from xaiclip.report import drawing, style

Mask = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Heat:
    """A map over the slice, of any resolution; NaN where it is undefined."""

    values: NDArray[np.floating[Any]]
    norm: Normalize
    alpha: float = 0.7


@dataclass(frozen=True, eq=False)
class Outline:
    """The edge of a mask."""

    mask: Mask
    colour: str
    line: Any = "-"
    width: float = 1.2


@dataclass(frozen=True, eq=False)
class Fill:
    """A mask as an even colour."""

    mask: Mask
    colour: str


@dataclass(frozen=True, eq=False)
class Segments:
    """Lines between the segments of a label image; negative labels are no segment."""

    labels: NDArray[np.integer[Any]]


@dataclass(frozen=True, eq=False)
class Boxes:
    """Boxes (N, 4) XYXY in pixels of a grid of ``shape``."""

    corners: NDArray[Any]
    shape: tuple[int, int]
    colour: str
    filling: float = 0.0
    width: float = 1.2


@dataclass(frozen=True, eq=False)
class Words:
    """Words at the innermost pixel of a mask."""

    mask: Mask
    words: str


@dataclass(frozen=True, eq=False)
class Note:
    """A sentence over the picture."""

    words: str


Layer = Heat | Outline | Fill | Segments | Boxes | Words | Note


@dataclass(frozen=True, eq=False)
class Panel:
    """One picture.

    Attributes:
        title: stands behind the panel's letter.
        item: the slice.
        layers: over the slice, from below.
        image: grey image of the slice's field of view in place of the slice.
        marks: whether sides and a scale are marked.
        side: words along the left edge.
    """

    title: str
    item: Slice
    layers: tuple[Layer, ...] = ()
    image: NDArray[np.uint8] | None = None
    marks: bool = True
    side: str = ""


@dataclass(frozen=True)
class ColourBar:
    """A colour bar of the panel ``of``, beside (or below) all ``panels``; indices in reading order.

    It is that of the panel's last map, or of its slice where it has none.
    """

    label: str
    of: int
    panels: tuple[int, ...]
    below: bool = False


@dataclass(frozen=True)
class Entry:
    """A line of the legend."""

    label: str
    colour: str
    line: Any = "-"
    width: float | None = None


@dataclass(frozen=True, eq=False)
class Picture:
    """A figure of slices.

    Attributes:
        title: of the figure.
        panels: in reading order; the letters follow it.
        columns: panels of a row.
        bars, legend, legend_title: what explains them.
        extra: inches for legends and colour bars.
    """

    title: str
    panels: Sequence[Panel]
    columns: int
    bars: Sequence[ColourBar] = ()
    legend: Sequence[Entry] = ()
    legend_title: str = ""
    extra: float = field(default=0.0)


@drawing.draw.register
def draw(picture: Picture) -> Figure:
    """Draw the panels, their colour bars and the legend."""
    rows = len(picture.panels) // picture.columns
    figure, grid = style.picture_grid(
        picture.title,
        rows,
        picture.columns,
        _tallest(panel.item for panel in picture.panels),
        extra=picture.extra,
    )
    axes = list(grid.flat)
    drawn = []
    for index, (place, panel) in enumerate(zip(axes, picture.panels, strict=True)):
        drawn.append(_draw(place, panel))
        style.letter(place, index, panel.title)
    for bar in picture.bars:
        beside = [axes[index] for index in bar.panels]
        style.colour_bar(figure, drawn[bar.of], beside, bar.label, below=bar.below)
    for place, panel in zip(axes, picture.panels, strict=True):
        if panel.side:
            style.side_title(place, panel.side)
    if picture.legend:
        style.legend(figure, [_handle(one) for one in picture.legend], picture.legend_title)
    return figure


def _draw(axes: Axes, panel: Panel) -> ScalarMappable:
    """Draw the slice and what lies over it; what a colour bar is for."""
    item = panel.item
    shown = style.show_slice(axes, item, panel.image, marks=panel.marks)
    for layer in panel.layers:
        match layer:
            case Heat():
                shown = style.show_map(axes, item, layer.values, norm=layer.norm, alpha=layer.alpha)
            case Outline():
                style.outline(
                    axes, item, layer.mask, layer.colour, style=layer.line, width=layer.width
                )
            case Fill():
                style.fill(axes, item, layer.mask, layer.colour)
            case Segments():
                style.boundaries(axes, item, layer.labels)
            case Boxes():
                style.boxes(
                    axes,
                    item,
                    layer.corners,
                    layer.shape,
                    colour=layer.colour,
                    filling=layer.filling,
                    width=layer.width,
                )
            case Words():
                style.write(axes, item, layer.mask, layer.words)
            case Note():
                style.note(axes, layer.words)
    return shown


def _tallest(items: Iterable[Slice]) -> Slice:
    return max(items, key=lambda item: item.image.shape[0] * item.spacing[0]
               / (item.image.shape[1] * item.spacing[1]))  # fmt: skip


def _handle(entry: Entry) -> Line2D:
    return Line2D(
        [], [], color=entry.colour, linestyle=entry.line, linewidth=entry.width, label=entry.label
    )
