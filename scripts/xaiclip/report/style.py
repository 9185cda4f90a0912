"""How every figure looks: type, and the pieces that figures are put together from.

Pictures are drawn in millimetres, so pixels that are not square keep their shape. Words are shown
letter by letter, whatever names hold: no figure reads them as mathematics.
"""

from __future__ import annotations

import os
import textwrap
from collections.abc import Iterable, Sequence
from typing import IO, Any, Literal

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.collections import PatchCollection
from matplotlib.colors import ListedColormap, Normalize, to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray
from scipy import ndimage
from skimage.segmentation import find_boundaries

from xaiclip.data.record import Slice
from xaiclip.files import atomic
from xaiclip.report.colours import SIGNED, UNSIGNED
from xaiclip.report.words import plain

WIDTH = 7.16  # inches: two columns of a journal page
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.titlelocation": "left",
    "axes.labelsize": 8,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "figure.titlesize": 9,
    "grid.color": "0.88",
    "grid.linewidth": 0.6,
    "hatch.linewidth": 0.6,
    "legend.fontsize": 7.5,
    "legend.frameon": False,
    "lines.linewidth": 1.2,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "savefig.facecolor": "white",
    "text.parse_math": False,
}


# --- figures -------------------------------------------------------------------------------------


def new_figure(
    title: str, height: float, layout: Literal["constrained", "compressed"] = "constrained"
) -> Figure:
    """An empty figure of the page's width and a height in inches, on Agg's canvas."""
    figure = Figure(figsize=(WIDTH, height), layout=layout)
    FigureCanvasAgg(figure)
    figure.suptitle(plain(title), x=0.01, ha="left", weight="bold")
    return figure


def picture_grid(
    title: str, rows: int, columns: int, item: Slice, *, extra: float = 0.0
) -> tuple[Figure, NDArray[Any]]:
    """A figure for rows × columns pictures of a slice's shape, and its axes (rows, columns).

    ``extra``: inches for legends and colour bars.
    """
    height, width = _size_mm(item)
    side = min(WIDTH / columns - 0.35, 3.3)  # a colour bar stands beside each picture
    tall = rows * (side * min(height / width, 1.3) + 0.33) + 0.35 + extra
    figure = new_figure(title, tall, layout="compressed")
    return figure, figure.subplots(rows, columns, squeeze=False)


def sentence_figure(title: str, sentence: str) -> Figure:
    """A figure that only says why there is nothing to show."""
    figure = new_figure(title, 1.6)
    text = textwrap.fill(plain(sentence), 100)
    figure.text(0.5, 0.45, text, ha="center", va="center", size=9, color="0.25")
    return figure


def save(figure: Figure, path: str | os.PathLike[str], dpi: float) -> None:
    """Write a PNG atomically; its bytes depend on what is drawn alone."""
    with atomic(path) as temporary, open(temporary, "wb") as stream:
        write_png(figure, stream, dpi)


def write_png(figure: Figure, stream: IO[bytes], dpi: float) -> None:
    """As `save`, to a stream."""
    with rc_context(STYLE):
        figure.savefig(
            stream,
            format="png",
            dpi=dpi,
            bbox_inches="tight",
            pad_inches=0.05,
            metadata={"Software": None},
        )


def letter(axes: Axes, index: int, title: str) -> None:
    """A panel's title, after its letter: 0 → (a)."""
    # the only mathematics: a title has one weight, and the letter's is another
    words = plain(title).replace("$", r"\$")
    text = axes.set_title(f"$\\bf{{({chr(ord('a') + index)})}}$ {words}", pad=3)
    text.set_parse_math(True)


def side_title(axes: Axes, words: str) -> None:
    """Words along the left edge of a panel."""
    axes.text(
        -0.06, 0.5, plain(words), transform=axes.transAxes, rotation=90, ha="right", va="center"
    )


def legend(figure: Figure, handles: Sequence[Line2D | Patch], title: str = "", columns: int = 6
           ) -> None:  # fmt: skip
    """The figure's legend, below its panels."""
    for handle in handles:
        handle.set_label(plain(str(handle.get_label())))
    figure.legend(
        handles=list(handles),
        loc="outside lower center",
        ncols=columns,
        title=plain(title) or None,
        title_fontsize=7.5,
    )


# --- pictures ------------------------------------------------------------------------------------


def show_slice(
    axes: Axes,
    item: Slice,
    image: NDArray[np.uint8] | None = None,
    *,
    marks: bool = True,
) -> ScalarMappable:
    """The slice (or another grey image of its field of view), with side marks and a scale bar."""
    grey = item.image if image is None else image
    drawn = axes.imshow(
        grey, cmap="gray", vmin=0, vmax=255, extent=_extent(item), interpolation="nearest"
    )
    _frame(axes, item, marks)
    return drawn


def show_map(
    axes: Axes,
    item: Slice,
    values: NDArray[np.floating[Any]],
    *,
    norm: Normalize,
    alpha: float = 0.7,
) -> ScalarMappable:
    """Lay a map over what is there; where it is NaN nothing is laid.

    A scale that is symmetric around 0 gets the signed colours, which are the denser the farther
    from 0. A thin line goes around the part where a map is defined, if that is not everywhere.
    """
    signed = norm.vmin == -(norm.vmax or 0)
    defined = np.isfinite(values)
    density = 0.3 + 0.6 * np.abs(2 * norm(np.nan_to_num(values), clip=True) - 1)
    drawn = axes.imshow(
        np.ma.masked_where(~defined, values),
        cmap=SIGNED if signed else UNSIGNED,
        norm=norm,
        alpha=np.asarray(density) if signed else alpha,
        extent=_extent(item),
        interpolation="nearest",
    )
    if not defined.all():
        outline(axes, item, defined, "white", width=0.6, style=(0, (1, 1.5)))
    return drawn


def outline(
    axes: Axes,
    item: Slice,
    mask: NDArray[np.bool_],
    colour: str,
    *,
    style: Any = "-",
    width: float = 1.2,
) -> None:
    """The edge of a mask of any resolution, on a dark halo that keeps it visible on any ground."""
    if not mask.any():
        return
    height, width_mm = _size_mm(item)
    step_y, step_x = height / mask.shape[0], width_mm / mask.shape[1]
    padded = np.pad(mask, 1).astype(np.float32)  # so that edges at the border close
    axes.contour(
        (np.arange(padded.shape[1]) - 0.5) * step_x,
        (np.arange(padded.shape[0]) - 0.5) * step_y,
        padded,
        levels=[0.5],
        colors=[colour],
        linestyles=[style],
        linewidths=width,
    ).set_path_effects([withStroke(linewidth=width + 1.1, foreground=(0, 0, 0, 0.75))])


def fill(
    axes: Axes, item: Slice, mask: NDArray[np.bool_], colour: str, alpha: float = 0.45
) -> None:
    """A mask as an even colour."""
    axes.imshow(
        np.ma.masked_where(~mask, mask.astype(np.uint8)),
        cmap=ListedColormap([colour]),
        alpha=alpha,
        extent=_extent(item),
        interpolation="nearest",
    )


def boundaries(
    axes: Axes, item: Slice, segments: NDArray[np.integer[Any]], colour: str = "#F0E442"
) -> None:
    """Thin lines between segments; negative labels are no segment."""
    edges = find_boundaries(segments)
    axes.imshow(
        np.ma.masked_where(~edges, edges.astype(np.uint8)),
        cmap=ListedColormap([colour]),
        extent=_extent(item),
        interpolation="antialiased",
        interpolation_stage="rgba",
    )


def boxes(
    axes: Axes,
    item: Slice,
    corners: NDArray[Any],
    shape: tuple[int, int],
    *,
    colour: str,
    filling: float = 0.0,
    width: float = 1.2,
) -> None:
    """Boxes (N, 4) XYXY in pixels of a grid of ``shape``; overlaps show where they are filled."""
    height, width_mm = _size_mm(item)
    scale = np.array([width_mm / shape[1], height / shape[0]] * 2)
    patches = [Rectangle((x0, y0), x1 - x0, y1 - y0) for x0, y0, x1, y1 in corners * scale]
    face = to_rgba(colour, filling)
    axes.add_collection(
        PatchCollection(patches, facecolor=face, edgecolor=colour, linewidth=width), autolim=False
    )


def write(axes: Axes, item: Slice, mask: NDArray[np.bool_], words: str) -> None:
    """Words at the innermost pixel of a mask."""
    if mask.any():
        inside = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
        y, x = np.array(np.unravel_index(inside.argmax(), mask.shape)) + 0.5
        row, column = item.spacing
        scale_y = row * item.image.shape[0] / mask.shape[0]
        scale_x = column * item.image.shape[1] / mask.shape[1]
        _text(axes, x * scale_x, y * scale_y, plain(words), ha="center", va="center", size=6.5)


def note(axes: Axes, words: str) -> None:
    """A sentence over a picture."""
    text = textwrap.fill(plain(words), 30)
    _text(axes, 0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", size=7)


def colour_bar(
    figure: Figure,
    mappable: ScalarMappable,
    axes: Axes | Sequence[Axes],
    label: str,
    *,
    below: bool = False,
) -> None:
    """A colour bar beside (or below) one or more panels; pointed where values go on."""
    label = plain(label)
    values: NDArray[Any] = np.ma.compressed(np.ma.asarray(mappable.get_array()))
    norm = mappable.norm
    low, high = (values < norm.vmin).any(), (values > norm.vmax).any()
    bar = figure.colorbar(
        mappable,
        ax=axes,
        label=label,
        location="bottom" if below else "right",
        extend="both" if low and high else "min" if low else "max" if high else "neither",
        fraction=0.05,
        pad=0.02,
        aspect=25,
    )
    bar.outline.set_linewidth(0.5)
    bar.ax.tick_params(labelsize=6.5, width=0.5, length=2)
    bar.ax.locator_params(nbins=4)
    bar.set_label(label, size=7)
    if bar.solids is not None:
        bar.solids.set_alpha(1)


def symmetric(maps: Iterable[NDArray[np.floating[Any]]]) -> Normalize:
    """One scale for signed maps, symmetric around 0; it leaves out the most extreme 0.5%."""
    limit = _percentiles([np.abs(one) for one in maps], (99.5,))[0]
    return Normalize(-limit, limit) if limit > 0 else Normalize(-1, 1)


def spread(maps: Iterable[NDArray[np.floating[Any]]]) -> Normalize:
    """One scale for unsigned maps, without the most extreme 0.5% on both sides."""
    low, high = _percentiles(list(maps), (0.5, 99.5))
    return Normalize(low, high) if high > low else Normalize(low, low + 1)


def _percentiles(
    maps: Sequence[NDArray[np.floating[Any]]], at: Sequence[float]
) -> NDArray[np.float64]:
    values = np.concatenate([np.empty(0), *(one[np.isfinite(one)] for one in maps)])
    return np.percentile(values, at) if values.size else np.zeros(len(at))


def _size_mm(item: Slice) -> tuple[float, float]:
    height, width = item.image.shape
    return height * item.spacing[0], width * item.spacing[1]


def _extent(item: Slice) -> tuple[float, float, float, float]:
    height, width = _size_mm(item)
    return 0.0, width, height, 0.0


def _frame(axes: Axes, item: Slice, marks: bool) -> None:
    height, width = _size_mm(item)
    axes.set(xlim=(0, width), ylim=(height, 0), aspect="equal")
    axes.set_axis_off()
    if not marks:
        return
    _text(axes, 0.015 * width, height / 2, "R", va="center", size=7)
    _text(axes, 0.985 * width, height / 2, "L", va="center", ha="right", size=7)
    length = max((mm for mm in (1, 2, 5, 10, 20, 50, 100) if mm <= width / 4), default=1)
    words = f"{length // 10} cm" if length >= 10 else f"{length} mm"
    x, y = 0.03 * width, 0.96 * height
    bar = axes.plot([x, x + length], [y, y], color="white", linewidth=1.6, solid_capstyle="butt")
    bar[0].set_path_effects([withStroke(linewidth=2.8, foreground="black")])
    _text(axes, x + length / 2, y - 0.015 * height, words, ha="center", va="bottom", size=6.5)


def _text(axes: Axes, x: float, y: float, words: str, **settings: Any) -> None:
    text = axes.text(x, y, words, color="white", **settings)
    text.set_path_effects([withStroke(linewidth=1.6, foreground="black")])
