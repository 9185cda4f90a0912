"""The planes of DICOM files: where each lies, and how they make up one volume."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from xaiclip.data.dicom.files import Header, items_of, numbers_of, value_of
from xaiclip.errors import CaseError

#: Positions that are stored to a tenth of a millimetre lie up to this far from where they belong.
ROUNDING = 0.09
#: Direction cosines and relative pixel spacings may differ by so much: they are rounded, too.
TOLERANCE = 2e-3
#: Two planes that are this close, mm, are at one place.
SAME_PLACE = 0.01

_MONOCHROME = ("MONOCHROME1", "MONOCHROME2")


@dataclass(frozen=True, eq=False)
class Frame:
    """One plane.

    Attributes:
        header: of its file.
        index: which frame of the file it is.
        position: of the centre of the first pixel, LPS, mm.
        directions: (2, 3) unit vectors along a row, and along a column, LPS.
        spacing: between columns, and between rows, mm.
        thickness: of the slice, mm; None where nobody says it.
        rescale: slope and intercept; None if there are none.
        segment: the number of its segment in a segmentation.
    """

    header: Header
    index: int
    position: NDArray[np.float64]
    directions: NDArray[np.float64]
    spacing: NDArray[np.float64]
    thickness: float | None
    rescale: tuple[float, float] | None
    segment: int | None

    @property
    def file(self) -> Path:
        return self.header.file

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.header.whole("Rows"), self.header.whole("Columns")


class _Groups:
    """Where a frame's elements stand: in its own functional groups, in shared ones, or on top."""

    def __init__(self, header: Header, shared: Sequence[Dataset], own: Dataset | None) -> None:
        self.header = header
        self.places = [place for place in (own, *shared[:1]) if place is not None]

    def numbers(self, group: str, keyword: str, count: int) -> list[float] | None:
        for place in self.places:
            for item in items_of(place, group, self.header.file)[:1]:
                found = numbers_of(item, keyword, count, self.header.file)
                if found is not None:
                    return found
        # of a file with several frames, what stands on top is true of none in particular
        top = None if self.places else self.header.elements
        return None if top is None else numbers_of(top, keyword, count, self.header.file)

    def segment(self) -> int | None:
        for place in self.places:
            for item in items_of(place, "SegmentIdentificationSequence", self.header.file)[:1]:
                number = value_of(item, "ReferencedSegmentNumber", self.header.file)
                return number if isinstance(number, int) else None
        return None


def frames_of(header: Header) -> list[Frame]:
    """The planes of a file: one, or as many as its functional groups describe.

    Raises:
        CaseError: its geometry is missing or impossible.
    """
    count = header.whole("NumberOfFrames", default=1)
    own = header.items("PerFrameFunctionalGroupsSequence")
    shared = header.items("SharedFunctionalGroupsSequence")
    if not own and count == 1:
        return [_frame(header, 0, _Groups(header, shared, None))]
    if len(own) != count:
        raise CaseError(
            f"has {count} frames, but the places of {len(own)}; export it as enhanced CT or MR, or "
            "as one file a slice.",
            header.file,
        )
    return [_frame(header, index, _Groups(header, shared, item)) for index, item in enumerate(own)]


def _frame(header: Header, index: int, groups: _Groups) -> Frame:
    position = groups.numbers("PlanePositionSequence", "ImagePositionPatient", 3)
    directions = groups.numbers("PlaneOrientationSequence", "ImageOrientationPatient", 6)
    spacing = groups.numbers("PixelMeasuresSequence", "PixelSpacing", 2)
    for value, what in (
        (position, "image position"),
        (directions, "image orientation"),
        (spacing, "pixel spacing"),
    ):
        if value is None:
            raise CaseError(
                f"has no {what}, so nobody can tell where it lies (a screenshot?); export the "
                "original series again.",
                header.file,
            )
    vectors = np.array(directions, dtype=np.float64).reshape(2, 3)
    lengths = np.linalg.norm(vectors, axis=1)
    if np.abs(lengths - 1).max() > 0.01 or abs(vectors[0] @ vectors[1]) > 0.01:
        raise CaseError(
            "its image orientation is not two unit vectors; export it again.", header.file
        )
    assert spacing is not None
    if min(spacing) <= 0:
        raise CaseError("its pixel spacing is not positive; export it again.", header.file)
    measures = [
        groups.numbers("PixelMeasuresSequence", keyword, 1)
        for keyword in ("SliceThickness", "SpacingBetweenSlices")
    ]
    return Frame(
        header=header,
        index=index,
        position=np.array(position, dtype=np.float64),
        directions=vectors / lengths[:, None],
        spacing=np.array(spacing[::-1], dtype=np.float64),
        thickness=next((abs(one[0]) for one in measures if one and one[0]), None),
        rescale=_rescale(header, groups),
        segment=groups.segment(),
    )


def _rescale(header: Header, groups: _Groups) -> tuple[float, float] | None:
    if header.items("ModalityLUTSequence"):
        raise CaseError(
            "has a table instead of a rescale slope, which is not read; convert it.", header.file
        )
    slope, intercept = (
        groups.numbers("PixelValueTransformationSequence", keyword, 1)
        for keyword in ("RescaleSlope", "RescaleIntercept")
    )
    if slope is None and intercept is None:
        return None
    if slope is None or intercept is None or slope[0] == 0:
        raise CaseError(
            "has a rescale slope without an intercept, or the reverse, or a slope of 0; export it "
            "again.",
            header.file,
        )
    return slope[0], intercept[0]


def lay_out(frames: Sequence[Frame], path: Path) -> tuple[list[Frame], NDArray[np.float64]]:
    """Put planes in the order of their places.

    Args:
        frames: of one volume, in any order.
        path: the file or folder, for messages.

    Returns:
        The frames along the normal of their planes, each once; and the (4, 4) affine from
        (column, row, frame) to RAS, mm. A tilted gantry shears it.

    Raises:
        CaseError: they are no evenly spaced stack of like planes.
    """
    _check_alike(frames)
    normal = np.cross(*np.median([frame.directions for frame in frames], axis=0))
    ordered = _distinct(
        sorted(frames, key=lambda one: (float(normal @ one.position), one.file.name, one.index))
    )
    first = ordered[0]
    origin, step = first.position, normal
    if len(ordered) == 1:
        if first.thickness is None:
            raise CaseError("is a single slice without a thickness; export it again.", first.file)
        step = step * first.thickness
    else:
        origin, step = _line(ordered, normal, path)
    affine = np.eye(4)
    affine[:3, :2] = first.directions.T * first.spacing
    affine[:3, 2], affine[:3, 3] = step, origin
    return ordered, np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine


def _check_alike(frames: Sequence[Frame]) -> None:
    """All planes must be like most of them."""
    for frame in frames:
        if (samples := frame.header.whole("SamplesPerPixel", default=1)) != 1:
            raise CaseError(f"has {samples} values in each voxel; give one channel.", frame.file)
        if frame.header.text("PhotometricInterpretation") not in _MONOCHROME:
            raise CaseError("its voxels are colours; give the grey values.", frame.file)
    same: dict[str, list[Any]] = {
        "size": [frame.shape for frame in frames],
        "modality": [frame.header.modality for frame in frames],
        "kind of object": [frame.header.kind for frame in frames],
        "kind of image (a scout?)": [frame.header.kind_of_image for frame in frames],
        "number of bits": [frame.header.whole("BitsAllocated") for frame in frames],
        "photometric interpretation": [
            frame.header.text("PhotometricInterpretation") for frame in frames
        ],
        "having a rescale slope": [frame.rescale is not None for frame in frames],
    }
    close = {
        "orientation (a scout?)": np.array([frame.directions.ravel() for frame in frames]),
        "pixel spacing": np.log([frame.spacing for frame in frames]),
    }
    for what, values in same.items():
        usual = Counter(values).most_common(1)[0][0]
        _check_odd(frames, [value != usual for value in values], what)
    for what, array in close.items():
        _check_odd(frames, np.abs(array - np.median(array, axis=0)).max(axis=1) > TOLERANCE, what)


def _check_odd(frames: Sequence[Frame], odd: Sequence[bool] | NDArray[np.bool_], what: str) -> None:
    for frame, differs in zip(frames, odd, strict=True):
        if differs:
            raise CaseError(
                f"differs from the other images of its series in {what}; take it out, or export "
                "the series again.",
                frame.file,
            )


def _distinct(ordered: Sequence[Frame]) -> list[Frame]:
    """Without the copies of a plane; two different ones at one place are refused."""
    hashes: dict[Path, str] = {}

    def pixels(frame: Frame) -> tuple[str, int]:
        """Equal for copies of a file; the frames of one file differ."""
        if frame.file not in hashes:
            hashes[frame.file] = _pixel_hash(frame.header)
        return hashes[frame.file], frame.index

    distinct: list[Frame] = []
    for frame in ordered:
        last = distinct[-1] if distinct else None
        if last is None or np.linalg.norm(frame.position - last.position) > SAME_PLACE:
            distinct.append(frame)
        elif frame.rescale != last.rescale or pixels(frame) != pixels(last):
            raise CaseError(
                "lies at the same place as another image of its series (phases, echoes or time "
                "points?); give each a folder of its own.",
                frame.file,
            )
    return distinct


def _pixel_hash(header: Header) -> str:
    assert header.pixels is not None
    with open(header.file, "rb") as stream:
        stream.seek(header.pixels[0])
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _line(
    frames: Sequence[Frame], normal: NDArray[np.float64], path: Path
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """First place and step of planes along a straight line: the line that fits best.

    Neither slice thickness nor spacing between slices counts: both are often wrong.
    """
    positions = np.array([frame.position for frame in frames])
    index = np.arange(len(frames)) - (len(frames) - 1) / 2
    step = index @ (positions - positions[0]) / (index @ index)
    line = positions.mean(axis=0) + index[:, None] * step
    gaps = np.sort(np.diff(positions @ normal))
    usual = gaps[(len(gaps) - 1) // 2]
    size = float(np.linalg.norm(step))
    apart = float(np.linalg.norm(positions - line, axis=1).max())
    missing = gaps[-1] > 1.5 * usual or gaps[0] < 0.5 * usual
    if missing or apart > max(0.1 * size, min(ROUNDING, 0.3 * size)):
        raise CaseError(
            "its DICOM slices are not evenly spaced; add what is missing, or take out what belongs "
            "to another image.",
            path,
        )
    return line[0], np.asarray(step)
