"""Axial slices: which are taken of a case, and their grey values."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from xaiclip.data.found import most_shown
from xaiclip.data.geometry import Volume, display
from xaiclip.data.grey_values import implausible
from xaiclip.data.labels import read_classes
from xaiclip.data.picture import PICTURES
from xaiclip.data.record import Slice
from xaiclip.data.sheet import Case
from xaiclip.data.volumes import read_volume
from xaiclip.errors import CaseError, Caution, Skip, left_out
from xaiclip.organs import organs_of

STAGE = "slices"


class Taken(NamedTuple):
    """What was taken of a case, what was left out, and what was used though it looks wrong."""

    slices: list[Slice]
    skips: list[Skip]
    warnings: list[Caution]


def window_ct(hu: NDArray[Any], level: float, width: float) -> NDArray[np.uint8]:
    """Hounsfield units to 0…255, linear inside the window."""
    scaled = (np.asarray(hu, dtype=np.float32) - (level - width / 2)) / width
    return np.rint(np.clip(scaled, 0, 1) * 255).astype(np.uint8)


def window_mr(volume: NDArray[Any], low: float, high: float) -> NDArray[np.uint8]:
    """MR intensities to 0…255 between two percentiles of the non-zero voxels of the volume.

    Args:
        volume: (X, Y, Z).
        low, high: percentiles.
    """
    return between(volume, mr_limits(volume, low, high))


def mr_limits(volume: NDArray[Any], low: float, high: float) -> tuple[float, float]:
    """Two percentiles of the non-zero voxels of a volume: what is shown black, and white."""
    tissue = volume[volume != 0].astype(np.float32)
    if not tissue.size:
        return 0.0, 0.0
    black, white = np.percentile(tissue, [low, high], overwrite_input=True)
    return black, white


def between(values: NDArray[Any], limits: tuple[float, float]) -> NDArray[np.uint8]:
    """Grey values to 0…255, linear between two limits; all 0 where these do not differ."""
    black, white = limits
    if white <= black:
        return np.zeros(values.shape, dtype=np.uint8)
    scaled = (np.asarray(values, dtype=np.float32) - black) / (white - black)
    return np.rint(np.clip(scaled, 0, 1) * 255).astype(np.uint8)


class Planes:
    """The axial slices of a scan, as they are shown: each is made when it is asked for.

    Args:
        image: the scan.
        modality: ``CT`` or ``MR``.
        settings: ``window`` (level, width), ``percentiles`` (low, high).
    """

    def __init__(self, image: Volume, modality: str, settings: Mapping[str, Any]) -> None:
        self._image, self._modality, self._settings = image, modality, settings

    def __len__(self) -> int:
        return int(self._image.array.shape[2])

    @property
    def spacing(self) -> float | None:
        """Distance of the slices, mm; None where it is unknown."""
        geometry = self._image.geometry
        return geometry.spacing[2] if geometry.measured else None

    def __getitem__(self, index: int) -> NDArray[np.uint8]:
        """uint8 (H, W); a picture, or a CT of 8 bits, was windowed by someone else."""
        plane = self._image.array[:, :, index]
        if plane.dtype == np.uint8 and (self._modality == "CT" or is_picture(self._image)):
            return display(plane)
        if self._modality == "CT":
            window = self._settings["window"]
            return display(window_ct(plane, window["level"], window["width"]))
        return display(between(plane, self._limits))

    @cached_property
    def _limits(self) -> tuple[float, float]:
        percentiles = self._settings["percentiles"]
        return mr_limits(self._image.array, percentiles["low"], percentiles["high"])


#: What chooses slices of a scan for policy ``found``: their axial indices.
Find = Callable[[Planes], Sequence[int]]


def choose_slices(
    policy: str,
    depth: int,
    labels: NDArray[np.uint8] | None,
    index: int | None = None,
    every: int = 1,
    count: int = 1,
    find: Callable[[], Sequence[int]] | None = None,
) -> list[int]:
    """Axial indices that a policy picks; of a single slice, every policy picks it.

    Args:
        policy: ``middle``, ``middle_labelled``, ``index``, ``all`` or ``found``.
        depth: number of axial slices.
        labels: (X, Y, Z) class indices, or None.
        index: of the canonical volume, counted from the feet, for policy ``index``.
        every: step of policy ``all``, over the slices that hold a wanted organ (over all
            slices, without labels); the least distance of two slices of policy ``found``.
        count: of slices, for policy ``found``.
        find: chooses them for policy ``found``, where there are no labels.

    Raises:
        CaseError: the policy picks nothing.
    """
    if depth == 1:
        return [0]
    held = None
    if labels is not None:
        held = np.array([k for k in range(depth) if labels[:, :, k].any()], dtype=int)
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
    if policy == "found" and labels is not None:
        organs = np.arange(1, int(labels.max()) + 1)
        if not organs.size:
            raise CaseError("its label holds none of the wanted organs.")
        return most_shown(
            lambda some: np.array([[(labels[:, :, k] == o).mean() for o in organs] for k in some]),
            depth,
            count=count,
            apart=every,
        )
    if policy == "found" and find is not None:
        return list(find())
    raise ValueError(f"unknown slice policy '{policy}'")


def read_planes(case: Case, settings: Mapping[str, Any]) -> Planes:
    """The axial slices of a case's scan; ``settings`` as of `take_slices`.

    Raises:
        CaseError: it cannot be read.
    """
    with _role("image"):
        image = read_volume(case.image, orientation=settings.get("orientation"))
    return Planes(image, case.modality, settings)


def take_slices(case: Case, settings: Mapping[str, Any], find: Find | None = None) -> Taken:
    """The wanted slices of a case.

    Args:
        case: files and modality.
        settings: ``classes``, ``labels`` (id to organ), ``window`` (level, width),
            ``percentiles`` (low, high), ``policy``, ``index``, ``every``, ``count``,
            ``orientation`` (of files that tell none, or None), ``implausible`` (``warn`` or
            ``refuse``).
        find: chooses slices for policy ``found``, of a scan without a label.

    Returns:
        The slices; what was left out: the case if it cannot be used, slices that are constant or
        hold no wanted organ, and organs that a slice lacks; and what looks wrong.
    """
    taken = Taken([], [], [])
    with left_out(taken.skips, case.name, STAGE):
        problem = case.problem.read_text(encoding="utf-8").strip() if case.problem else ""
        if problem:
            taken.skips.append(Skip(case.name, "prepare", problem))
        else:
            _take(case, settings, taken, find)
        return taken
    taken.slices.clear()  # what was taken of a case before it failed is not the case
    return taken


def _take(case: Case, settings: Mapping[str, Any], taken: Taken, find: Find | None) -> None:
    orientation = settings.get("orientation")
    refuse = settings.get("implausible") == "refuse"

    def doubt(role: str, reasons: Iterable[str]) -> None:
        for reason in reasons:
            if refuse and role == "image":  # of a label, they tell how it was read
                raise CaseError(f"{role}: {reason}")
            taken.warnings.append(Caution(case.name, STAGE, f"{role}: {reason}"))

    with _role("image"):
        image = read_volume(case.image, orientation=orientation)
    doubt("image", image.warnings)
    doubt("image", _grey_doubts(image, case.modality))
    labels = None
    if case.label is not None:
        with _role("label"):
            labels, reasons = read_classes(
                case.label,
                image,
                settings["labels"],
                settings["classes"],
                orientation=orientation,
            )
        doubt("label", reasons)
    planes = Planes(image, case.modality, settings)
    with _role("image"):
        chosen = choose_slices(
            settings["policy"],
            len(planes),
            labels,
            settings.get("index"),
            settings.get("every", 1),
            settings.get("count", 1),
            None if find is None else lambda: find(planes),
        )
    for index in chosen:
        pixels = planes[index]
        classes = None if labels is None else display(labels[:, :, index])
        if pixels.min() == pixels.max():
            reason = f"image: axial slice {index} is constant after windowing"
            taken.skips.append(Skip(case.name, STAGE, f"{reason}; choose another slice.", index))
            continue
        if classes is not None and not classes.any():
            reason = f"label: axial slice {index} holds none of the wanted organs"
            cure = "choose another slice, or the policy 'middle_labelled'."
            taken.skips.append(Skip(case.name, STAGE, f"{reason}; {cure}", index))
            continue
        for number, organ in enumerate(organs_of(settings["classes"]), start=1):
            # to training, a slice without the organ is an example like any other
            if case.split == "test" and classes is not None and not (classes == number).any():
                reason = f"the reference has no {organ} in axial slice {index}"
                taken.skips.append(Skip(case.name, STAGE, reason, index, organ))
        taken.slices.append(Slice(case.name, index, case.modality, pixels, classes, image.geometry))


@contextmanager
def _role(role: str) -> Iterator[None]:
    """Errors tell which of a case's two files they are about; its path stays apart."""
    try:
        yield
    except CaseError as error:
        raise CaseError(f"{role}: {error.reason}", error.file) from error


def _grey_doubts(image: Volume, modality: str) -> list[str]:
    """What looks wrong about a scan's grey values."""
    if image.array.dtype != np.uint8:
        reason = implausible(image.array, modality)
        return [] if reason is None else [reason]
    if modality == "CT" and not is_picture(image):
        return ["its grey values have 8 bits: they are taken as windowed already."]
    return []


def is_picture(image: Volume) -> bool:
    """Whether someone windowed it: its file holds what is shown."""
    return image.path.name.lower().endswith((*PICTURES, ".npz"))
