"""Where organs are: in which slices of a scan, and where in a slice."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from xaiclip.data.found import first_step, most_shown
from xaiclip.data.record import Slice
from xaiclip.data.slices import Planes
from xaiclip.device import choose_device
from xaiclip.errors import CaseError, ConfigError
from xaiclip.localizer.model import SHIFTS, Localizer, load_localizer, predict, predict_slice
from xaiclip.masks.roi import Roi, RoiSettings, roi_mask, rois_of
from xaiclip.preprocess import PreprocessSettings, preprocess
from xaiclip.resources import shipped

#: Slices of a volume that are looked at side by side.
AT_ONCE = 8
#: The shipped localizer.
COMPACT = "compact"
FILE = "localizer.safetensors"


class Locator:
    """A trained localizer with what stands around it in the workflow.

    Args:
        localizer: ``compact``, a file, or a loaded localizer.
        device: where it runs.
        settings: of the enhancement before it, as in its training; None: the config's defaults.
        roi: how its maps become regions; None: the config's defaults.

    Raises:
        ConfigError: there is no such localizer.
    """

    def __init__(
        self,
        localizer: str | os.PathLike[str] | Localizer = COMPACT,
        device: str = "auto",
        settings: PreprocessSettings | None = None,
        roi: RoiSettings | None = None,
    ) -> None:
        if not isinstance(localizer, Localizer):
            path = Path(localizer)
            if localizer == COMPACT:
                folder = shipped("compact")
                path = folder / FILE
            elif not path.is_file():
                raise ConfigError(
                    f"there is no localizer '{path}': give '{COMPACT}' or the .safetensors file of "
                    "a study (results/demo/localizer/text/localizer.safetensors)."
                )
            localizer = load_localizer(path)
        self.localizer = localizer.to(choose_device(device))
        self.settings = settings or PreprocessSettings()
        self.roi = roi or RoiSettings()

    @property
    def classes(self) -> tuple[str, ...]:
        """Background and the organs that it knows."""
        return self.localizer.classes

    def rois(self, item: Slice, settings: RoiSettings | None = None) -> dict[str, Roi]:
        """The region of each organ; empty, with no box, where it does not find it."""
        image, letterbox = preprocess(item.image, self.settings)
        maps = predict_slice(self.localizer, image)
        found, _ = rois_of(item, maps, letterbox, self.classes, settings or self.roi)
        return {organ: sources["localizer"] for organ, sources in found.items()}

    def find(
        self, planes: Planes, organs: Sequence[str], count: int = 1, apart: int = 1
    ) -> list[int]:
        """The slices of a scan that show the most of some organs, as far as they are found.

        What counts as more is `xaiclip.data.found.most_shown`'s. An organ's area is that of its
        region at a threshold, whatever the rule: a fixed share of every slice tells nothing. One
        forward a slice that is looked at, not four: the choice needs no fine border.

        Args:
            planes: the scan.
            organs: those that are wanted.
            count: of slices.
            apart: the least distance between two of them, in slices.

        Raises:
            CaseError: none of the organs is found.
        """
        if len(planes) == 1:
            return [0]
        numbers = [self.classes.index(organ) for organ in organs]
        found = most_shown(
            lambda some: np.concatenate(
                [
                    self._areas([planes[k] for k in some[start : start + AT_ONCE]], numbers)
                    for start in range(0, len(some), AT_ONCE)
                ]
            ),
            len(planes),
            step=first_step(planes.spacing, len(planes)),
            count=count,
            apart=apart,
        )
        if not found:
            raise CaseError(
                f"the localizer finds no {' and no '.join(organs)} in any slice: say which slice, "
                "or take another localizer."
            )
        return found

    def _areas(
        self, images: Sequence[NDArray[np.uint8]], classes: Sequence[int]
    ) -> NDArray[np.float64]:
        """What share of each slice some classes take, (n, classes)."""
        prepared = [preprocess(image, self.settings) for image in images]
        maps = predict(self.localizer, np.stack([one for one, _ in prepared]), shifts=SHIFTS[:1])
        settings = replace(self.roi, rule="threshold")
        masks = (
            [roi_mask(of_slice[number], letterbox, settings) for number in classes]
            for of_slice, (_, letterbox) in zip(maps, prepared, strict=True)
        )
        return np.array(
            [
                [mask.mean() if mask.sum() >= settings.min_pixels else 0.0 for mask in of_slice]
                for of_slice in masks
            ]
        )
