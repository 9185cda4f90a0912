"""The record of a slice, from a scan to its maps, and its file."""

from __future__ import annotations

import os
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xaiclip.data.geometry import Geometry
from xaiclip.errors import Caution, Skip
from xaiclip.files import Arrays, load_meta, open_arrays, save_arrays


@dataclass(frozen=True, eq=False)
class SliceName:
    """Which slice: what every stage's results of it begin with.

    Attributes:
        case: where it comes from.
        index: axial index in the canonical volume, counted from the feet.
    """

    case: str
    index: int

    @property
    def key(self) -> str:
        """Name of the slice within a batch."""
        return f"{self.case}/{self.index}"


@dataclass(frozen=True, eq=False)
class Slice(SliceName):
    """One axial slice as a radiologist sees it: row 0 anterior, column 0 the patient's right.

    Attributes:
        modality: of the case.
        image: uint8 (H, W), windowed.
        label: uint8 (H, W), class indices; None without reference.
        geometry: of the source volume.
    """

    modality: str
    image: NDArray[np.uint8]
    label: NDArray[np.uint8] | None
    geometry: Geometry

    @property
    def spacing(self) -> tuple[float, float]:
        """Height and width of a pixel, mm; 1 where ``geometry.measured`` is false."""
        x, y, _ = self.geometry.spacing
        return y, x


def save_slices(
    path: str | os.PathLike[str],
    slices: Sequence[Slice],
    skips: Sequence[Skip] = (),
    warnings: Sequence[Caution] = (),
) -> None:
    """Write a batch to one .npz file."""
    arrays: dict[str, NDArray[Any]] = {}
    rows = []
    for item in slices:
        arrays[f"{item.key}/image"] = item.image
        if item.label is not None:
            arrays[f"{item.key}/label"] = item.label
        rows.append(
            {
                "case": item.case,
                "index": item.index,
                "modality": item.modality,
                "affine": item.geometry.affine.tolist(),
                "shape": list(item.geometry.shape),
                "measured": item.geometry.measured,
            }
        )
    meta = {
        "slices": rows,
        "skips": [skip.to_dict() for skip in skips],
        "warnings": [warning.to_dict() for warning in warnings],
    }
    save_arrays(path, arrays, meta)


def load_slices(
    path: str | os.PathLike[str], cases: Container[str] | None = None
) -> tuple[list[Slice], list[Skip]]:
    """Read what `save_slices` wrote: the slices of these cases, or all, and what was left out."""
    with open_arrays(path) as stored:
        slices = [
            _slice(stored, row)
            for row in stored.meta["slices"]
            if cases is None or row["case"] in cases
        ]
        return slices, [Skip(**skip) for skip in stored.meta["skips"]]


def slice_names(path: str | os.PathLike[str]) -> list[SliceName]:
    """The slices in the file of `save_slices`; none is read."""
    return [SliceName(row["case"], row["index"]) for row in load_meta(path)["slices"]]


def load_slice(path: str | os.PathLike[str], name: SliceName) -> Slice:
    """Read one slice of what `save_slices` wrote.

    Raises:
        KeyError: it holds none of that name.
    """
    with open_arrays(path) as stored:
        for row in stored.meta["slices"]:
            if (row["case"], row["index"]) == (name.case, name.index):
                return _slice(stored, row)
    raise KeyError(name.key)


def _slice(stored: Arrays, row: Mapping[str, Any]) -> Slice:
    key = f"{row['case']}/{row['index']}"
    x, y, z = row["shape"]
    return Slice(
        case=row["case"],
        index=row["index"],
        modality=row["modality"],
        image=stored[f"{key}/image"],
        label=stored.get(f"{key}/label"),
        geometry=Geometry(np.array(row["affine"]), (x, y, z), row["measured"]),
    )
