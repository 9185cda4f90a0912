"""What the trainings of the compact models share."""

from __future__ import annotations

import csv
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from compact.pool import PoolSlice
from xaiclip.device import choose_precision
from xaiclip.files import atomic


def learning_precision(setting: str, device: torch.device) -> str:
    """What a model learns in: on a CPU ``auto`` takes bf16 where the processor multiplies in it."""
    if setting != "auto" or device.type != "cpu":
        return choose_precision(device, setting)
    return "bf16" if torch.ops.mkldnn._is_mkldnn_bf16_supported() else "fp32"


def apart(
    pieces: Sequence[PoolSlice], held_out: Collection[str]
) -> tuple[list[PoolSlice], list[PoolSlice]]:
    """Slices to learn from, and those of the volumes that are held out for the checks."""
    return (
        [piece for piece in pieces if piece.volume not in held_out],
        [piece for piece in pieces if piece.volume in held_out],
    )


@torch.no_grad()
def average(means: Iterable[Tensor], now: Iterable[Tensor], decay: float) -> None:
    """Move running means of weights towards what the weights are now, in place."""
    for mean, value in zip(means, now, strict=True):
        mean.lerp_(value, 1 - decay)


def write_log(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """The checks of a training as CSV, one row each."""
    with atomic(path) as temporary, open(temporary, "w", newline="") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
