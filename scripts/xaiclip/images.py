"""One slice to explain, from an array, a file or a folder."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xaiclip.data.geometry import Geometry, oriented_affine
from xaiclip.data.grey_values import implausible
from xaiclip.data.picture import PICTURES
from xaiclip.data.record import Slice
from xaiclip.data.sheet import MODALITIES, Case
from xaiclip.data.slices import Find, take_slices, window_ct, window_mr
from xaiclip.data.volumes import read_volume
from xaiclip.errors import CaseError, named_extras
from xaiclip.organs import FLARE22, SIX_CLASSES

#: The name of an image that nobody gave one: paths may hold a patient's.
NAME = "image"


def load_image(
    image: NDArray[Any] | str | os.PathLike[str] | Slice,
    *,
    slice: int | None = None,
    label: str | os.PathLike[str] | None = None,
    modality: str | None = None,
    window: tuple[float, float] = (40, 400),
    percentiles: tuple[float, float] = (0.5, 99.5),
    orientation: str | None = None,
    classes: Sequence[str] = SIX_CLASSES,
    labels: Mapping[int, str] = FLARE22,
    name: str = NAME,
) -> Slice:
    """One axial slice, as the workflow takes it: row 0 anterior, column 0 the patient's right.

    Args:
        image: an array (H, W), uint8 as it is shown, or other numbers with a ``modality``; a
            NIfTI, MetaImage or NRRD file, DICOM (a folder or a file), a picture; a `Slice`, which
            is given back.
        slice: axial index of a volume, counted from the feet. None: of a volume with a label the
            middle of the labelled extent, of one without its middle.
        label: the reference on the image's grid; not for arrays.
        modality: ``CT`` (Hounsfield units, shown through ``window``) or ``MR`` (shown between
            ``percentiles``); None guesses it of a file by its grey values.
        window: level and width of a CT, HU.
        percentiles: of the volume's non-zero voxels (of an MR), which become 0 and 255.
        orientation: where the axes lead of a file that does not say so, such as ``LPS``.
        classes: background first; the organs that the label may hold.
        labels: organ of each id of the label.
        name: of the case. The seed of every random choice hangs on it and on the index.

    Raises:
        CaseError: it cannot be read or used; one sentence.
        ConfigError: an extra is missing that reads this format.
    """
    if isinstance(image, Slice):
        return image
    if not isinstance(image, str | os.PathLike):
        if slice is not None or label is not None:
            raise CaseError("slice and label belong to a file; an array is one slice already.")
        _check_modality(modality)
        return _of_array(np.asarray(image), modality, window, percentiles, name)
    return _of_file(
        image,
        slice=slice,
        label=label,
        modality=modality,
        window=window,
        percentiles=percentiles,
        orientation=orientation,
        classes=classes,
        labels=labels,
        name=name,
    )


def load_found(image: str | os.PathLike[str], find: Find, **reading: Any) -> Slice:
    """The slice of a file that ``find`` chooses of its slices.

    Args:
        image: a volume; of a single slice, that one.
        find: gets the slices as they are shown.
        reading: arguments of `load_image`, without ``slice`` and ``label``.

    Raises:
        CaseError: it cannot be read, or ``find`` finds nothing.
    """
    return _of_file(image, find=find, **reading)


def _of_file(
    image: str | os.PathLike[str],
    *,
    slice: int | None = None,
    find: Find | None = None,
    label: str | os.PathLike[str] | None = None,
    modality: str | None = None,
    window: tuple[float, float] = (40, 400),
    percentiles: tuple[float, float] = (0.5, 99.5),
    orientation: str | None = None,
    classes: Sequence[str] = SIX_CLASSES,
    labels: Mapping[int, str] = FLARE22,
    name: str = NAME,
) -> Slice:
    _check_modality(modality)
    case = Case(name, Path(image), Path(label) if label else None, modality or "", "test")
    policy = "middle" if label is None else "middle_labelled"
    settings = {
        "window": {"level": window[0], "width": window[1]},
        "percentiles": {"low": percentiles[0], "high": percentiles[1]},
        "orientation": orientation,
        "implausible": "warn",
        "classes": list(classes),
        "labels": dict(labels),
        "policy": "found" if find else policy if slice is None else "index",
        "index": slice,
    }
    with named_extras():
        if not case.modality:
            case = _with_modality(case, orientation)
        taken = take_slices(case, settings, find)
    if not taken.slices:
        reason = taken.skips[0].reason if taken.skips else "no slice could be taken"
        raise CaseError(reason, case.image)
    return taken.slices[0]


def _check_modality(modality: str | None) -> None:
    if modality is not None and modality not in MODALITIES:
        raise CaseError(f"modality is {modality!r}; it must be {' or '.join(MODALITIES)}.")


def _of_array(
    array: NDArray[Any],
    modality: str | None,
    window: tuple[float, float],
    percentiles: tuple[float, float],
    name: str,
) -> Slice:
    if array.ndim == 3 and array.shape[2] == 3 and (array == array[..., :1]).all():
        array = array[..., 0]
    if array.ndim != 2 or min(array.shape) < 2 or array.dtype.kind not in "buif":
        raise CaseError(
            f"the image is an array of shape {array.shape} and type {array.dtype}; give one grey "
            "slice (H, W) of numbers."
        )
    if not np.isfinite(array).all():
        raise CaseError("the image holds NaN or infinity; replace them (by air, for instance).")
    if array.dtype == np.uint8:
        grey = array
    elif modality == "CT":
        grey = window_ct(array, *window)
    elif modality == "MR":
        grey = window_mr(array, *percentiles)
    else:
        raise CaseError(
            f"the image is of type {array.dtype}: say what its numbers are (modality='CT' for "
            "Hounsfield units, or 'MR'), or scale it to uint8."
        )
    if grey.min() == grey.max():
        raise CaseError("the image is constant: there is nothing to explain.")
    height, width = grey.shape
    nowhere = Geometry(oriented_affine("LPS", (1, 1, 1)), (width, height, 1), measured=False)
    return Slice(name, 0, modality or "", np.ascontiguousarray(grey), None, nowhere)


def _with_modality(case: Case, orientation: str | None) -> Case:
    """The case with the modality that its grey values speak of."""
    array = read_volume(case.image, orientation=orientation).array
    if array.dtype == np.uint8:  # shown as it is; what made a picture is unknown
        picture = case.image.name.lower().endswith((*PICTURES, ".npz"))
        return case if picture else replace(case, modality="CT")
    found = [one for one in MODALITIES if implausible(array, one) is None]
    if not found:
        raise CaseError("its grey values are neither a CT's nor an MR's: say which it is.")
    return replace(case, modality=found[0])
