"""How well the compact SAM does on slices that it did not learn from."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import numpy as np
import torch
from segment_anything.modeling import Sam

from compact.pool import MR_WHITE, PoolSlice
from compact.sam.images import IDS, bounds
from xaiclip.models.segmenters.base import Prompts, to_mask
from xaiclip.models.segmenters.sam import SamSegmenter
from xaiclip.organs import SIX_CLASSES, organs_of


def evaluate(
    segmenter: SamSegmenter,
    pieces: Sequence[PoolSlice],
    *,
    box: str = "reference",
    seed: int = 0,
    organs: Sequence[str] = tuple(organs_of(SIX_CLASSES)),
) -> dict[str, float]:
    """Mean Dice of each organ over the slices that hold it, on the slices' own grid.

    ``box`` is ``reference`` (the mask's bounds plus 0–5 pixels, the same on all sides) or
    ``sloppy`` (each side also moved by up to 12 % of the box's size). CT is windowed 40/400.
    """
    rng = np.random.default_rng(seed)
    scores: dict[str, list[float]] = {name: [] for name in organs}
    for piece in pieces:
        truth = {n: piece.label == IDS[n] for n in organs if (piece.label == IDS[n]).any()}
        if not truth:
            continue
        low, high = (-160.0, 240.0) if piece.modality == "CT" else (0.0, float(MR_WHITE))
        grey = np.clip((piece.image - low) / (high - low), 0, 1) * 255
        boxes = []
        for mask in truth.values():
            tight = bounds(mask)
            extent = np.tile(tight[2:] - tight[:2], 2)
            margin = np.full(4, float(rng.integers(0, 6)))
            if box == "sloppy":
                margin = margin + rng.uniform(-0.12, 0.12, 4) * extent
            boxes.append(tight + margin * (-1, -1, 1, 1))
        prompts = Prompts.from_pixels(list(truth), boxes, piece.label.shape)
        inputs = segmenter.prepare(grey.astype(np.uint8))
        logits = segmenter.decode(segmenter.encode(inputs[None]), prompts)[0]
        found = to_mask(logits, piece.label.shape).cpu().numpy()
        for (name, mask), mine in zip(truth.items(), found, strict=True):
            scores[name].append(2 * float((mask & mine).sum()) / float(mask.sum() + mine.sum()))
    return {name: float(np.mean(s)) if s else math.nan for name, s in scores.items()}


def check(
    ema: Sam, checks: Sequence[PoolSlice], extras: Sequence[PoolSlice], device: torch.device
) -> dict[str, float]:
    segmenter = SamSegmenter(copy.deepcopy(ema), "compact", device=device, box_masks=True)
    row = {}
    for box in ("reference", "sloppy"):
        scores = evaluate(segmenter, checks, box=box)
        row[f"dice_{box}"] = round(float(np.nanmean(list(scores.values()))), 4)
        if box == "reference":
            row |= {f"dice_{k.replace(' ', '_')}": round(v, 4) for k, v in scores.items()}
    for modality in sorted({p.modality for p in extras}):
        names = [n for n in organs_of(SIX_CLASSES) if n != "pancreas"]
        some = [p for p in extras if p.modality == modality]
        scores = evaluate(segmenter, some, organs=names)
        row[f"extra_{modality}"] = round(float(np.nanmean(list(scores.values()))), 4)
    return row
