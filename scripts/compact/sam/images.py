"""What the compact SAM looks at: views of phantom slices, with boxes and targets."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from compact.pool import MR_WHITE, PoolSlice
from xaiclip.organs import FLARE22, SIX_CLASSES, organs_of

Float = NDArray[np.float32]
Grey = NDArray[Any]  # as OpenCV returns it


IDS = {name: i for i, name in FLARE22.items()}
MAIN = [IDS[name] for name in organs_of(SIX_CLASSES)]


@dataclass(frozen=True)
class Example:
    """One image and P prompts.

    ``image`` is float32 (S, S) in 0…1; ``targets`` float32 (P, S/2, S/2), the share of each pixel
    that belongs to the organ; ``boxes`` float32 (P, 4), XYXY in pixels of the image.
    """

    image: Float
    targets: Float
    boxes: Float


def _grey(piece: PoolSlice, rng: np.random.Generator) -> Float:
    """Grey values in 0…1: a CT window, mostly about 40/400, or a range of MR values."""
    image = piece.image.astype(np.float32)
    if piece.modality == "CT":
        if rng.random() < 0.6:
            level, width = rng.normal(40, 12), 400 * np.exp(rng.normal(0, 0.12))
        else:
            level, width = rng.uniform(0, 100), rng.uniform(180, 800)
        low, gamma, inverted = level - width / 2, rng.normal(0, 0.12), 0.03
    else:
        low, width = 0.0, MR_WHITE * np.exp(rng.uniform(-0.4, 0.3))
        gamma, inverted = rng.normal(0, 0.35), 0.15
    grey = np.clip((image - low) / width, 0, 1) ** np.float32(np.exp(gamma))
    if rng.random() < inverted:
        grey = 1 - grey
    return grey.astype(np.float32)


def _coarser(grey: Grey, piece: PoolSlice, rng: np.random.Generator) -> Float:
    """Resample to 2–4.2 mm pixels where the slice is finer, blur, add noise."""
    height, width = grey.shape
    if rng.random() < 0.4:
        wanted = rng.uniform(2.0, 4.2)
        size = [
            max(32, round(n * min(mm / wanted, 1)))
            for n, mm in zip((width, height), piece.spacing[::-1], strict=True)
        ]
        grey = cv2.resize(grey, size, interpolation=cv2.INTER_AREA)
    if rng.random() < 0.3:
        grey = cv2.GaussianBlur(grey, (0, 0), rng.uniform(0.3, 1.0))
    if rng.random() < 0.5:
        grey = grey + rng.standard_normal(grey.shape, np.float32) * np.float32(rng.uniform(0, 0.07))
    if rng.random() < 0.15:  # an unsharp mask, as edge-enhancing kernels do
        soft = cv2.GaussianBlur(grey, (0, 0), rng.uniform(0.8, 2))
        grey = grey + np.float32(rng.uniform(0.2, 1)) * (grey - soft)
    return np.clip(grey, 0, 1)


def _view(shape: tuple[int, int], centre: Float, size: int, rng: np.random.Generator) -> Float:
    """Affine (3, 3) from fractions of the slice to pixels of the model's input."""
    zoom = math.exp(rng.uniform(-0.2, 0.35)) if rng.random() < 0.6 else 1.0
    aspect = math.exp(rng.normal(0, 0.07))
    angle = math.radians(rng.normal(0, 5))
    flip = np.where(rng.random(2) < (0.5, 0.03), -1.0, 1.0)
    # look at an organ the more, the closer the view
    look = np.clip(2 * (zoom - 1), 0, 0.8) * (centre - 0.5) + rng.normal(0, 0.04, 2)
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    linear = turn @ np.diag(flip * zoom * size * np.array([aspect, 1 / aspect]))
    out = np.eye(3, dtype=np.float32)
    out[:2, :2] = linear
    out[:2, 2] = size / 2 - linear @ (0.5 + look)
    return out


def _warp(image: NDArray[Any], view: Float, size: int, scale: float, mode: int) -> NDArray[Any]:
    """Resample through ``view``; pixel centres are at halves, OpenCV's at whole numbers."""
    height, width = image.shape
    full = np.diag([scale, scale, 1]) @ view @ np.diag([1 / width, 1 / height, 1])
    full[:2, 2] += full[:2, :2] @ (0.5, 0.5) - 0.5
    return cv2.warpAffine(image, full[:2], (size, size), flags=mode)


def _blob(size: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """A random smooth shape, 255 inside."""
    cells = int(rng.integers(3, 7))
    field = cv2.resize(
        rng.standard_normal((cells, cells), np.float32), (size, size), interpolation=cv2.INTER_CUBIC
    )
    y, x = np.mgrid[:size, :size].astype(np.float32) / size
    cx, cy = rng.uniform(0.15, 0.85, 2)
    a, b = np.exp(rng.uniform(math.log(0.04), math.log(0.3), 2))
    turn = rng.uniform(0, np.pi)
    u = (x - cx) * np.cos(turn) + (y - cy) * np.sin(turn)
    v = (y - cy) * np.cos(turn) - (x - cx) * np.sin(turn)
    inside = 1 - np.hypot(u / a, v / b) + np.float32(rng.uniform(0, 0.5)) * field > 0
    count, parts, stats, _ = cv2.connectedComponentsWithStats(inside.astype(np.uint8))
    if count < 2:
        return np.zeros((size, size), np.uint8)
    return (parts == 1 + stats[1:, cv2.CC_STAT_AREA].argmax()).astype(np.uint8) * np.uint8(255)


def _half(mask: NDArray[np.uint8]) -> Grey:
    side = mask.shape[0] // 2
    return cv2.resize(mask, (side, side), interpolation=cv2.INTER_AREA)


def _paint_blobs(grey: Float, prompts: int, rng: np.random.Generator) -> tuple[Float, list[Grey]]:
    """Lay blobs of new brightness and grain over the image; what is still seen of each."""
    size = grey.shape[0]
    seen: list[NDArray[np.uint8]] = []
    for _ in range(prompts):
        mask = _blob(size, rng)
        soft = cv2.GaussianBlur(mask, (0, 0), rng.uniform(0.6, 1.6)).astype(np.float32) / 255
        grain = cv2.resize(rng.standard_normal((size // 2, size // 2), np.float32), (size, size))
        under = float(grey[mask > 0].mean()) if mask.any() else 0.5
        step = rng.uniform(0.06, 0.4) * (1 if rng.random() < 0.5 else -1)
        value = np.clip(under + step, 0, 1) + grain * np.float32(rng.uniform(0, 0.06))
        grey = grey + soft * (value - grey)
        seen = [np.where(mask > 0, 0, other).astype(np.uint8) for other in seen] + [mask]
    return np.clip(grey, 0, 1).astype(np.float32), [_half(mask) for mask in seen]


def bounds(mask: NDArray[np.bool_]) -> Float:
    """XYXY edges of a mask that is not empty."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], np.float32)


def sloppy(box: Float, size: int, rng: np.random.Generator) -> Float:
    """A box as people and localizers draw it: near, too large by a margin, or far too large."""
    low, high = box[:2], box[2:]
    extent, kind = high - low, rng.random()
    if kind < 0.3:  # a margin in pixels of a coarse slice
        margin = np.full(4, rng.uniform(0, 0.05) * size)
    elif kind < 0.8:
        margin = rng.normal(0.02, 0.06, 4).clip(-0.14, 0.2) * np.tile(extent, 2)
        margin += rng.uniform(0, 0.02) * size
    else:
        margin = rng.uniform(-0.05, 0.45, 4) * np.tile(extent, 2) * rng.random(4)
    moved = np.concatenate([low - margin[:2], high + margin[2:]]).clip(0, size)
    if (moved[2:] - moved[:2] < 2).any():
        moved = np.concatenate([low - 1, high + 1])
    return moved.astype(np.float32)


def example(
    piece: PoolSlice,
    rng: np.random.Generator,
    *,
    size: int = 256,
    prompts: int = 5,
    blobs: float = 0.06,
) -> Example:
    """Draw a view of a slice with ``prompts`` boxes: organs, or now and then painted blobs."""
    present = np.unique(piece.label)
    present = present[present > 0]
    centre = np.full(2, 0.5, np.float32)
    if len(present):
        liked = [i for i in present if i in MAIN] or list(present)
        ys, xs = np.nonzero(piece.label == rng.choice(liked))
        centre = np.array([xs.mean() / piece.label.shape[1], ys.mean() / piece.label.shape[0]])
    view = _view(piece.label.shape, centre, size, rng)
    grey = _coarser(_grey(piece, rng), piece, rng)
    mode = cv2.INTER_CUBIC if rng.random() < 0.7 else cv2.INTER_LINEAR
    image = np.clip(_warp(grey, view, size, 1, mode), 0, 1)
    masks: dict[int, NDArray[np.uint8]] = {}
    for i in present:
        mask = _warp(
            (piece.label == i).astype(np.uint8) * np.uint8(255),
            view,
            size // 2,
            0.5,
            cv2.INTER_LINEAR,
        )
        if np.count_nonzero(mask > 127) >= 8:
            masks[int(i)] = mask
    targets: list[Grey]
    if masks and rng.random() >= blobs:
        ids = np.array(list(masks))
        likes = np.where(np.isin(ids, MAIN), 1.0, 0.15)
        order = rng.choice(ids, min(prompts, len(ids)), replace=False, p=likes / likes.sum())
        extra = rng.choice(ids, prompts - len(order), p=likes / likes.sum())
        targets = [masks[int(i)] for i in (*order, *extra)]
    else:
        targets = []
        while not targets:
            painted, found = _paint_blobs(image, prompts, rng)
            targets = [mask for mask in found if np.count_nonzero(mask > 127) >= 8]
        image = painted
        targets = (targets * prompts)[:prompts]
    boxes = np.stack([sloppy(2 * bounds(mask > 127), size, rng) for mask in targets])
    low, high = image.min(), image.max()
    image = (image - low) / max(high - low, 1e-3)
    return Example(image.astype(np.float32), (np.stack(targets) / 255).astype(np.float32), boxes)
