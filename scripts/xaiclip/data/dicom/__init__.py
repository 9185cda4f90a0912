"""Reading DICOM: a file, a folder with one series, or files of one slice each.

`files` finds the files and reads their headers, `frames` lays their planes out in space, `pixels`
reads the voxels, `segmentation` turns DICOM's own label maps into ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xaiclip.data.dicom.files import Header, quiet, read_header, read_headers
from xaiclip.data.dicom.frames import frames_of, lay_out
from xaiclip.data.dicom.pixels import check_pixels, read_planes
from xaiclip.data.dicom.segmentation import read_segmentation
from xaiclip.data.geometry import Geometry, Volume, check_affine
from xaiclip.errors import CaseError

__all__ = ["read_dicom", "read_dicom_label", "read_slices"]

#: Why objects without voxels are no label, by what they are.
_NO_LABELS = {
    "RTSTRUCT": "holds contours (RTSTRUCT), not voxels; convert them to a label map.",
    "SEG": "holds surfaces, not voxels; convert them to a label map.",
}


@quiet()
def read_dicom(path: Path) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Read the scan in a DICOM file, or in the files of a folder.

    One file a slice, or enhanced multi-frame CT or MR. Reports, contours, segmentations and other
    objects that are no scans may lie beside them.

    Args:
        path: the file or folder.

    Returns:
        The stored array (column, row, slice), int16 if all values are whole and fit and float32
        otherwise, and the affine from its indices to RAS, mm.

    Raises:
        CaseError: there is no scan, more than one, or one that cannot be trusted.
    """
    scans = [header for header in read_headers(path) if header.is_scan]
    if not scans:
        raise CaseError(
            "holds no scan, only other DICOM objects (segmentations, contours, reports); give the "
            "images.",
            path,
        )
    series = {header.text("SeriesInstanceUID") for header in scans}
    if len(series) > 1:
        raise CaseError(f"holds {len(series)} DICOM series; give each a folder of its own.", path)
    array, affine, _ = _read(scans, path)
    return array, affine


@quiet()
def read_dicom_label(
    path: Path, image: Geometry, labels: Mapping[int, str]
) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Read a label map: a DICOM segmentation, or a series whose voxels are label ids.

    Args:
        path: the file or folder. Of a folder with a segmentation, nothing else counts.
        image: the grid of the scan that it belongs to, on which a segmentation is laid.
        labels: label ids to names, by which segments are told.

    Returns:
        As `read_dicom`; a segmentation comes with the ids of ``labels`` and the image's affine.

    Raises:
        CaseError: it is no label map, or lies on another grid.
    """
    headers = read_headers(path)
    segmentations = [header for header in headers if header.modality == "SEG" and header.pixels]
    if len(segmentations) > 1:
        raise CaseError(f"holds {len(segmentations)} segmentations; give the file of one.", path)
    if segmentations:
        check_pixels(segmentations[0])
        return read_segmentation(segmentations[0], image, labels), image.affine
    for header in headers:
        if header.modality in _NO_LABELS:
            raise CaseError(_NO_LABELS[header.modality], header.file)
    if not any(header.is_scan for header in headers):
        raise CaseError("holds no label map, only other DICOM objects; give its file.", path)
    return read_dicom(path)


@quiet()
def read_slices(files: Sequence[Path]) -> tuple[Volume, list[Path]]:
    """Read DICOM files of one slice each as one volume, whatever series they claim to belong to.

    Args:
        files: of one folder, in any order.

    Returns:
        The volume, and the files in the order of the stored array's last axis. A stored array
        (x, y, z) has the pixel in column x and row y of file z.

    Raises:
        CaseError: they cannot be read, or are no volume.
    """
    if not files:
        raise CaseError("there are no DICOM files.")
    folder = files[0].parent
    headers = [read_header(file) for file in files]
    for header in headers:
        if not header.is_scan or header.whole("NumberOfFrames", default=1) != 1:
            raise CaseError("is no DICOM file of one slice; get it again.", header.file)
    stored, affine, ordered = _read(headers, folder)
    check_affine(affine, folder)
    geometry = Geometry(affine, (stored.shape[0], stored.shape[1], stored.shape[2]))
    return Volume(np.ascontiguousarray(geometry.to_canonical(stored)), geometry, folder), ordered


def _read(
    headers: Sequence[Header], path: Path
) -> tuple[NDArray[Any], NDArray[np.float64], list[Path]]:
    """The stored array, its affine, and the file of each of its planes."""
    for header in headers:
        check_pixels(header)
    frames, affine = lay_out([one for header in headers for one in frames_of(header)], path)
    return read_planes(frames, path), affine, [frame.file for frame in frames]
