"""Preprocessing of a slice for the localizer: the paper's equations 1 to 8, and the letterbox."""

from __future__ import annotations

import os
from collections.abc import Container, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from xaiclip.data.record import Slice, SliceName
from xaiclip.errors import Skip, left_out
from xaiclip.explain.settings import setting
from xaiclip.files import load_meta, open_arrays, save_arrays

STAGE = "preprocess"


@dataclass(frozen=True)
class PreprocessSettings:
    """Grey values in 0…255, percentiles in 0…100."""

    size: int = setting(224, "Side of the letterbox in pixels.", minimum=32, maximum=1024)
    foreground: bool = setting(True, "Enhance the foreground only (equations 1, 2 and 8).")
    background_threshold: float = setting(
        10, "Equation 1: grey values below it are background.", minimum=0, below=255
    )
    low: float = setting(5, "Equation 3: lower percentile.", minimum=0, maximum=100)
    high: float = setting(95, "Equation 3: upper percentile.", minimum=0, maximum=100)
    clip: float = setting(
        2.0,
        "CLAHE's clip limit (equation 5); 0 switches CLAHE off.",
        minimum=0,
        maximum=1000,
    )
    tiles: int = setting(8, "CLAHE's tiles along each side.", minimum=1, maximum=64)


@dataclass(frozen=True)
class Letterbox:
    """Where an (H, W) image lies in a padded square: aspect kept, centred.

    Attributes:
        shape: (H, W) of the image.
        size: side of the square.
        height, width: of the image inside the square.
    """

    shape: tuple[int, int]
    size: int
    height: int
    width: int

    @classmethod
    def fit(cls, shape: tuple[int, int], size: int) -> Letterbox:
        """The largest centred place for an image of ``shape``."""
        scale = size / max(shape)
        height, width = (max(1, round(side * scale)) for side in shape)
        return cls((int(shape[0]), int(shape[1])), size, height, width)

    @property
    def top(self) -> int:
        """First row of the image."""
        return (self.size - self.height) // 2

    @property
    def left(self) -> int:
        """First column of the image."""
        return (self.size - self.width) // 2

    def apply(self, image: NDArray[Any], *, nearest: bool = False, fill: int = 0) -> NDArray[Any]:
        """(H, W) → (size, size), the rest ``fill``. ``nearest`` is for labels and masks."""
        shrinks = self.height < self.shape[0] or self.width < self.shape[1]
        # area interpolation is the paper's; where an image grows it would only repeat pixels
        method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
        square = np.full((self.size, self.size), fill, dtype=image.dtype)
        inside = self.crop(square)
        inside[:] = _resize(image, inside.shape, cv2.INTER_NEAREST_EXACT if nearest else method)
        return square

    def crop(self, maps: NDArray[Any]) -> NDArray[Any]:
        """(…, size, size) → (…, height, width): a view of the image without the padding."""
        return maps[..., self.top : self.top + self.height, self.left : self.left + self.width]

    def invert(self, maps: NDArray[Any], *, nearest: bool = False) -> NDArray[Any]:
        """(…, size, size) → (…, H, W): cut the padding off, resize (linear, or ``nearest``)."""
        method = cv2.INTER_NEAREST_EXACT if nearest else cv2.INTER_LINEAR
        flat = self.crop(maps).reshape(-1, self.height, self.width)
        whole = [_resize(one, self.shape, method) for one in flat]
        return np.array(whole, dtype=maps.dtype).reshape(*maps.shape[:-2], *self.shape)


def _resize(image: NDArray[Any], shape: tuple[int, ...], method: int) -> NDArray[Any]:
    """(H, W) to another (H, W); OpenCV knows no booleans and wants memory in order."""
    known = np.uint8 if image.dtype == np.bool_ else image.dtype
    source = np.ascontiguousarray(image, dtype=known)
    return np.asarray(cv2.resize(source, shape[::-1], interpolation=method)).astype(image.dtype)


def to_grey(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """uint8 (H, W), or RGB (H, W, 3) by the BT.601 luminance, as uint8 (H, W)."""
    if image.ndim == 2:
        return image
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), dtype=np.uint8)


def enhance(
    image: NDArray[np.uint8], settings: PreprocessSettings = PreprocessSettings()
) -> NDArray[np.uint8]:
    """Contrast enhancement of the foreground: equations 1 to 8.

    Equation 1 marks the *background* with 1, as equations 2 and 8 read it. An image without
    foreground, or with a constant one, is returned as it is: there is nothing to stretch.
    Equations 5 to 7 are OpenCV's CLAHE. It maps a value to its share of the tile's (clipped)
    histogram, CDF · 255 / pixels: it does not subtract CDF_min, as equation 7 does, so the darkest
    value of a tile need not become 0.

    Args:
        image: uint8 (H, W).
        settings: thresholds, percentiles and CLAHE.

    Returns:
        uint8 (H, W); background pixels keep their value.
    """
    background = (
        image < settings.background_threshold
        if settings.foreground
        else np.zeros(image.shape, dtype=bool)
    )  # (1)
    foreground = image[~background]  # (2)
    if not foreground.size:
        return image.copy()
    low, high = np.percentile(foreground, [settings.low, settings.high])  # (3)
    if high <= low:
        return image.copy()
    stretched = np.clip((image - low) / (high - low) * 255, 0, 255).round().astype(np.uint8)  # (4)
    if settings.clip > 0:  # (5)–(7)
        clahe = cv2.createCLAHE(settings.clip, (settings.tiles, settings.tiles))
        stretched = clahe.apply(stretched)
    return np.where(background, image, stretched)  # (8)


@dataclass(frozen=True, eq=False)
class Preprocessed(SliceName):
    """A slice as the localizer sees it.

    Attributes:
        image: uint8 (size, size).
        label: uint8 (size, size) class indices, 255 = not labelled; None without reference.
        letterbox: the way back to the slice.
    """

    image: NDArray[np.uint8]
    label: NDArray[np.uint8] | None
    letterbox: Letterbox

    def on_slice_grid(self) -> NDArray[np.uint8]:
        """The enhanced image, uint8 (H, W)."""
        return np.asarray(self.letterbox.invert(self.image), dtype=np.uint8)


def preprocess(
    image: NDArray[np.uint8], settings: PreprocessSettings = PreprocessSettings()
) -> tuple[NDArray[np.uint8], Letterbox]:
    """Letterbox, then enhance: uint8 (H, W) or RGB (H, W, 3) → uint8 (size, size)."""
    grey = to_grey(image)
    letterbox = Letterbox.fit(grey.shape[:2], settings.size)
    return enhance(letterbox.apply(grey), settings), letterbox


def preprocess_slices(
    slices: Sequence[Slice],
    settings: PreprocessSettings = PreprocessSettings(),
    threads: int = 1,
    skips: list[Skip] | None = None,
) -> list[Preprocessed]:
    """Preprocess slices side by side; OpenCV frees Python's lock, so threads are enough.

    A slice that fails is left out, and added to ``skips``.
    """
    missing: list[Skip] = []

    def one(item: Slice) -> Preprocessed | None:
        with left_out(missing, item.case, STAGE, item.index):
            image, letterbox = preprocess(item.image, settings)
            # the padding is background, which is known
            label = None if item.label is None else letterbox.apply(item.label, nearest=True)
            return Preprocessed(item.case, item.index, image, label, letterbox)
        return None

    with ThreadPoolExecutor(max(1, threads)) as executor:
        done = [piece for piece in executor.map(one, slices) if piece is not None]
    if skips is not None:  # in the order of the slices, whichever thread was first
        skips += sorted(missing, key=lambda skip: (skip.case, skip.slice or 0))
    return done


def save_preprocessed(
    path: str | os.PathLike[str], pieces: Sequence[Preprocessed], skips: Sequence[Skip] = ()
) -> None:
    """Write a batch to one .npz file."""
    arrays, rows = {}, []
    for piece in pieces:
        arrays[f"{piece.key}/image"] = piece.image
        if piece.label is not None:
            arrays[f"{piece.key}/label"] = piece.label
        rows.append(
            {"case": piece.case, "index": piece.index, "letterbox": asdict(piece.letterbox)}
        )
    save_arrays(path, arrays, {"slices": rows, "skips": [skip.to_dict() for skip in skips]})


def load_preprocessed(
    path: str | os.PathLike[str], keys: Container[str] | None = None
) -> list[Preprocessed]:
    """Read what `save_preprocessed` wrote: the slices of these keys, or all."""
    pieces = []
    with open_arrays(path) as stored:
        for row in stored.meta["slices"]:
            name = SliceName(row["case"], row["index"])
            if keys is not None and name.key not in keys:
                continue
            box = row["letterbox"]
            letterbox = Letterbox(tuple(box.pop("shape")), **box)
            image, label = stored[f"{name.key}/image"], stored.get(f"{name.key}/label")
            pieces.append(Preprocessed(name.case, name.index, image, label, letterbox))
    return pieces


def preprocessed_keys(path: str | os.PathLike[str]) -> set[str]:
    """The slices in the file of `save_preprocessed`; none is read."""
    return {f"{row['case']}/{row['index']}" for row in load_meta(path)["slices"]}
