"""What the compact CLIP looks at: crops of phantom slices, with captions and labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from compact.clip.words import REGIONS, caption
from compact.pool import PoolSlice
from xaiclip.preprocess import Letterbox, PreprocessSettings, enhance


@dataclass(frozen=True)
class Example:
    """``image`` uint8 (224, 224); ``label`` FLARE22 ids on the same grid; ``caption``."""

    image: NDArray[np.uint8]
    label: NDArray[np.uint8]
    caption: str


def _window(piece: PoolSlice, rng: np.random.Generator, jitter: bool) -> NDArray[np.float32]:
    """To grey values 0…255: a CT window, or MR percentiles; varied when ``jitter``."""
    image = piece.image.astype(np.float32)
    if piece.modality == "CT":
        level, width = (rng.uniform(15, 75), rng.uniform(260, 520)) if jitter else (40.0, 400.0)
        low, high = level - width / 2, level + width / 2
    else:
        tissue = image[image > 0]
        top = rng.uniform(97, 99.8) if jitter else 99.5
        low, high = np.percentile(tissue, (0.5, top)) if tissue.size else (0.0, 1.0)
    grey = np.clip((image - low) / max(high - low, 1e-6), 0, 1)
    if jitter:
        grey = grey ** np.exp(rng.normal(0, 0.15 if piece.modality == "CT" else 0.3))
    return (grey * 255).astype(np.float32)


def example(
    piece: PoolSlice,
    rng: np.random.Generator,
    settings: PreprocessSettings,
    *,
    augment: bool = True,
) -> Example:
    """Draw a view of a slice: the whole of it or a crop, as the localizer would see it.

    Six of ten views are (almost) whole slices; eight of ten go through equations 1–8. Blur, noise
    and a coarser grid imitate other scanners.
    """
    image, view = _window(piece, rng, augment), piece.label
    crop = (0.5, 0.5, 1.0)
    if augment:
        height, width = view.shape
        scale = rng.uniform(0.8, 1.0) if rng.random() < 0.6 else rng.uniform(0.22, 0.75)
        h = int(height * scale * rng.uniform(0.9, 1.0))
        w = int(width * scale * rng.uniform(0.9, 1.0))
        y, x = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
        crop = ((x + w / 2) / width, (y + h / 2) / height, w / width)
        image = _degrade(image[y : y + h, x : x + w], rng)
        view = view[y : y + h, x : x + w]
    box = Letterbox.fit(view.shape, settings.size)
    grey = box.apply(np.clip(image, 0, 255).astype(np.uint8))
    if not augment or rng.random() < 0.8:
        grey = enhance(grey, settings)
    counts, total = (
        np.bincount(ids.ravel(), minlength=256)[: len(REGIONS)] for ids in (view, piece.label)
    )
    text = caption(
        view,
        counts / np.maximum(total, 1),
        rng,
        modality=piece.modality,
        detail=piece.detail,
        crop=crop,
    )
    return Example(grey, box.apply(view, nearest=True), text)


def _degrade(image: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    height, width = image.shape
    if rng.random() < 0.3:
        factor = rng.uniform(1.2, 2.5)
        size = (max(1, int(width / factor)), max(1, int(height / factor)))
        small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        image = np.asarray(cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR))
    if rng.random() < 0.25:
        image = np.asarray(cv2.GaussianBlur(image, (0, 0), rng.uniform(0.4, 1.4)))
    if rng.random() < 0.4:
        image = image + rng.standard_normal(image.shape, np.float32) * np.float32(
            rng.uniform(1, 14)
        )
    return image


def draw_batch(
    pool: Sequence[PoolSlice], size: int, rng: np.random.Generator, settings: PreprocessSettings
) -> list[Example]:
    """``size`` examples with different captions (equal ones would be false negatives)."""
    batch: dict[str, Example] = {}
    for _ in range(4 * size):
        drawn = example(pool[int(rng.integers(len(pool)))], rng, settings)
        batch.setdefault(drawn.caption, drawn)
        if len(batch) == size:
            break
    return list(batch.values())


def coverage(labels: NDArray[np.uint8], grid: int) -> Tensor:
    """Share of each patch that each region fills: (B, S, S) → float32 (B, grid², len(REGIONS))."""
    batch, size, _ = labels.shape
    patch = size // grid
    onehot = labels[..., None] == np.arange(len(REGIONS), dtype=np.uint8)
    cells = onehot.reshape(batch, grid, patch, grid, patch, -1).mean((2, 4), dtype=np.float32)
    return torch.from_numpy(cells.reshape(batch, grid * grid, -1))
