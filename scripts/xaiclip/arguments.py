"""The arguments of `xaiclip.explain`: checked, and as the runner takes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from xaiclip import config
from xaiclip.config.methods import methods
from xaiclip.errors import ConfigError
from xaiclip.explain.values import VALUES
from xaiclip.masks.roi import SOURCES_OF_GUIDANCE, Roi, RoiSettings, body_mask, box_of
from xaiclip.models.segmenters.fixed import FixedClassSegmenter
from xaiclip.organs import organs_of

if TYPE_CHECKING:
    from tqdm import tqdm

    from xaiclip.data.record import Slice
    from xaiclip.models.segmenters.base import Segmenter

    Progress = bool | Callable[[int, int], None]

Boxes = Mapping[str, ArrayLike | Roi | None] | str | None


def settings_of(method: str, given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The method's section of the config, complete: what its plans and what its maps hang on.

    Raises:
        ConfigError: it has no such setting, or a value is none that it can have.
    """
    try:
        full = config.complete({"methods": {method: dict(given)}})
    except ConfigError as error:
        words = str(error).replace(f"config key 'methods.{method}.", f"setting '{method}.")
        raise ConfigError(words) from None
    return methods()[method].split(full["methods"][method])


def check_words(values: Sequence[str], fill: str) -> None:
    if isinstance(values, str) or not values or (unknown := set(values) - set(VALUES)):
        wrong = ", ".join(sorted(unknown)) if not isinstance(values, str) and values else values
        raise ConfigError(f"values are {wrong!r}; give some of {', '.join(VALUES)}.")
    if fill not in ("mean", "zero", "blur"):
        raise ConfigError(f"fill is {fill!r}; it must be mean, zero or blur.")


def boxes_of(
    segmenter: Segmenter,
    item: Slice,
    given: Boxes,
    classes: Sequence[str],
) -> dict[str, NDArray[np.float32] | None]:
    """Each organ's prompt, as the segmenter takes it."""
    height, width = item.image.shape
    if given is None and isinstance(segmenter, FixedClassSegmenter):
        whole = np.array([0, 0, width, height], np.float32)
        return dict.fromkeys(segmenter.channels, whole)
    if given is None:
        raise ConfigError(
            f"model '{segmenter.name}' is told by boxes what to segment: give "
            "boxes={'liver': (x0, y0, x1, y1)} in pixels of the slice, or boxes=locate(image)."
        )
    if isinstance(given, str):
        if given != "reference":
            raise ConfigError(f"boxes are {given!r}; give a box for each organ, or 'reference'.")
        return dict(reference_boxes(item, classes))
    if not given:
        raise ConfigError("boxes are empty: no organ was named, or none was found.")
    return {
        organ: None if box is None else _box(organ, box.box if isinstance(box, Roi) else box, item)
        for organ, box in given.items()
    }


def _box(organ: str, box: ArrayLike | None, item: Slice) -> NDArray[np.float32] | None:
    if box is None:
        return None
    height, width = item.image.shape
    try:
        corners = np.asarray(box, np.float32)
        x0, y0, x1, y1 = corners
    except (TypeError, ValueError):
        raise ConfigError(f"the box of {organ} is {box!r}; give (x0, y0, x1, y1).") from None
    if not np.isfinite(corners).all() or x0 >= x1 or y0 >= y1:
        raise ConfigError(
            f"the box of {organ} is {corners.tolist()}: x0 must be below x1 and y0 below y1, in "
            "pixels of the slice."
        )
    if x1 <= 0 or y1 <= 0 or x0 >= width or y0 >= height:
        raise ConfigError(
            f"the box of {organ} is {corners.tolist()}, outside the slice of {width} × {height} "
            "pixels (width × height)."
        )
    return corners


def reference_boxes(item: Slice, classes: Sequence[str]) -> dict[str, NDArray[np.float32] | None]:
    """The box of each organ that the label holds, with the margin that the workflow leaves."""
    masks = _reference(item, classes)
    return {organ: box_of(mask, RoiSettings().margin) for organ, mask in masks.items()}


def _reference(item: Slice, classes: Sequence[str]) -> dict[str, NDArray[np.bool_]]:
    """The mask of each organ that the label holds."""
    if item.label is None:
        raise ConfigError("the image has no label: load_image(image, label=…) reads one.")
    masks = {organ: item.label == k for k, organ in enumerate(organs_of(classes), 1)}
    return {organ: mask for organ, mask in masks.items() if mask.any()}


def regions_of(
    item: Slice,
    organs: Sequence[str],
    rois: Mapping[str, ArrayLike | Roi] | None,
    guidance: str | None,
    classes: Sequence[str],
) -> tuple[dict[str, NDArray[np.bool_]] | None, str, str | None]:
    """The organs' regions, the guidance's name, and where the regions come from."""
    guidance = guidance or ("full" if rois is None else "roi")
    if guidance not in SOURCES_OF_GUIDANCE:
        known = ", ".join(SOURCES_OF_GUIDANCE)
        raise ConfigError(f"guidance is {guidance!r}; it must be one of: {known}.")
    if (guidance == "roi") != (rois is not None):
        cure = "give rois" if rois is None else "take rois out"
        raise ConfigError(f"guidance is '{guidance}': {cure}, or choose another guidance.")
    if rois is None:
        if guidance == "full":
            return None, guidance, None
        if guidance == "roi_body":
            return dict.fromkeys(organs, body_mask(item.image)), guidance, "body"
        return _reference(item, classes), guidance, "reference"
    found = {}
    for organ in organs:
        if organ in rois:
            roi = rois[organ]
            mask = np.asarray(roi.mask if isinstance(roi, Roi) else roi)
            if mask.shape != item.image.shape:
                raise ConfigError(
                    f"the ROI of {organ} has the shape {mask.shape}, but the slice has "
                    f"{item.image.shape}: give a mask (H, W) in pixels of the slice."
                )
            found[organ] = mask.astype(bool)
    located = any(isinstance(roi, Roi) for roi in rois.values())
    return found, guidance, "localizer" if located else "given"


def units_of(
    item: Slice,
    source: str | None,
    rois: Mapping[str, ArrayLike | Roi] | None,
    classes: Sequence[str],
) -> dict[str, NDArray[np.bool_]]:
    """The organs' regions that a method's setting ``regions`` asks for."""
    if source == "label":
        return _reference(item, classes)
    if source != "localizer":
        return {}
    found = {organ: one.mask for organ, one in (rois or {}).items() if isinstance(one, Roi)}
    if not found:
        raise ConfigError("regions is 'localizer': give the rois that locate(…) found.")
    return found


class Reporting:
    """The bar, or the function, that hears of the forwards."""

    def __init__(self, progress: Progress | None) -> None:
        self._progress = progress
        self._bar: tqdm[Any] | None = None

    def __enter__(self) -> Callable[[int, int], None] | None:
        if self._progress is not True:
            return self._progress or None
        from tqdm.auto import tqdm

        self._bar = tqdm(unit="forward", leave=False)
        return self._report

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def _report(self, done: int, number: int) -> None:
        bar = self._bar
        assert bar is not None
        if done < bar.n or bar.total != number:  # another plan
            bar.reset(number)
        bar.update(done - bar.n)
