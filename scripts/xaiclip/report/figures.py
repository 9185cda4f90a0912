"""Every figure, by name: the paper's 2 to 13, and others. First data, then a drawing."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

from xaiclip.errors import CaseError
from xaiclip.report import catalogue, style
from xaiclip.report.drawing import draw
from xaiclip.report.sources import Settings, Sources

#: From the files that a figure needs, keyed by folder, to its data.
DATA: dict[str, Callable[[Sources, Settings], Any]] = {
    name: catalogue.load(one.place) for name, one in catalogue.figures().items()
}

Draw = Callable[[Sources, Settings], Figure]


def _always(name: str, data: Callable[[Sources, Settings], Any]) -> Draw:
    """Draw in the common style; where there is nothing to show, a figure that says so."""

    @wraps(data)
    def drawn(sources: Sources, settings: Settings) -> Figure:
        with rc_context(style.STYLE):
            try:
                return draw(data(sources, settings))
            except CaseError as error:
                return style.sentence_figure(name.replace("_", " ").capitalize(), error.reason)

    return drawn


#: Every figure: from the files it needs, keyed by folder, to the figure.
FIGURES: dict[str, Draw] = {name: _always(name, data) for name, data in DATA.items()}
