"""CHAOS: DICOM series of CT and MR with PNG masks, as published in ``CHAOS_Train_Sets.zip``.

| files below ``…/Train_Sets`` | what |
| --- | --- |
| ``CT/{n}/DICOM_anon/*.dcm``, ``CT/{n}/Ground/*.png`` | CT; the mask is the liver |
| ``MR/{n}/T1DUAL/DICOM_anon/{InPhase,OutPhase}/*.dcm``, ``MR/{n}/T1DUAL/Ground/*.png`` | T1 |
| ``MR/{n}/T2SPIR/DICOM_anon/*.dcm``, ``MR/{n}/T2SPIR/Ground/*.png`` | T2, fat suppressed |

A pixel of a mask is the pixel of the DICOM slice in the same row and column. The MR masks bear
their slices' file names; the others belong to the slices in the order of the file names.
"""

from __future__ import annotations

import logging
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from xaiclip.data.dicom import read_slices
from xaiclip.data.volumes import write_volume
from xaiclip.errors import CaseError
from xaiclip.organs import FLARE22
from xaiclip.published.archive import extract

log = logging.getLogger(__name__)

#: Grey values of the MR masks, both ends included.
GREY: dict[str, tuple[int, int]] = {
    "liver": (55, 70),
    "right kidney": (110, 135),
    "left kidney": (175, 200),
    "spleen": (240, 255),
}
#: Of the labelled pixels, how many may have another grey value.
MAX_STRAY = 0.01

_IDS = {organ: number for number, organ in FLARE22.items()}
_SERIES = {
    "t1in": ("T1DUAL/DICOM_anon/InPhase", "T1DUAL/Ground"),
    "t1out": ("T1DUAL/DICOM_anon/OutPhase", "T1DUAL/Ground"),
    "t2": ("T2SPIR/DICOM_anon", "T2SPIR/Ground"),
}


def prepare(case: str, source: Path, image: Path, label: Path | None) -> None:
    """Turn a case of the archive into NIfTI, its label with FLARE22's ids.

    Args:
        case: ``ct_05``, ``mr_13_t1in``, ``mr_13_t1out`` or ``mr_13_t2``: modality, number as
            published, series.
        source: ``CHAOS_Train_Sets.zip``.
        image, label: the NIfTI files to write; the label is uint8.

    Raises:
        ConfigError: the archive cannot be used.
        CaseError: the case is not in it, damaged, or its masks do not fit its slices.
    """
    modality, number, *series = case.split("_")
    dicom, ground = _SERIES[series[0]] if series else ("DICOM_anon", "Ground")
    root = f"{modality.upper()}/{int(number)}"
    pattern = re.compile(
        rf"(?:^|/){root}/(?:{dicom}/(?P<slice>[^/]+\.dcm)|{ground}/(?P<mask>[^/]+\.png))$",
        re.IGNORECASE,
    )

    def pick(name: str) -> str | None:
        match = pattern.search(name)
        if match is None or "__MACOSX" in name:
            return None
        return f"slices/{match['slice']}" if match["slice"] else f"masks/{match['mask']}"

    with tempfile.TemporaryDirectory() as folder:
        files = extract(source, folder, pick)
        slices = [file for file in files if file.parent.name == "slices"]
        masks = [file for file in files if file.parent.name == "masks"]
        if not slices or not masks:
            raise CaseError(
                f"holds no {root}/{dicom if not slices else ground}; fetch the archive again.",
                source,
            )
        try:
            scan, ordered = read_slices(slices)
            pairs = pair(ordered, masks)
            stack = [
                _organs(_grey(pairs[file]), binary=modality == "ct", name=pairs[file].name)
                for file in ordered
            ]
            # a PNG has its rows first, a stored volume its columns
            labels = np.stack([mask.T for mask in stack], axis=2)
        except ValueError as error:  # CaseError is one: name the archive, not the temporary files
            raise CaseError(f"{root}: {_without(str(error), folder)}", source) from error
    geometry = scan.geometry
    if labels.shape != geometry.shape:
        raise CaseError(
            f"{root}: the masks measure {labels.shape[:2]} pixels, the slices "
            f"{geometry.shape[:2]}; fetch the archive again.",
            source,
        )
    write_volume(image, geometry.from_canonical(scan.array), geometry.affine)
    if label is not None:
        write_volume(label, labels, geometry.affine)


def pair(slices: Sequence[Path], masks: Sequence[Path]) -> dict[Path, Path]:
    """The mask of each slice.

    By equal names where every slice has one; otherwise the first mask belongs to the first slice,
    both in the order of their names.

    Args:
        slices: in the order of their positions.
        masks: in any order.

    Raises:
        CaseError: their numbers differ, or the names do not follow the positions, so that nobody
            can tell which mask is whose.
    """
    by_stem = {mask.stem: mask for mask in masks}
    if all(file.stem in by_stem for file in slices):
        return {file: by_stem[file.stem] for file in slices}
    if len(slices) != len(masks):
        raise CaseError(f"has {len(slices)} slices, but {len(masks)} masks; fetch it again.")
    by_name = sorted(slices, key=lambda file: file.name)
    if list(slices) not in (by_name, by_name[::-1]):
        raise CaseError(
            "its file names do not follow the positions of the slices, so the masks cannot be "
            "told apart; leave it out."
        )
    return dict(zip(by_name, sorted(masks, key=lambda file: file.name), strict=True))


def _grey(path: Path) -> NDArray[np.uint8]:
    try:
        image = sitk.ReadImage(str(path))
    except RuntimeError as error:
        raise CaseError(f"the mask {path.name} is no readable PNG; fetch it again.") from error
    array = sitk.GetArrayFromImage(image)
    if array.ndim != 2 or array.dtype != np.uint8:
        raise CaseError(f"the mask {path.name} is not an 8-bit grey PNG; fetch it again.")
    return np.asarray(array)


def _organs(grey: NDArray[np.uint8], *, binary: bool, name: str) -> NDArray[np.uint8]:
    """Label ids of FLARE22 from the grey values of a mask."""
    if binary:
        return np.where(grey > 0, _IDS["liver"], 0).astype(np.uint8)
    label = np.zeros(grey.shape, np.uint8)
    for organ, (low, high) in GREY.items():
        label[(grey >= low) & (grey <= high)] = _IDS[organ]
    stray = (grey > 0) & (label == 0)
    if stray.any():
        if stray.sum() > MAX_STRAY * (grey > 0).sum():
            values = ", ".join(map(str, np.unique(grey[stray])[:8]))
            raise CaseError(
                f"the mask {name} has the grey values {values}, which stand for no organ."
            )
        log.warning("%s: %d pixels of no organ's grey value are background", name, stray.sum())
    return label


def _without(text: str, folder: str) -> str:
    """A message without the temporary folder."""
    return re.sub(re.escape(folder) + r"/?(slices/?)?(:\s*)?", "", text)
