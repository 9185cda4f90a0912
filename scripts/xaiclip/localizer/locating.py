"""Where organs are in a slice, in one call: enhanced, mapped, cut into regions."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from xaiclip.data.record import Slice
from xaiclip.device import choose_device
from xaiclip.errors import ConfigError
from xaiclip.localizer.model import Localizer, load_localizer, predict_slice
from xaiclip.masks.roi import Roi, RoiSettings, rois_of
from xaiclip.preprocess import PreprocessSettings, preprocess
from xaiclip.resources import shipped

#: Slices of a volume that are looked at to choose one.
LOOKS = 16
#: The shipped localizer.
COMPACT = "compact"
FILE = "localizer.safetensors"


class Locator:
    """A trained localizer with what stands around it in the workflow.

    Args:
        localizer: ``compact``, a file, or a loaded localizer.
        device: where it runs.
        settings: of the enhancement before it, as in its training; None: the config's defaults.

    Raises:
        ConfigError: there is no such localizer.
    """

    def __init__(
        self,
        localizer: str | os.PathLike[str] | Localizer = COMPACT,
        device: str = "auto",
        settings: PreprocessSettings | None = None,
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

    @property
    def classes(self) -> tuple[str, ...]:
        """Background and the organs that it knows."""
        return self.localizer.classes

    def rois(self, item: Slice, settings: RoiSettings | None = None) -> dict[str, Roi]:
        """The region of each organ; empty, with no box, where it does not find it."""
        image, letterbox = preprocess(item.image, self.settings)
        maps = predict_slice(self.localizer, image)
        found, _ = rois_of(item, maps, letterbox, self.classes, settings or RoiSettings())
        return {organ: sources["localizer"] for organ, sources in found.items()}

    @torch.inference_mode()
    def choose(self, items: Sequence[Slice], organs: Sequence[str]) -> Slice:
        """The slice that shows most of some organs: of as many as it can, then the largest area.

        At most `LOOKS` slices, evenly spaced, are looked at, coarsely: one forward each.
        """
        step = -(-len(items) // LOOKS)
        some = list(items[step // 2 :: step]) or list(items)
        images = np.stack([preprocess(item.image, self.settings)[0] for item in some])
        pixels = torch.from_numpy(images).to(self.localizer.sharpness.device)
        winners = self.localizer(pixels).argmax(1).cpu().numpy()
        wanted = [self.classes.index(organ) for organ in organs]
        areas = np.stack([(winners == organ).sum((1, 2)) for organ in wanted], axis=1)
        best = max(range(len(some)), key=lambda k: ((areas[k] > 0).sum(), areas[k].sum()))
        return some[best]
