"""A case's reference: class indices from a label map, or from a folder of one mask per organ."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from xaiclip.data.geometry import Volume
from xaiclip.data.volumes import SUFFIXES, check_same_grid, read_volume
from xaiclip.errors import CaseError
from xaiclip.organs import organs_of

#: Other names of the same side, after which nothing of a file's name is left but the organ.
_WORDS = {"l": "left", "r": "right", "lt": "left", "rt": "right"}
_NOISE = {"mask", "seg", "segmentation", "label"}


def read_classes(
    path: Path,
    image: Volume,
    table: Mapping[int, str],
    classes: Sequence[str],
    *,
    orientation: str | None = None,
) -> tuple[NDArray[np.uint8], tuple[str, ...]]:
    """Class indices on the image's canonical grid.

    Args:
        path: a label map, or a folder that holds a mask for each organ under the organ's name, as
            TotalSegmentator writes them.
        image: the scan, on whose grid the label must lie.
        table: organ of each id of a label map.
        classes: background and organs; another organ becomes background.
        orientation: as `read_volume` takes it.

    Returns:
        uint8, and sentences about what looks wrong.

    Raises:
        CaseError: it cannot be read, lies elsewhere, or names no organ that is a class.
    """
    masks = mask_files(path)
    if masks:
        return _from_masks(masks, path, image, classes, orientation)
    label = read_volume(path, label=True, orientation=orientation, segments=(image.geometry, table))
    check_same_grid(image, label)
    return map_labels(label, table, classes), label.warnings


def mask_files(folder: Path) -> list[Path]:
    """The volumes and pictures in a folder that may hold one mask each; none of a DICOM folder."""
    if not folder.is_dir():
        return []
    return sorted(
        file
        for file in folder.iterdir()
        if file.name.lower().endswith(SUFFIXES)
        and not file.name.lower().endswith((".img", ".npz"))
        and not file.name.startswith(".")
        and file.is_file()
    )


def map_labels(
    label: Volume, table: Mapping[int, str], classes: Sequence[str]
) -> NDArray[np.uint8]:
    """Label ids to class indices; an organ that is no class becomes background.

    Raises:
        CaseError: ids that the table does not know.
    """
    planes = label.array.T  # plane by plane: a label may be large
    found = np.unique(np.concatenate([np.unique(plane) for plane in planes]))
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
    mapped = np.empty(label.array.shape, np.uint8, order="F")
    for plane, target in zip(planes, mapped.T, strict=True):
        np.take(lookup, plane, out=target)
    return mapped


def _from_masks(
    files: Sequence[Path],
    folder: Path,
    image: Volume,
    classes: Sequence[str],
    orientation: str | None,
) -> tuple[NDArray[np.uint8], tuple[str, ...]]:
    """A voxel of two masks is the organ's that stands first among the classes."""
    organs = {_key(organ): number for number, organ in enumerate(classes) if number}
    named: dict[int, Path] = {}
    for file in files:
        number = organs.get(_key(_stem(file.name)))
        if number is None:
            continue
        if number in named:
            raise CaseError(f"holds two masks of '{classes[number]}'; take one out.", folder)
        named[number] = file
    if not named:
        found = ", ".join(repr(_stem(file.name))[:40] for file in files[:5])
        raise CaseError(
            f"holds {len(files)} files ({found}{', …' if len(files) > 5 else ''}), none of which "
            f"is named after an organ of 'classes' ({', '.join(organs_of(classes))}); rename them.",
            folder,
        )
    merged = np.zeros(image.array.shape, np.uint8)
    shared, warnings = 0, []
    if lacking := [organ for organ in organs_of(classes) if classes.index(organ) not in named]:
        warnings.append(f"there is no mask of {', '.join(lacking)}, which counts as background.")
    for number, file in sorted(named.items(), reverse=True):
        mask = read_volume(file, label=True, orientation=orientation)
        check_same_grid(image, mask)
        warnings += [text for text in mask.warnings if text not in warnings]
        inside = _binary(mask)
        shared += int(np.count_nonzero(merged[inside]))
        merged[inside] = number
    if shared:
        warnings.append(
            f"{shared} voxels belong to two masks; each is taken for the organ that stands first "
            "in 'classes'."
        )
    return merged, tuple(warnings)


def _binary(mask: Volume) -> NDArray[np.bool_]:
    ids = {int(value) for plane in mask.array.T for value in np.unique(plane)} - {0}
    if len(ids) > 1:
        raise CaseError(
            f"a mask of one organ must hold one value beside 0, this has {len(ids)}; give a label "
            "map as a file, not in a folder.",
            mask.path,
        )
    return np.asarray(mask.array != 0)


def _stem(name: str) -> str:
    """A file's name without the ends that tell its format."""
    for end in sorted(SUFFIXES, key=len, reverse=True):
        if name.lower().endswith(end):
            return name[: -len(end)].removesuffix(".seg")
    return name


def _key(name: str | os.PathLike[str]) -> frozenset[str]:
    """The words of a name in any order, case and spelling: ``kidney_right``, ``RightKidney``."""
    apart = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", os.fspath(name))
    words = re.findall(r"[^\W_]+", apart.casefold())
    return frozenset(_WORDS.get(word, word) for word in words if word not in _NOISE)
