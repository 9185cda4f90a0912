"""The paper's figures 2 to 13 and the training curves, by name."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps

from matplotlib import rc_context
from matplotlib.figure import Figure

from xaiclip.errors import CaseError
from xaiclip.report import figures_maps, figures_metrics, style
from xaiclip.report.sources import Settings, Sources

Draw = Callable[[Sources, Settings], Figure]


def _always(name: str, draw: Draw) -> Draw:
    """Draw in the common style; where there is nothing to show, a figure that says so."""

    @wraps(draw)
    def drawn(sources: Sources, settings: Settings) -> Figure:
        with rc_context(style.STYLE):
            try:
                return draw(sources, settings)
            except CaseError as error:
                return style.sentence_figure(name.replace("_", " ").capitalize(), error.reason)

    return drawn


#: Every figure: from the files it needs, keyed by folder, to the figure.
FIGURES: dict[str, Draw] = {
    name: _always(name, draw)
    for name, draw in {
        "figure02_preprocessing": figures_maps.preprocessing,
        "figure03_lime_superpixels": figures_maps.lime_superpixels,
        "figure04_rise": figures_maps.rise,
        "figure05_occlusion": figures_maps.occlusion,
        "figure06_selective_occlusion": figures_maps.selective_occlusion,
        "figure07_occlusion_overview": figures_maps.occlusion_overview,
        "figure08_comparison": figures_metrics.comparison,
        "figure09_localization": figures_maps.localization,
        "figure10_occlusion_maps": figures_maps.occlusion_maps,
        "figure11_lime_distributions": figures_metrics.lime_distributions,
        "figure12_lime_stages": figures_maps.lime_stages,
        "figure13_rise_stages": figures_maps.rise_stages,
        "training_curves": figures_metrics.training_curves,
    }.items()
}
