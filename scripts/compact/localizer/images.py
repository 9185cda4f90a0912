"""What the shipped localizer learns from: slices of phantoms in endless variation.

Grey values change first, in the scan's own units; then the field of view and the pose; then comes
what a study does with every slice: window, letterbox, enhancement.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from compact.pool import PoolSlice
from xaiclip.organs import FLARE22
from xaiclip.preprocess import Letterbox, PreprocessSettings, enhance

Float = NDArray[np.float32]
Bytes = NDArray[np.uint8]

_SETTINGS = PreprocessSettings()
#: What `example` draws lies in this many pixels along its longer side.
_SIDES = (140, 300)
#: Above this, in HU or as a share of an MR's white, is body.
_BODY = {"CT": -300.0, "MR": 60.0}
_SMOOTH = (0, 0)


def class_of(classes: Sequence[str]) -> Bytes:
    """The class of each FLARE22 id, background for those that are none."""
    table = np.zeros(256, np.uint8)
    for number, organ in FLARE22.items():
        if organ in classes:
            table[number] = classes.index(organ)
    return table


def plain(
    piece: PoolSlice, table: Bytes, settings: PreprocessSettings = _SETTINGS
) -> tuple[Bytes, Bytes]:
    """A slice exactly as a study would bring it to the localizer.

    Returns:
        uint8 (size, size) image, and the classes on the same grid.
    """
    box = Letterbox.fit(piece.label.shape, settings.size)
    grey = _window(piece.image.astype(np.float32), piece.modality, None)
    return (
        enhance(box.apply(_bytes(grey)), settings),
        box.apply(table[piece.label], nearest=True),
    )


def example(
    piece: PoolSlice,
    table: Bytes,
    rng: np.random.Generator,
    settings: PreprocessSettings = _SETTINGS,
) -> tuple[Bytes, Bytes]:
    """A slice as no other scanner brings it; see `plain` for what is returned."""
    image = _recoloured(piece, rng)
    if piece.modality == "CT":
        image = _lossy(_noisy(image, rng), rng)
    grey = _window(image, piece.modality, rng)
    air = float(grey.min())
    if piece.modality == "MR":
        grey = _curve(grey, rng)
    grey, label = _framed(grey, piece, air, rng)
    grey = _degraded(grey, piece.modality, rng)
    box = Letterbox.fit(label.shape, settings.size)
    return (
        enhance(box.apply(_bytes(grey)), settings),
        box.apply(table[label], nearest=True),
    )


def _bytes(grey: Float) -> Bytes:
    return (np.clip(grey, 0, 1) * 255).astype(np.uint8)


def _recoloured(piece: PoolSlice, rng: np.random.Generator) -> Float:
    """Each organ brighter or darker than in the rest of its volume, with soft rims."""
    image = piece.image.astype(np.float32)
    if rng.random() < 0.3:
        return image
    shifts = np.zeros(256, np.float32)
    spread = rng.uniform(0, 30) if piece.modality == "CT" else rng.uniform(0, 160)
    shifts[1:14] = rng.normal(0, spread, 13)
    if rng.random() < 0.8:  # the kidneys are alike
        shifts[13] = shifts[2] + rng.normal(0, 0.1 * spread)
    added = cv2.GaussianBlur(shifts[piece.label], _SMOOTH, rng.uniform(0.5, 1.0))
    moved: Float = image + added
    return moved if piece.modality == "CT" else np.maximum(moved, 0)


def _noisy(image: Float, rng: np.random.Generator) -> Float:
    """More of a CT's noise, with a grain of its own."""
    if rng.random() < 0.5:
        return image
    noise = rng.standard_normal(image.shape, np.float32)
    if rng.random() < 0.6:
        noise = np.asarray(cv2.GaussianBlur(noise, _SMOOTH, rng.uniform(0.4, 1.2)))
    return image + noise / noise.std() * np.float32(rng.uniform(2, 40))


def _lossy(image: Float, rng: np.random.Generator) -> Float:
    """Many published CT slices have lost a part of the scale: below 0 HU, say."""
    kind = rng.random()
    if kind < 0.2:
        return np.maximum(image, 0)
    if kind < 0.26:  # put back, without texture
        fat = np.where(image > rng.uniform(-500, -200), np.float32(rng.uniform(-120, -60)), -1000)
        return np.where(image < 0, fat, image).astype(np.float32)
    if kind < 0.32:
        return np.maximum(image, np.float32(rng.uniform(-250, -20)))
    return image


def _window(image: Float, modality: str, rng: np.random.Generator | None) -> Float:
    """To 0…1: level 40, width 400, or the 0.5–99.5 percentiles; others now and then."""
    varied = rng is not None and rng.random() < 0.5
    if modality == "CT":
        level, width = (rng.uniform(5, 90), rng.uniform(200, 600)) if varied and rng else (40, 400)
        low, high = level - width / 2, level + width / 2
    else:
        top = rng.uniform(96, 99.9) if varied and rng else 99.5
        tissue = image[image > 0]
        low, high = np.percentile(tissue, (0.5, top)) if tissue.size else (0.0, 1.0)
    return np.clip((image - low) / max(high - low, 1e-6), 0, 1).astype(np.float32)


def _curve(grey: Float, rng: np.random.Generator) -> Float:
    """Another contrast: a rising curve of grey values, or one that rises and falls."""
    if rng.random() < 0.4:
        return grey
    knots = np.linspace(0, 1, 6)
    if rng.random() < 0.7:
        steps = rng.dirichlet(np.full(5, 2.0))
        values = np.concatenate([[0], np.cumsum(steps)])
    else:
        values = rng.uniform(0.05, 1, 6)
        values[0] = 0  # air
    return np.interp(grey, knots, values).astype(np.float32)


def _grown(field: Float, columns: int, rows: int) -> Float:
    """A smooth field on a finer grid."""
    return np.asarray(cv2.resize(field, (columns, rows), interpolation=cv2.INTER_CUBIC), np.float32)


def _body(piece: PoolSlice) -> tuple[int, int, int, int]:
    """Where the body begins and ends: left, top, right, bottom."""
    bright = (piece.image > _BODY[piece.modality]).astype(np.uint8)
    inside = cv2.morphologyEx(bright, cv2.MORPH_OPEN, np.ones((5, 5), np.uint8))
    left, top, width, height = cv2.boundingRect(inside)
    if width < 20 or height < 20:
        return 0, 0, bright.shape[1], bright.shape[0]
    return left, top, left + width, top + height


def _framed(
    grey: Float, piece: PoolSlice, air: float, rng: np.random.Generator
) -> tuple[Float, Bytes]:
    """Another field of view, size, proportion, turn and shape of the body; never a flip."""
    height, width = grey.shape
    x0, y0, x1, y1 = (0.0, 0.0, float(width), float(height))
    if rng.random() < 0.5:
        x0, y0, x1, y1 = map(float, _body(piece))
        size = max(x1 - x0, y1 - y0)
        margins = rng.uniform(-0.07, 0.12, 4) * size
    else:
        size = max(x1 - x0, y1 - y0)
        margins = np.full(4, rng.uniform(-0.12, 0.15) * size) + rng.uniform(-0.05, 0.05, 4) * size
    x0, y0, x1, y1 = x0 - margins[0], y0 - margins[1], x1 + margins[2], y1 + margins[3]
    if rng.random() < 0.4:  # a square field of view
        half = max(x1 - x0, y1 - y0) / 2
        middle = (y0 + y1) / 2
        y0, y1 = middle - half, middle + half
    shrink = rng.uniform(*_SIDES) / max(x1 - x0, y1 - y0)
    columns = max(32, round((x1 - x0) * shrink))
    rows = max(32, round((y1 - y0) * shrink))
    # a place of the new slice, in the middle's frame, then turned, stretched and bent
    x = np.linspace(x0, x1, columns, dtype=np.float32) - np.float32((x0 + x1) / 2)
    y = np.linspace(y0, y1, rows, dtype=np.float32) - np.float32((y0 + y1) / 2)
    xs, ys = np.meshgrid(x, y)
    turn = np.deg2rad(rng.normal(0, 5))
    stretch, shear = np.exp(rng.normal(0, 0.07)), rng.normal(0, 0.04)
    (a, b), (c, d) = (
        (float(np.cos(turn) * stretch), float(shear - np.sin(turn))),
        (float(np.sin(turn)), float(np.cos(turn) / stretch)),
    )
    u = a * xs + (b * ys + np.float32((x0 + x1) / 2 - 0.5))
    v = c * xs + (d * ys + np.float32((y0 + y1) / 2 - 0.5))
    if rng.random() < 0.7:
        bends = rng.standard_normal((4, 4, 2), np.float32) * np.float32(rng.uniform(0, 0.03))
        bends = _grown(bends, 8, 8)
        bends += rng.standard_normal((8, 8, 2), np.float32) * np.float32(rng.uniform(0, 0.008))
        bends *= max(width, height)
        bends = _grown(bends, columns, rows)
        u, v = u + bends[..., 0], v + bends[..., 1]
    moved = cv2.remap(grey, u, v, cv2.INTER_LINEAR, None, cv2.BORDER_CONSTANT, air)
    label = cv2.remap(piece.label, u, v, cv2.INTER_NEAREST, None, cv2.BORDER_CONSTANT, 0)
    return np.asarray(moved, np.float32), np.asarray(label, np.uint8)


def _degraded(grey: Float, modality: str, rng: np.random.Generator) -> Float:
    """A coarser grid, blur, a coil's shading, noise, gamma."""
    rows, columns = grey.shape
    if rng.random() < 0.3:
        factor = rng.uniform(1.2, 2.4)
        small = (max(8, int(columns / factor)), max(8, int(rows / factor)))
        coarse = cv2.resize(grey, small, interpolation=cv2.INTER_AREA)
        grey = np.asarray(cv2.resize(coarse, (columns, rows), interpolation=cv2.INTER_LINEAR))
    if rng.random() < 0.25:
        grey = np.asarray(cv2.GaussianBlur(grey, _SMOOTH, rng.uniform(0.4, 1.3)))
    if rng.random() < (0.6 if modality == "MR" else 0.1):
        field = _grown(rng.standard_normal((3, 3), np.float32), columns, rows)
        grey = grey * np.exp(field * np.float32(rng.uniform(0, 0.35)))
    if modality == "MR" and rng.random() < 0.5:
        sigma = np.float32(rng.uniform(0, 0.08))
        noise = rng.standard_normal((2, rows, columns), np.float32) * sigma
        grey = np.hypot(grey + noise[0], noise[1])
    if rng.random() < 0.4:
        grey = np.clip(grey, 0, 1) ** np.float32(np.exp(rng.normal(0, 0.25)))
    return grey.astype(np.float32)
