"""Axial slices: which are taken of a case, their grey values, and their file."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from xaiclip.data.geometry import Geometry, Volume, display
from xaiclip.data.sheet import Case
from xaiclip.data.volumes import check_same_grid, read_volume, restore
from xaiclip.errors import CaseError, Skip
from xaiclip.files import load_arrays, save_arrays
from xaiclip.organs import organs_of

STAGE = "slices"


@dataclass(frozen=True, eq=False)
class Slice:
    """One axial slice as a radiologist sees it: row 0 anterior, column 0 the patient's right.

    Attributes:
        case, modality: where it comes from.
        index: axial index in the canonical volume, counted from the feet.
        image: uint8 (H, W), windowed.
        label: uint8 (H, W), class indices; None without reference.
        geometry: of the source volume.
    """

    case: str
    index: int
    modality: str
    image: NDArray[np.uint8]
    label: NDArray[np.uint8] | None
    geometry: Geometry

    @property
    def key(self) -> str:
        """Name of the slice within a batch."""
        return f"{self.case}/{self.index}"

    @property
    def spacing(self) -> tuple[float, float]:
        """Height and width of a pixel, mm."""
        x, y, _ = self.geometry.spacing
        return y, x


def window_ct(hu: NDArray[Any], level: float = 40, width: float = 400) -> NDArray[np.uint8]:
    """Hounsfield units to 0…255, linear inside the window."""
    scaled = (np.asarray(hu, dtype=np.float32) - (level - width / 2)) / width
    return np.rint(np.clip(scaled, 0, 1) * 255).astype(np.uint8)


def window_mr(volume: NDArray[Any], low: float = 0.5, high: float = 99.5) -> NDArray[np.uint8]:
    """MR intensities to 0…255 between two percentiles of the non-zero voxels of the volume."""
    tissue = volume[volume != 0]
    if not tissue.size:
        return np.zeros(volume.shape, dtype=np.uint8)
    black, white = np.percentile(tissue, [low, high])
    if white <= black:
        return np.zeros(volume.shape, dtype=np.uint8)
    scaled = (np.asarray(volume, dtype=np.float32) - black) / (white - black)
    return np.rint(np.clip(scaled, 0, 1) * 255).astype(np.uint8)


def map_labels(
    label: Volume, table: Mapping[int, str], classes: Sequence[str]
) -> NDArray[np.uint8]:
    """Label ids to class indices; an organ that is no class becomes background.

    Raises:
        CaseError: ids that the table does not know.
    """
    found = np.unique(label.array)
    unknown = [int(value) for value in found if value != 0 and int(value) not in table]
    if unknown:
        raise CaseError(
            f"holds the label ids {', '.join(map(str, unknown[:8]))}, which 'data.labels' does not "
            "name; add them to it.",
            label.path,
        )
    index = {organ: position for position, organ in enumerate(classes)}
    lookup = np.zeros(int(found.max(initial=0)) + 1, dtype=np.uint8)
    for value in found:
        if value != 0:
            lookup[value] = index.get(table[int(value)], 0)
    return lookup[label.array]


def choose_slices(
    policy: str,
    depth: int,
    labels: NDArray[np.uint8] | None,
    index: int | None = None,
    every: int = 1,
) -> list[int]:
    """Axial indices that a policy picks.

    Args:
        policy: ``middle``, ``middle_labelled``, ``index`` or ``all``.
        depth: number of axial slices.
        labels: (X, Y, Z) class indices, or None.
        index: of the canonical volume, counted from the feet, for policy ``index``.
        every: step of policy ``all``, over the slices that hold a wanted organ (over all
            slices, without labels).

    Raises:
        CaseError: the policy picks nothing.
    """
    held = None if labels is None else np.flatnonzero((labels > 0).any(axis=(0, 1)))
    if policy == "middle":
        return [depth // 2]
    if policy == "index":
        if index is None or not 0 <= index < depth:
            raise CaseError(f"has no slice {index}: it has {depth}; correct the slice policy.")
        return [index]
    if policy == "middle_labelled":
        if held is None:
            raise CaseError("has no label, which the slice policy 'middle_labelled' needs.")
        if not held.size:
            raise CaseError("its label holds none of the wanted organs.")
        middle = (held[0] + held[-1]) // 2  # may lie between two organs
        return [int(held[np.abs(held - middle).argmin()])]
    if policy == "all":
        if held is not None and not held.size:
            raise CaseError("its label holds none of the wanted organs.")
        return [int(k) for k in (np.arange(depth) if held is None else held)[::every]]
    raise ValueError(f"unknown slice policy '{policy}'")


def take_slices(case: Case, settings: Mapping[str, Any]) -> tuple[list[Slice], list[Skip]]:
    """The wanted slices of a case.

    Args:
        case: files and modality.
        settings: ``classes``, ``labels`` (id to organ), ``window`` (level, width),
            ``percentiles`` (low, high), ``policy``, ``index``, ``every``.

    Returns:
        The slices, and what was left out: the case if it cannot be used, slices that are
        constant or hold no wanted organ, and organs that a slice lacks.
    """
    if case.problem is not None and (reason := case.problem.read_text(encoding="utf-8").strip()):
        return [], [Skip(case.name, "prepare", reason)]
    try:
        image = read_volume(case.image)
        labels = None
        if case.label is not None:
            grid = image.geometry, settings["labels"]
            label = read_volume(case.label, label=True, segments=grid)
            check_same_grid(image, label)
            labels = map_labels(label, settings["labels"], settings["classes"])
        depth = image.array.shape[2]
        try:
            chosen = choose_slices(
                settings["policy"], depth, labels, settings.get("index"), settings.get("every", 1)
            )
        except CaseError as error:
            raise CaseError(error.reason, case.image) from None
    except CaseError as error:
        return [], [Skip(case.name, STAGE, f"{_role(case, error)}: {error.reason}")]
    if case.modality == "CT":
        window = settings["window"]
        grey = window_ct(image.array[:, :, chosen], window["level"], window["width"])
    else:
        percentiles = settings["percentiles"]
        grey = window_mr(image.array, percentiles["low"], percentiles["high"])[:, :, chosen]
    slices, skips = [], []
    for position, index in enumerate(chosen):
        pixels = display(grey[:, :, position])
        classes = None if labels is None else display(labels[:, :, index])
        if pixels.min() == pixels.max():
            reason = f"image: axial slice {index} is constant after windowing"
            skips.append(Skip(case.name, STAGE, f"{reason}; choose another slice.", index))
            continue
        if classes is not None and not classes.any():
            reason = f"label: axial slice {index} holds none of the wanted organs"
            cure = "choose another slice, or the policy 'middle_labelled'."
            skips.append(Skip(case.name, STAGE, f"{reason}; {cure}", index))
            continue
        for number, organ in enumerate(organs_of(settings["classes"]), start=1):
            # to training, a slice without the organ is an example like any other
            if case.split == "test" and classes is not None and not (classes == number).any():
                reason = f"the reference has no {organ} in axial slice {index}"
                skips.append(Skip(case.name, STAGE, reason, index, organ))
        slices.append(Slice(case.name, index, case.modality, pixels, classes, image.geometry))
    return slices, skips


def _role(case: Case, error: CaseError) -> str:
    """Which of a case's files an error is about: its path may hold a patient's name."""
    if case.label is None or error.file is None:
        return "image"
    return "label" if case.label in (error.file, *error.file.parents) else "image"


def restore_slices(stack: Mapping[int, NDArray[Any]], source: Slice) -> nib.Nifti1Image:
    """Maps (H, W) by axial index, in the geometry of the slice's volume; NaN elsewhere."""
    return restore(stack, source.geometry)


def save_slices(
    path: str | os.PathLike[str], slices: Sequence[Slice], skips: Sequence[Skip] = ()
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
            }
        )
    save_arrays(path, arrays, {"slices": rows, "skips": [skip.to_dict() for skip in skips]})


def load_slices(path: str | os.PathLike[str]) -> tuple[list[Slice], list[Skip]]:
    """Read what `save_slices` wrote."""
    arrays, meta = load_arrays(path)
    slices = []
    for row in meta["slices"]:
        key = f"{row['case']}/{row['index']}"
        x, y, z = row.pop("shape")
        geometry = Geometry(np.array(row.pop("affine")), (x, y, z))
        image, label = arrays[f"{key}/image"], arrays.get(f"{key}/label")
        slices.append(Slice(**row, image=image, label=label, geometry=geometry))
    return slices, [Skip(**skip) for skip in meta["skips"]]
