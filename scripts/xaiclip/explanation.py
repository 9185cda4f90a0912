"""What comes back from `xaiclip.explain`: maps by organ, and what can be made of them."""

from __future__ import annotations

import base64
import html
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from xaiclip.data.record import Slice
from xaiclip.data.volumes import restore, write_image
from xaiclip.errors import CaseError, ConfigError
from xaiclip.explain.attribution import Attribution, to_canonical_mask, to_slice_grid
from xaiclip.explain.store import SliceScores, score_frame
from xaiclip.files import atomic
from xaiclip.organs import organs_of
from xaiclip.seeds import derived

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure
    from PIL.Image import Image

#: Resolution of pictures, dots an inch.
DPI = 150
_NOTHING = {"ptflops": float("nan"), "total": float("nan")}


@dataclass(frozen=True, eq=False, repr=False)
class Explanation(Mapping[str, NDArray[np.float32]]):
    """The maps of one slice under one method: float32 (H, W) in its own pixels, by organ.

    Larger is more important; NaN where a map is undefined. ``maps["liver"]`` is the primary map,
    ``maps["liver", "paper"]`` that of a variant, ``maps["liver", "paper", "soft_dice"]`` that of a
    variant and value function.

    Attributes:
        slice: what was explained, with its geometry.
        scores: the plans and the score tables behind the maps: new maps need no new forward.
        attributions: all maps on the canonical grid.
        masks: the unperturbed segmentation of each organ, bool (H, W).
        boxes: each organ's prompt.
        regions: each organ's ROI, bool (H, W); none without guidance.
        roi_source: where they come from.
        classes: what the numbers of the slice's label stand for.
        left_out: why an organ has no map.
        model, device, precision: what computed.
        seed: as given.
        seconds_aggregate: that making all maps from the scores took.
    """

    slice: Slice
    scores: SliceScores
    attributions: Sequence[Attribution]
    masks: Mapping[str, NDArray[np.bool_]]
    boxes: Mapping[str, NDArray[np.float32] | None]
    regions: Mapping[str, NDArray[np.bool_]]
    roi_source: str | None
    classes: tuple[str, ...]
    left_out: Mapping[str, str]
    model: str
    device: str
    precision: str
    seed: int
    seconds_aggregate: float

    # --- maps ------------------------------------------------------------------------------------

    def __getitem__(self, key: str | tuple[str, ...]) -> NDArray[np.float32]:
        return to_slice_grid(self.attribution(key).map, self.shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self.organs)

    def __len__(self) -> int:
        return len(self.organs)

    def __contains__(self, key: object) -> bool:
        try:
            self.attribution(key)  # type: ignore[arg-type]
        except KeyError:
            return False
        return True

    def attribution(self, key: str | tuple[str, ...]) -> Attribution:
        """The map on the canonical grid, with what the method says of it.

        Raises:
            KeyError: there is none; names those that there are.
        """
        organ, *rest = (key,) if isinstance(key, str) else tuple(key)
        for one in self.attributions:
            names = (one.variant, one.value)[: len(rest)]
            if one.organ == organ and (names == tuple(rest) if rest else one.primary):
                return one
        if organ in self.left_out:
            raise KeyError(f"{organ} has no map: {self.left_out[organ]}.")
        raise KeyError(
            f"there is no map {key!r}; organs are {', '.join(self.organs)}, variants "
            f"{', '.join(self.variants)}."
        )

    @property
    def organs(self) -> tuple[str, ...]:
        """Those that have a map."""
        return self.scores.context.organs

    @property
    def variants(self) -> tuple[str, ...]:
        """The variants of the method, the primary one first."""
        return tuple(dict.fromkeys(one.variant for one in self.attributions))

    @property
    def shape(self) -> tuple[int, int]:
        """(H, W) of the slice."""
        height, width = self.slice.image.shape
        return height, width

    @property
    def method(self) -> str:
        """The method's name."""
        return self.scores.method

    @property
    def guidance(self) -> str:
        """The guidance's name."""
        return self.scores.guidance

    # --- cost and metrics ------------------------------------------------------------------------

    @property
    def n_forwards(self) -> int:
        """Images that the model encoded for all maps, the unperturbed one included."""
        return 1 + self.scores.n_forwards

    @property
    def seconds(self) -> float:
        """Of all of it, without loading the model."""
        return self.scores.seconds_total + self.seconds_aggregate

    def score_table(self) -> pd.DataFrame:
        """Every score: a row for each organ, plan and forward (0 = unperturbed)."""
        return score_frame([self.scores])

    def metrics(self, reference: Mapping[str, Any] | None = None) -> pd.DataFrame:
        """One row a map, and one for each organ without any: the columns of explanations.parquet.

        Args:
            reference: the true mask of an organ, bool (H, W); by default those of the slice's
                label. Columns that end in ``_gt`` need it.

        Returns:
            All columns that the workflow's table has; operations (``gflops_…``) are not counted
            here, and empty.

        Raises:
            ConfigError: a mask is not of the slice's shape.
        """
        import pandas as pd

        from xaiclip.metrics.schema import EXPLANATIONS

        masks = self._reference() if reference is None else self._checked(reference)
        rows = [row for organ in self._asked() for row in self._rows(organ, masks.get(organ))]
        return pd.DataFrame(rows, columns=EXPLANATIONS.names)

    def _asked(self) -> tuple[str, ...]:
        return (*self.organs, *(organ for organ in self.left_out if organ not in self.organs))

    def _rows(self, organ: str, reference: NDArray[np.bool_] | None) -> list[dict[str, Any]]:
        """The rows of one organ, by the function that the workflow's come from."""
        from xaiclip.errors import Skip
        from xaiclip.metrics.rows import explanation_rows

        label = None if reference is None else reference.astype(np.uint8)
        reason = self.left_out.get(organ)
        skips = (
            []
            if reason is None
            else [Skip(self.slice.case, "explain", reason, self.slice.index, organ)]
        )
        rows = explanation_rows(
            replace(self.slice, label=label),
            self.scores,
            [one for one in self.attributions if one.organ == organ],
            skips,
            organs=[organ],
            method=self.method,
            guidance=self.guidance,
            prompt="reference",  # what the localizer took is its caller's to add
            seed=derived(self.seed, "explain", self.method),
            segmented={organ: self.masks.get(organ)},
            reference={organ: None if reference is None else to_canonical_mask(reference)},
            seconds_aggregate=self.seconds_aggregate,
            seconds_roi=None,
            cost={
                "device": self.device,
                "precision": self.precision,
                "decoded_organs": 1,
                **dict.fromkeys(("encode", "decode", "localizer"), _NOTHING),
            },
        )
        return [{**row, "roi_source": self.roi_source} for row in rows]

    def _reference(self) -> dict[str, NDArray[np.bool_]]:
        label = self.slice.label
        if label is None:
            return {}
        return {organ: label == k for k, organ in enumerate(organs_of(self.classes), 1)}

    def _checked(self, reference: Mapping[str, Any]) -> dict[str, NDArray[np.bool_]]:
        masks = {organ: np.asarray(mask) for organ, mask in reference.items()}
        for organ, mask in masks.items():
            if mask.shape != self.shape:
                raise ConfigError(
                    f"the reference of {organ} has the shape {mask.shape}, but the slice has "
                    f"{self.shape}: give a mask (H, W) in pixels of the slice."
                )
        return {organ: mask.astype(bool) for organ, mask in masks.items()}

    # --- pictures and files ----------------------------------------------------------------------

    def figure(self, organs: Sequence[str] | None = None) -> Figure:
        """As `picture`, as a matplotlib figure."""
        from xaiclip.report.overview import overview

        return overview(self, organs)

    def picture(self, organs: Sequence[str] | None = None, dpi: float = DPI) -> Image:
        """Each organ's segmentation and map over the slice, with a colour bar.

        It shows no name of a patient or a file. ``.save("x.png")`` writes it.

        Args:
            organs: which of them; all by default.
            dpi: dots an inch; it is 7.16 inches wide.
        """
        import PIL.Image

        image = PIL.Image.open(io.BytesIO(self._png(organs, dpi)))
        image.load()
        return image

    def save_picture(
        self,
        path: str | os.PathLike[str],
        organs: Sequence[str] | None = None,
        dpi: float = DPI,
    ) -> None:
        """Write `picture` as a PNG, whole or not at all."""
        content = self._png(organs, dpi)
        with atomic(path) as temporary:
            temporary.write_bytes(content)

    def save_nifti(self, path: str | os.PathLike[str], key: str | tuple[str, ...] = "") -> None:
        """Write a map as NIfTI in the geometry of the source volume; NaN outside the slice.

        Args:
            path: ends in ``.nii.gz``.
            key: which map, as for ``maps[key]``; not needed if there is one organ.

        Raises:
            CaseError: the image was an array or a picture, which lies nowhere.
            ConfigError: which organ's map it should be is not said, or another ending.
        """
        if not self.slice.geometry.measured:
            raise CaseError(
                "the image has no geometry (an array, a picture): a map of it is no NIfTI; keep "
                "the array, or explain the scan's own file."
            )
        if not key and len(self.organs) != 1:
            raise ConfigError(f"say which map: save_nifti(path, '{self.organs[0]}').")
        if not os.fspath(path).endswith(".nii.gz"):
            raise ConfigError(f"'{path}' must end in .nii.gz.")
        one = {self.slice.index: self[key or self.organs[0]]}
        write_image(path, restore(one, self.slice.geometry))

    def _png(self, organs: Sequence[str] | None = None, dpi: float = DPI) -> bytes:
        from xaiclip.report import style

        stream = io.BytesIO()
        style.write_png(self.figure(organs), stream, dpi)
        return stream.getvalue()

    # --- shown in a notebook ---------------------------------------------------------------------

    def __repr__(self) -> str:
        height, width = self.shape
        words = f"{self.method}, guidance {self.guidance}, model {self.model}"
        lines = [
            f"Explanation of {', '.join(self.organs)} ({words})",
            f"  slice {self.slice.index} of {self.slice.case}, {height} × {width} pixels (H × W)",
            f"  {self.n_forwards} forwards, {self.seconds:.1f} s; variants {self._variant_words}",
        ]
        lines += [f"  without {organ}: {reason}" for organ, reason in self.left_out.items()]
        return "\n".join(lines)

    @cached_property
    def _variant_words(self) -> str:
        return ", ".join(self.variants)

    def _repr_png_(self) -> bytes:
        return self._png()

    def _repr_html_(self) -> str:
        shown = base64.b64encode(self._png()).decode()
        return (
            f'<pre>{html.escape(repr(self))}</pre><img alt="maps" style="max-width:100%" '
            f'src="data:image/png;base64,{shown}">'
        )
