"""Where organs are in a slice, in one call: enhanced, mapped, cut into regions."""

from __future__ import annotations

import os
from pathlib import Path

from xaiclip.data.slices import Slice
from xaiclip.device import choose_device
from xaiclip.errors import ConfigError
from xaiclip.localizer.model import Localizer, load_localizer, predict_slice
from xaiclip.masks.roi import Roi, RoiSettings, rois_of
from xaiclip.preprocess import PreprocessSettings, preprocess
from xaiclip.resources import shipped
from xaiclip.weights import check_sums

#: The shipped localizer.
COMPACT = "compact"
FILE = "localizer.safetensors"


class Locator:
    """A trained localizer with what stands around it in the workflow.

    Args:
        localizer: ``compact``, a file, or a loaded localizer.
        device: where it runs.
        settings: of the enhancement before it; those that it was trained with.

    Raises:
        ConfigError: there is no such localizer.
    """

    def __init__(
        self,
        localizer: str | os.PathLike[str] | Localizer = COMPACT,
        device: str = "auto",
        settings: PreprocessSettings = PreprocessSettings(),
    ) -> None:
        if not isinstance(localizer, Localizer):
            path = Path(localizer)
            if localizer == COMPACT:
                folder = shipped("compact")
                path = folder / FILE
                check_sums(folder, (FILE,))
            elif not path.is_file():
                raise ConfigError(
                    f"there is no localizer '{path}': give '{COMPACT}' or the .safetensors file of "
                    "a study (results/demo/localizer/text/localizer.safetensors)."
                )
            localizer = load_localizer(path)
        self.localizer = localizer.to(choose_device(device))
        self.settings = settings

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
