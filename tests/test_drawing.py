"""Figures of slices: the drawing shows what their data say, in millimetres."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib import rc_context
from matplotlib.collections import PatchCollection
from matplotlib.colors import to_hex
from matplotlib.contour import ContourSet
from numpy.testing import assert_allclose, assert_array_equal
from skimage.segmentation import find_boundaries

from picture_study import PICTURES, picture
from xaiclip.report import colours, style
from xaiclip.report.figures import draw
from xaiclip.report.picture import (
    Boxes,
    Fill,
    Heat,
    Note,
    Outline,
    Panel,
    Segments,
    Words,
)

# --- the drawing shows the data ---


@pytest.mark.slow
@pytest.mark.parametrize("name", PICTURES)
def test_the_drawing_shows_the_data(root: Path, name: str) -> None:
    data = picture(root, name)
    with rc_context(style.STYLE):
        figure = draw(data)
    assert figure.get_suptitle() == data.title
    count = len(data.panels)
    axes, bars = figure.axes[:count], figure.axes[count:]
    for place, (panel, drawn) in enumerate(zip(data.panels, axes, strict=True)):
        letter = f"$\\bf{{({'abcdefghij'[place]})}}$ "
        assert drawn.get_title(loc="left") == letter + panel.title
        shows(drawn, panel)
        row, column = divmod(place, data.columns)
        spec = drawn.get_subplotspec()
        assert (spec.rowspan.start, spec.colspan.start) == (row, column)
    for bar, drawn in zip(data.bars, bars, strict=True):
        assert (drawn.get_xlabel() if bar.below else drawn.get_ylabel()) == bar.label
        heats = [layer for layer in data.panels[bar.of].layers if isinstance(layer, Heat)]
        ends = drawn.get_xlim() if bar.below else drawn.get_ylim()
        norm = heats[-1].norm if heats else None
        assert_allclose(ends, (norm.vmin, norm.vmax) if norm else (0, 255))
    (legend,) = figure.legends or [None]
    if legend is None:
        assert not data.legend
        return
    assert [text.get_text() for text in legend.get_texts()] == [one.label for one in data.legend]
    assert [line.get_color() for line in legend.get_lines()] == [one.colour for one in data.legend]
    for line, entry in zip(legend.get_lines(), data.legend, strict=True):
        assert line.is_dashed() == (entry.line != "-")
        if entry.width:
            assert line.get_linewidth() == entry.width
    assert legend.get_title().get_text() == data.legend_title


def shows(axes: Any, panel: Panel) -> None:
    """The artists of a panel hold what its layers say, in their order and in millimetres."""
    item = panel.item
    height, width = 96 * 3.0, 128 * 2.5
    images = list(axes.images)
    for image in images:
        assert list(image.get_extent()) == [0, width, height, 0]
    grey = item.image if panel.image is None else panel.image
    first = images.pop(0)
    assert_array_equal(first.get_array(), grey)
    assert first.get_clim() == (0, 255)
    edges = [one for one in axes.collections if isinstance(one, ContourSet)]
    patches = [one for one in axes.collections if isinstance(one, PatchCollection)]
    words = [text.get_text() for text in axes.texts]
    for layer in panel.layers:
        match layer:
            case Heat():
                image = images.pop(0)
                shown = np.ma.masked_invalid(layer.values)
                assert_array_equal(np.ma.getmaskarray(image.get_array()), shown.mask)
                assert_array_equal(image.get_array().compressed(), shown.compressed())
                assert image.norm is layer.norm
                signed = layer.norm.vmin == -layer.norm.vmax
                assert image.get_cmap() is (colours.SIGNED if signed else colours.UNSIGNED)
                if not np.isfinite(layer.values).all():
                    encloses(edges.pop(0), np.isfinite(layer.values))
            case Outline():
                if layer.mask.any():
                    edge = edges.pop(0)
                    encloses(edge, layer.mask)
                    assert to_hex(edge.get_edgecolor()[0]) == to_hex(layer.colour)
            case Fill():
                image = images.pop(0)
                assert_array_equal(~np.ma.getmaskarray(image.get_array()), layer.mask)
                assert to_hex(image.get_cmap()(0)) == to_hex(layer.colour)
            case Segments():
                image = images.pop(0)
                lines = ~np.ma.getmaskarray(image.get_array())
                assert_array_equal(lines, find_boundaries(layer.labels))
            case Boxes():
                patch = patches.pop(0)
                scale = np.array([width / layer.shape[1], height / layer.shape[0]] * 2)
                found = [path.get_extents().extents for path in patch.get_paths()]
                assert_allclose(found, np.asarray(layer.corners) * scale)
                assert to_hex(patch.get_edgecolor()[0]) == to_hex(layer.colour)
            case Words():
                text = next(one for one in axes.texts if one.get_text() == layer.words)
                x, y = text.get_position()
                row, column = int(y / height * 96), int(x / width * 128)
                assert layer.mask[row, column]
            case Note():
                assert layer.words in [" ".join(word.split()) for word in words]
    assert not images
    assert not edges
    assert not patches
    sides = [word for word in words if word in ("R", "L", "5 cm")]
    assert sides == (["R", "L", "5 cm"] if panel.marks else [])
    assert (panel.side in words) or not panel.side


def encloses(edge: ContourSet, mask: np.ndarray) -> None:
    """The middles of the mask's pixels lie inside the line, those of the others outside."""
    rows, columns = mask.shape
    x, y = np.meshgrid(
        (np.arange(columns) + 0.5) * 320 / columns, (np.arange(rows) + 0.5) * 288 / rows
    )
    points = np.stack([x.ravel(), y.ravel()], 1)
    inside = np.zeros(len(points), bool)
    for path in edge.get_paths():
        for ring in path.to_polygons(closed_only=True):
            inside ^= type(path)(ring).contains_points(points)
    assert (inside.reshape(mask.shape) == mask).mean() > 0.9995


def test_the_patients_right_is_on_the_left(root: Path) -> None:
    figure = draw(picture(root, "figure05_occlusion"))
    places = {text.get_text(): text.get_position()[0] for text in figure.axes[0].texts}
    assert places["R"] < 0.1 * 320
    assert places["L"] > 0.9 * 320
    (bar,) = figure.axes[0].lines
    assert np.ptp(bar.get_xdata()) == 50  # "5 cm", in millimetres
    assert np.ptp(bar.get_ydata()) == 0
