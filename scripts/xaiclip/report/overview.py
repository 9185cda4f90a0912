"""One explanation at a glance: each organ's segmentation and map over the slice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from matplotlib import rc_context
from matplotlib.figure import Figure

from xaiclip.errors import ConfigError
from xaiclip.organs import BACKGROUND
from xaiclip.report import colours, panels, style
from xaiclip.report.picture import Boxes, Entry, Fill, Heat, Layer, Outline, Panel, Picture, draw

if TYPE_CHECKING:
    from xaiclip.explanation import Explanation


def overview(maps: Explanation, organs: Sequence[str] | None = None) -> Figure:
    """A row for each organ: what is explained on the left, on the right the map.

    Raises:
        ConfigError: an organ has no map.
    """
    shown = list(maps.organs if organs is None else organs)
    if unknown := [organ for organ in shown if organ not in maps.organs]:
        raise ConfigError(
            f"there is no map of {', '.join(unknown)}; organs are {', '.join(maps.organs)}."
        )
    palette = colours.Organs([BACKGROUND, *dict.fromkeys((*maps.classes[1:], *maps.organs))])
    pictures, bars = [], []
    for row, organ in enumerate(shown):
        one, mask, colour = maps.attribution(organ), maps.masks[organ], palette.colour(organ)
        left: list[Layer] = [Fill(mask, colour), Outline(mask, colour)]
        box = maps.boxes[organ]
        if box is not None:
            left.append(Boxes(box[None], maps.shape, panels.BOX))
        right: list[Layer] = [Heat(one.map, style.symmetric([one.map])), Outline(mask, colour)]
        if organ in maps.regions:
            right.append(panels.roi_outline(maps.regions[organ]))
        pictures += [
            Panel(f"segmentation: {organ}", maps.slice, tuple(left)),
            Panel("importance", maps.slice, tuple(right)),
        ]
        bars.append(panels.own_bar(2 * row + 1, panels.importance(one)))
    legend = (
        [Entry(f"segmentation of the {organ}", palette.colour(organ)) for organ in shown[:1]]
        if len(shown) == 1
        else [Entry("segmentation", "0.6")]
    )
    legend.append(Entry("box (the prompt)", panels.BOX))
    if maps.regions:
        legend.append(panels.ROI_ENTRY)
    guided = colours.GUIDANCES[maps.guidance][2]
    title = f"{maps.method}, {guided}: model {maps.model}, slice {maps.slice.index}"
    with rc_context(style.STYLE):
        return draw(Picture(title, pictures, 2, bars, legend))
