"""Every figure, by name: the paper's 2 to 13, and others. First data, then a drawing."""

from __future__ import annotations

from collections.abc import Callable
from functools import singledispatch, wraps
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

from xaiclip.errors import CaseError
from xaiclip.report import (
    curves,
    figures_maps,
    figures_metrics,
    figures_stages,
    figures_units,
    picture,
    style,
)
from xaiclip.report.sources import Settings, Sources

#: From the files that a figure needs, keyed by folder, to its data.
DATA: dict[str, Callable[[Sources, Settings], Any]] = {
    "figure02_preprocessing": figures_maps.preprocessing,
    "figure03_lime_superpixels": figures_stages.lime_superpixels,
    "figure04_rise": figures_stages.rise,
    "figure05_occlusion": figures_maps.occlusion,
    "figure06_selective_occlusion": figures_maps.selective_occlusion,
    "figure07_occlusion_overview": figures_maps.occlusion_overview,
    "figure08_comparison": figures_metrics.comparison,
    "figure09_localization": figures_maps.localization,
    "figure10_occlusion_maps": figures_maps.occlusion_maps,
    "figure11_lime_distributions": figures_metrics.lime_distributions,
    "figure12_lime_stages": figures_stages.lime_stages,
    "figure13_rise_stages": figures_stages.rise_stages,
    "shapley_matrix": figures_units.shapley_matrix,
    "training_curves": curves.training_curves,
}


@singledispatch
def draw(data: Any) -> Figure:
    """A figure of its data.

    Raises:
        TypeError: no figure shows such data.
    """
    raise TypeError(f"no figure shows a {type(data).__name__}.")


draw.register(picture.Picture, picture.draw)
draw.register(figures_metrics.Comparison, figures_metrics.draw_comparison)
draw.register(figures_metrics.Distributions, figures_metrics.draw_distributions)
draw.register(figures_units.Matrices, figures_units.draw_matrices)
draw.register(curves.Training, curves.draw_training)

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
