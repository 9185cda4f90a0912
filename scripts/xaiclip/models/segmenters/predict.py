"""From a slice and boxes to masks."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from xaiclip.models.segmenters.base import Prompts, Segmenter, decode, to_mask


@torch.inference_mode()
def segment_slice(
    segmenter: Segmenter, image: NDArray[np.uint8], boxes: Mapping[str, ArrayLike | None]
) -> dict[str, NDArray[np.bool_]]:
    """Masks (H, W) of a slice's organs; organs without a box have none.

    ``image`` is uint8 (H, W), ``boxes`` XYXY in its pixels.
    """
    given = {organ: box for organ, box in boxes.items() if box is not None}
    if not given:
        return {}
    shape = (image.shape[0], image.shape[1])
    prompts = Prompts.from_pixels(list(given), np.stack([*map(np.asarray, given.values())]), shape)
    embedding = segmenter.encode(segmenter.prepare(image)[None])
    masks = to_mask(decode(segmenter, embedding, prompts)[0], shape).cpu().numpy()
    return dict(zip(given, masks, strict=True))


def plain_slice() -> tuple[NDArray[np.uint8], NDArray[np.bool_], NDArray[np.float32]]:
    """A slice that any model should take: a bright disk, uint8 (256, 256), its mask and box."""
    rows, columns = np.mgrid[:256, :256]
    disk = np.hypot(rows - 120, columns - 136) < 50
    return np.where(disk, 180, 60).astype(np.uint8), disk, np.array([81, 65, 191, 175], np.float32)
