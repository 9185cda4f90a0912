"""Where the seconds of an explanation go."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

#: The phases of an explanation; value functions count as decoding. ``backward`` is what a gradient
#: method takes besides its forwards.
PHASES = ("perturb", "encode", "decode", "backward", "aggregate")


class Clock:
    """Wall-clock seconds by phase. ``total`` is measured on its own, not summed."""

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.seconds: dict[str, float] = {}
        self._device = device
        self._queues = not str(device).startswith("cpu")

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Add the seconds of the block to ``phase``; queued work of a GPU is waited for."""
        start = self._now()
        try:
            yield
        finally:
            self.seconds[phase] = self.seconds.get(phase, 0.0) + self._now() - start

    def _now(self) -> float:
        if self._queues:
            import torch

            torch.accelerator.synchronize(self._device)
        return time.perf_counter()
