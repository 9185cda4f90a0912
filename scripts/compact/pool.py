"""A pool of phantom slices, to train the compact models on.

A pool is a folder with one compressed .npz per phantom volume, named by seed and modality.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from compact import phantom
from xaiclip.errors import ConfigError
from xaiclip.files import load_arrays, save_arrays

log = logging.getLogger(__name__)

CT_RANGE = (-1024, 1500)
#: MR values are stored so that the 0.5 and 99.5 percentiles of the non-zero voxels are 0 and this.
MR_WHITE = 1000


@dataclass(frozen=True)
class PoolSlice:
    """One axial slice in display order (row 0 anterior, column 0 the patient's right).

    ``image`` int16 (H, W): HU within `CT_RANGE`, or MR in 0…2·`MR_WHITE`. ``label`` uint8 (H, W),
    FLARE22 ids. ``detail`` is the contrast phase or MR weighting, ``volume`` the name of the
    volume that the slice belongs to, ``spacing`` the pixel size (row, column) in mm.
    """

    image: NDArray[np.int16]
    label: NDArray[np.uint8]
    modality: str
    detail: str
    volume: str
    spacing: tuple[float, float]


def modalities(volumes: int, mr_fraction: float) -> list[str]:
    """The modality of each volume: MR ones spread evenly, so any prefix keeps the share."""
    return ["MR" if one else "CT" for one in _spread(volumes, mr_fraction)]


def _spread(count: int, share: float) -> NDArray[np.bool_]:
    """A share of ``count``, evenly spread."""
    return np.diff(np.floor(np.arange(count + 1) * share + 1e-9)) > 0


def add_volume(
    folder: Path,
    name: str,
    image: NDArray[np.generic],
    label: NDArray[np.generic],
    affine: NDArray[np.floating],
    modality: str,
    detail: str,
    empties: int = 2,
) -> Path:
    """Write the slices of one volume that hold an organ, and up to ``empties`` that do not.

    ``image`` and ``label`` are (X, Y, Z) in any orientation that ``affine`` describes.
    """

    def display(array: NDArray[np.generic]) -> NDArray[np.float32]:
        stored = nib.Nifti1Image(array.astype(np.float32), affine)
        volume = np.asarray(nib.as_closest_canonical(stored).dataobj)
        return volume[::-1, ::-1].transpose(2, 1, 0)

    grey, ids = display(image), display(label).astype(np.uint8)
    filled = ids.any((1, 2))
    empty = np.flatnonzero(~filled)
    some = empty[np.linspace(0, len(empty) - 1, min(empties, len(empty))).astype(int)]
    keep = np.sort(np.concatenate([np.flatnonzero(filled), some]))
    if modality == "CT":
        grey = np.clip(grey, *CT_RANGE)
    else:
        tissue = grey[grey > 0]
        low, high = np.percentile(tissue, (0.5, 99.5)) if tissue.size else (0.0, 1.0)
        grey = np.clip((grey - low) / max(high - low, 1e-6) * MR_WHITE, 0, 2 * MR_WHITE)
    zooms = nib.affines.voxel_sizes(nib.as_closest_canonical(nib.Nifti1Image(label, affine)).affine)
    meta = {
        "modality": modality,
        "detail": detail,
        "spacing": [round(float(zooms[1]), 4), round(float(zooms[0]), 4)],
    }
    path = folder / f"{name}.npz"
    save_arrays(path, {"image": np.rint(grey[keep]).astype(np.int16), "label": ids[keep]}, meta)
    return path


def _draw(task: tuple[Path, int, str, phantom.PhantomSettings, int]) -> str:
    folder, seed, modality, settings, empties = task
    drawn = phantom.generate(seed, modality, settings)
    name = _name(seed, modality)
    detail = drawn.description["protocol"]
    add_volume(folder, name, drawn.image, drawn.label, drawn.affine, modality, detail, empties)
    return name


def _name(seed: int, modality: str) -> str:
    return f"{seed:08d}_{modality.lower()}"


def build_pool(
    folder: str | os.PathLike[str],
    volumes: int,
    *,
    mr_fraction: float,
    seed: int,
    settings: phantom.PhantomSettings = phantom.DEFAULTS,
    wide: float = 0.0,
    workers: int = 1,
) -> Path:
    """Draw phantoms ``seed … seed + volumes - 1`` and write their slices into ``folder``.

    A share ``wide`` of them, evenly spread, is drawn from `phantom.WIDE` in place of ``settings``,
    and keeps six slices without an organ in place of two.
    Volumes that are already there are kept, so an interrupted call goes on where it stopped.
    The content depends on the arguments alone, not on ``workers``.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tasks = [
        (folder, seed + i, kind, phantom.WIDE if odd else settings, 6 if odd else 2)
        for i, (kind, odd) in enumerate(
            zip(modalities(volumes, mr_fraction), _spread(volumes, wide), strict=True)
        )
        if not (folder / f"{_name(seed + i, kind)}.npz").exists()
    ]
    log.info("%d of %d volumes to draw", len(tasks), volumes)
    if workers <= 1 or len(tasks) <= 1:
        for task in tasks:
            _draw(task)
        return folder
    # "spawn": a forked child may inherit a lock that a library's thread held
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(tasks)), mp_context=context) as executor:
        for name in executor.map(_draw, tasks):
            log.debug("%s drawn", name)
    return folder


def load_pool(folder: str | os.PathLike[str]) -> list[PoolSlice]:
    """All slices of a pool, in memory, ordered by volume and position.

    Raises:
        ConfigError: the folder holds no pool.
    """
    # a name with a leading dot is a file that is being written
    paths = sorted(path for path in Path(folder).glob("*.npz") if not path.name.startswith("."))
    slices = [piece for path in paths for piece in _read(path)]
    if not slices:
        raise ConfigError(f"{folder} holds no pool of slices: build one with build_pool first.")
    return slices


def _read(path: Path) -> Iterator[PoolSlice]:
    arrays, meta = load_arrays(path)
    row, column = meta["spacing"]
    for image, label in zip(arrays["image"], arrays["label"], strict=True):
        yield PoolSlice(image, label, meta["modality"], meta["detail"], path.stem, (row, column))
