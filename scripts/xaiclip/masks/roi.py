"""From probability maps to regions of interest: a mask and a box per organ."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xaiclip.data.record import Slice
from xaiclip.errors import Skip
from xaiclip.explain.settings import setting
from xaiclip.files import Arrays, load_meta, open_arrays, writing_arrays
from xaiclip.organs import BACKGROUND
from xaiclip.preprocess import Letterbox

STAGE = "roi"

#: Where an ROI can come from: the localizer, the reference (an oracle), everything but air.
SOURCES = ("localizer", "reference", "body")

#: The source that each guidance of the configuration uses; ``full`` uses none.
SOURCES_OF_GUIDANCE: Mapping[str, str | None] = {
    "full": None,
    "roi": "localizer",
    "roi_reference": "reference",
    "roi_body": "body",
}

#: The source of the box that each ``explain.prompt`` stands for.
SOURCES_OF_PROMPT: Mapping[str, str] = {"roi": "localizer", "reference": "reference"}

#: The source that each ``regions`` of a method's settings stands for; the prediction needs none.
SOURCES_OF_REGIONS: Mapping[str, str] = {"label": "reference", "localizer": "localizer"}


@dataclass(frozen=True)
class RoiSettings:
    """How a probability map becomes an ROI; `top_fraction` is the paper's other rule."""

    rule: str = setting(
        "threshold",
        "Probability >= `threshold`, or the `top_fraction` most probable pixels.",
        one_of=("threshold", "top_fraction"),
    )
    threshold: float = setting(0.5, "Of the smoothed probability.", above=0, below=1)
    top_fraction: float = setting(
        0.2, "Share of the image, for rule `top_fraction`.", above=0, below=1
    )
    sigma: float = setting(
        1.0, "Gaussian before the threshold, in pixels of the letterbox.", minimum=0, maximum=50
    )
    margin: float = setting(
        5, "Added to each side of the box, in pixels of the slice.", minimum=0, maximum=512
    )
    min_pixels: int = setting(0, "A smaller ROI counts as empty.", minimum=0)


@dataclass(frozen=True, eq=False)
class Roi:
    """A region of interest in a slice.

    Attributes:
        mask: bool (H, W).
        box: float32 (4,) XYXY in pixels of the slice, margin included; None if it is empty.
    """

    mask: NDArray[np.bool_]
    box: NDArray[np.float32] | None


#: The ROIs of a slice, by organ and source.
SliceRois = Mapping[str, Mapping[str, Roi]]


def roi_mask(
    probability: NDArray[np.floating[Any]], letterbox: Letterbox, settings: RoiSettings
) -> NDArray[np.bool_]:
    """Smooth an organ's probability map, cut it, bring it to the slice.

    There is no min–max scaling: the probabilities are calibrated by the softmax, and scaling
    would invent an ROI in a slice without the organ.

    Args:
        probability: (S, S) in [0, 1], on the letterbox grid.
        letterbox: the way back to the slice.
        settings: which pixels count.

    Returns:
        bool (H, W).
    """
    from scipy import ndimage

    smooth = ndimage.gaussian_filter(probability.astype(np.float32), settings.sigma)
    threshold = settings.threshold
    if settings.rule == "top_fraction":
        inside = letterbox.crop(smooth)  # the padding must not count as area
        # a pixel without any probability is in no ROI, however large the fraction
        threshold = max(np.quantile(inside, 1 - settings.top_fraction), np.finfo(np.float32).tiny)
    return np.asarray(letterbox.invert(smooth >= threshold, nearest=True))


def box_of(mask: NDArray[np.bool_], margin: float = 0) -> NDArray[np.float32] | None:
    """Bounding box of a mask plus a margin, inside the image; None for an empty mask."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not rows.size:
        return None
    height, width = mask.shape
    return np.array(
        [
            max(0.0, columns[0] - margin),
            max(0.0, rows[0] - margin),
            min(width, columns[-1] + 1 + margin),
            min(height, rows[-1] + 1 + margin),
        ],
        dtype=np.float32,
    )


def body_mask(image: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Everything that is not air: the largest component above the air's level, opened and filled.

    The opening cuts thin things off (the table, wires); filling takes in lungs and gas.

    Args:
        image: uint8 (H, W), windowed CT or MR.

    Returns:
        bool (H, W); nothing for a constant image.
    """
    from scipy import ndimage
    from skimage.filters import threshold_otsu

    smooth = ndimage.gaussian_filter(image.astype(np.float32), 1)
    if smooth.min() == smooth.max():
        return np.zeros(image.shape, dtype=bool)
    # Otsu splits bright from dark tissue; a quarter of it keeps fat, which is dark in a CT
    # window. On logarithms it splits noise from signal: MR air is not 0.
    noise = np.expm1(threshold_otsu(np.log1p(smooth)))
    bright = smooth > max(threshold_otsu(smooth) / 4, noise)
    width = max(1, round(max(image.shape) / 100))
    disk = np.hypot(*np.mgrid[-width : width + 1, -width : width + 1]) <= width
    opened = ndimage.binary_opening(bright, disk)
    return np.asarray(ndimage.binary_fill_holes(_largest(opened if opened.any() else bright)))


def _largest(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The largest connected component."""
    from scipy import ndimage

    parts, count = ndimage.label(mask)
    sizes = np.bincount(parts.ravel(), minlength=count + 1)
    sizes[0] = 0
    return np.asarray((parts == sizes.argmax()) & mask)


def rois_of(
    item: Slice,
    probabilities: NDArray[np.floating[Any]],
    letterbox: Letterbox,
    classes: Sequence[str],
    settings: RoiSettings,
) -> tuple[dict[str, dict[str, Roi]], list[Skip]]:
    """The ROIs of a slice, by organ and source.

    Args:
        item: the slice.
        probabilities: (C, S, S), the localizer's maps.
        letterbox: of the maps.
        classes: the C names.
        settings: which pixels count.

    Returns:
        ``rois[organ][source]`` (no ``reference`` without a label), and a skip for each organ
        that the localizer did not find.
    """
    body = body_mask(item.image)
    found: dict[str, dict[str, Roi]] = {}
    skips = []
    for index, organ in enumerate(classes):
        if organ == BACKGROUND:
            continue
        masks = {"localizer": roi_mask(probabilities[index], letterbox, settings), "body": body}
        if item.label is not None:
            masks["reference"] = item.label == index
        if masks["localizer"].sum() < max(1, settings.min_pixels):
            masks["localizer"] = np.zeros_like(body)
            reason = f"empty ROI: the localizer does not find the {organ}"
            skips.append(Skip(item.case, STAGE, reason, item.index, organ))
        found[organ] = {
            source: Roi(masks[source], box_of(masks[source], settings.margin))
            for source in SOURCES
            if source in masks
        }
    return found, skips


def save_rois(
    path: str | os.PathLike[str],
    rois: Mapping[str, SliceRois] | Iterable[tuple[str, SliceRois]],
    skips: Sequence[Skip] = (),
) -> None:
    """Write the ROIs of a batch, by slice key, organ and source, to one .npz file; none is kept.

    What is left out while they are made may still be added to ``skips``.
    """
    keys, boxes = [], {}
    with writing_arrays(path) as writer:
        for key, organs in rois.items() if isinstance(rois, Mapping) else rois:
            keys.append(key)
            for organ, sources in organs.items():
                for source, roi in sources.items():
                    name = f"{key}/{organ}/{source}"
                    writer[name] = roi.mask
                    boxes[name] = None if roi.box is None else roi.box.tolist()
        told = [skip.to_dict() for skip in skips]
        writer.meta = {"slices": keys, "boxes": boxes, "skips": told}


class StoredRois(Mapping[str, dict[str, dict[str, Roi]]]):
    """What `save_rois` wrote, by slice key: a slice's ROIs are read when they are asked for.

    Attributes:
        skips: what was left out.
    """

    def __init__(self, stored: Arrays) -> None:
        self._stored = stored
        self._names: dict[str, list[str]] = {key: [] for key in stored.meta["slices"]}
        for name in stored:
            self._names[name.rsplit("/", 2)[0]].append(name)
        self.skips = [Skip(**skip) for skip in stored.meta["skips"]]

    def __getitem__(self, key: str) -> dict[str, dict[str, Roi]]:
        rois: dict[str, dict[str, Roi]] = {}
        for name in self._names[key]:
            organ, source = name.rsplit("/", 2)[1:]
            rois.setdefault(organ, {})[source] = _roi(self._stored, name)
        return rois

    def __contains__(self, key: object) -> bool:
        return key in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


@contextmanager
def open_rois(path: str | os.PathLike[str]) -> Iterator[StoredRois]:
    """What `save_rois` wrote, for reading slice by slice."""
    with open_arrays(path) as stored:
        yield StoredRois(stored)


def load_roi(path: str | os.PathLike[str], key: str, organ: str, source: str) -> Roi:
    """Read one ROI of what `save_rois` wrote.

    Raises:
        KeyError: it holds no such ROI.
    """
    with open_arrays(path) as stored:
        return _roi(stored, f"{key}/{organ}/{source}")


def roi_keys(path: str | os.PathLike[str]) -> set[str]:
    """The slices in the file of `save_rois`; no mask is read."""
    return set(load_meta(path)["slices"])


def _roi(stored: Arrays, name: str) -> Roi:
    box = stored.meta["boxes"][name]
    return Roi(stored[name], None if box is None else np.array(box, dtype=np.float32))
