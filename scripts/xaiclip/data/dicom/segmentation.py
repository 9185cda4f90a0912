"""DICOM segmentations as label maps."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from xaiclip.data.dicom.files import Header, items_of, value_of
from xaiclip.data.dicom.frames import Frame, frames_of
from xaiclip.data.dicom.pixels import decoded
from xaiclip.data.geometry import Geometry
from xaiclip.errors import CaseError

_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
#: How far from a voxel's centre a pixel's centre may lie, in voxels.
OFF_CENTRE = 0.1
_ANATOMY = ("SegmentedPropertyTypeCodeSequence", "SegmentedPropertyTypeModifierCodeSequence")


def read_segmentation(
    header: Header, image: Geometry, labels: Mapping[int, str]
) -> NDArray[np.int32]:
    """Lay the segments of a DICOM segmentation onto the grid of the image that they belong to.

    A segment is the organ whose name it bears, as its label or as its coded anatomy: case,
    punctuation and the order of words do not count. Of probabilities, more than one half is
    inside. Voxels that no frame covers are background.

    Args:
        header: of the file.
        image: the grid.
        labels: label ids to names.

    Returns:
        Label ids in the image's stored order.

    Raises:
        CaseError: a segment bears no name of ``labels``; two organs overlap; the grids differ.
    """
    ids = _ids(header, labels)
    kind = header.text("SegmentationType")
    most = header.whole("MaximumFractionalValue", default=1) if kind == "FRACTIONAL" else 1
    to_voxels = np.linalg.inv(_LPS @ image.affine)
    frames = frames_of(header)
    _check_spacing(header, frames, image)
    label = np.zeros(image.shape, np.int32)
    for (_, _, stored), frame in zip(decoded([header]), frames, strict=True):
        if kind == "LABELMAP":
            lookup = np.zeros(int(max(stored.max(), *ids)) + 1, np.int32)
            lookup[list(ids)] = list(ids.values())
            values = lookup[stored]
            if ((values == 0) & (stored != 0)).any():
                raise CaseError("has pixels of a segment that it does not list.", header.file)
        else:
            if frame.segment not in ids:
                raise CaseError("has frames of a segment that it does not list.", header.file)
            values = np.where(2.0 * stored > most, ids[frame.segment], 0)
        _paint(label, values, frame, to_voxels)
    return label


def _paint(
    label: NDArray[np.int32], values: NDArray[Any], frame: Frame, to_voxels: NDArray[Any]
) -> None:
    """Put the pixels of a frame (rows, columns) that are not 0 into the voxels they lie on."""
    rows, columns = np.nonzero(values)
    if not rows.size:
        return
    steps = to_voxels[:3, :3] @ (frame.directions * frame.spacing[:, None]).T
    start = to_voxels @ [*frame.position, 1.0]
    places = start[:3] + columns[:, None] * steps[:, 0] + rows[:, None] * steps[:, 1]
    nearest = np.rint(places).astype(np.int64)
    units = np.abs(np.rint(steps))
    if (
        np.abs(places - nearest).max() > OFF_CENTRE
        or not (units.sum(axis=0) == 1).all()
        or (units[:, 0] == units[:, 1]).all()
        or nearest.min() < 0
        or (nearest >= label.shape).any()
    ):
        raise CaseError(
            "its pixels do not lie on the image's voxels; resample the segmentation to the image.",
            frame.file,
        )
    where = tuple(nearest.T)
    found, new = label[where], values[rows, columns]
    if ((found != 0) & (found != new)).any():
        raise CaseError(
            "two of its segments overlap; a label map holds one organ a voxel, so take one out.",
            frame.file,
        )
    label[where] = new


def _check_spacing(header: Header, frames: list[Frame], image: Geometry) -> None:
    """Thicker slices than the image's may meet its voxels, and leave every other one empty."""
    normal = np.cross(*frames[0].directions)
    sizes = np.linalg.norm(image.affine[:3, :3], axis=0)
    directions = image.affine[:3, :3] / sizes
    along = int(np.abs(normal @ (_LPS[:3, :3] @ directions)).argmax())
    heights = np.unique(np.round([float(normal @ frame.position) for frame in frames], 2))
    gaps = np.diff(heights) / sizes[along]
    if gaps.size and gaps.min() > 1.5 and np.ptp(gaps) < 0.5:
        raise CaseError(
            "its slices lie further apart than the image's; resample the segmentation to the "
            "image.",
            header.file,
        )


def _ids(header: Header, labels: Mapping[int, str]) -> dict[int, int]:
    """The label id of each segment number."""
    by_name = {_plain(name): number for number, name in labels.items()}
    ids, strange = {}, []
    for segment in header.items("SegmentSequence"):
        number = value_of(segment, "SegmentNumber", header.file)
        if not isinstance(number, int) or not 0 < number < 2**16 or number in ids:
            raise CaseError("its segments are not numbered; export it again.", header.file)
        names = [value_of(segment, "SegmentLabel", header.file), _anatomy(segment, header.file)]
        known = [by_name[_plain(str(name))] for name in names if _plain(str(name)) in by_name]
        if known:
            ids[number] = known[0]
        else:
            strange.append(number)
    if strange:
        raise CaseError(
            f"its segments {', '.join(map(str, strange[:8]))} bear no name that 'data.labels' "
            "lists; rename them, or add their names to it.",
            header.file,
        )
    if not ids:
        raise CaseError("lists no segments; export it again, or convert it to NIfTI.", header.file)
    return ids


def _anatomy(segment: Dataset, file: Path) -> str:
    """The coded meaning of a segment with its side: ``Kidney`` and ``Right``."""
    meanings = []
    place = segment
    for keyword in _ANATOMY:
        items = items_of(place, keyword, file)
        if not items:
            break
        place = items[0]
        meanings.append(str(value_of(place, "CodeMeaning", file) or ""))
    return " ".join(meanings)


def _plain(name: str) -> str:
    """A name by its words alone: ``Kidney_Right`` and ``right kidney`` are the same."""
    return " ".join(sorted(re.findall(r"\w+", name.casefold().replace("_", " "))))
