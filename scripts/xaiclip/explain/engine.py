"""The engine: run a perturbation plan through a scorer and keep its score table.

Each perturbed image is made on the device from the compact plan and goes through the model once,
for all targets; only the scores stay. Memory does not grow with N. Nothing but the functions needs
torch: what is made of the scores does not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from xaiclip.clock import Clock

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from xaiclip.explain.plan import Plan
    from xaiclip.targets import Scorer


class BatchSize:
    """How many perturbed images are encoded at once, over all slices of a job.

    ``auto`` on a GPU is found by trial: 1, then twice as many after each success, until memory
    runs out or `LARGEST` is reached. On a CPU, where running out ends the process, it is fixed by
    the input's area. Halved when memory runs out, however it began, and then never raised again.
    """

    LARGEST = 64
    #: Images of 256 × 256 that a CPU encodes at once: few, so that they stay in its caches.
    ON_CPU = 8

    def __init__(self, value: int, *, growing: bool = False) -> None:
        self.value, self.growing = value, growing

    @classmethod
    def of(
        cls, setting: int | Literal["auto"] | BatchSize, device: torch.device | str, side: int
    ) -> BatchSize:
        """From ``explain.batch_size``, for square inputs of ``side`` pixels."""
        if isinstance(setting, BatchSize):
            return setting
        if isinstance(setting, int):
            return cls(setting)
        if _on_cpu(device):
            return cls(max(1, min(cls.LARGEST, round(cls.ON_CPU * (256 / side) ** 2))))
        return cls(1, growing=True)

    def succeeded(self, images: int) -> None:
        """Grow, if a full batch of ``images`` went through."""
        if self.growing and images == self.value:
            self.value = min(2 * self.value, self.LARGEST)

    def shrink(self, images: int) -> None:
        """Halve: a batch of ``images`` did not fit."""
        self.value, self.growing = max(1, images // 2), False


@dataclass(frozen=True, eq=False)
class ScoreTable:
    """What the perturbations did to the scores.

    Attributes:
        scores: float32 (N, T, V).
        baseline: float32 (T, V), of the unperturbed image.
        values: names of the V value functions.
        seconds: by phase, and ``total``.
        n_forwards: images that went through the model, counted as they did.
    """

    scores: NDArray[np.float32]
    baseline: NDArray[np.float32]
    values: tuple[str, ...]
    seconds: dict[str, float]
    n_forwards: int

    def take(self, rows: slice | NDArray[np.integer[Any]]) -> ScoreTable:
        """The table of some of the forwards; the seconds in proportion to their number."""
        scores = self.scores[rows]
        share = len(scores) / max(1, len(self.scores))
        seconds = {phase: spent * share for phase, spent in self.seconds.items()}
        return replace(self, scores=scores, seconds=seconds, n_forwards=len(scores))

    def extended(self, other: ScoreTable) -> ScoreTable:
        """The forwards of this table, then those of another on the same slice."""
        seconds = {
            phase: self.seconds.get(phase, 0.0) + other.seconds.get(phase, 0.0)
            for phase in self.seconds | other.seconds
        }
        return replace(
            self,
            scores=np.concatenate([self.scores, other.scores]),
            seconds=seconds,
            n_forwards=self.n_forwards + other.n_forwards,
        )

    def of(self, values: Sequence[str]) -> NDArray[np.float32]:
        """The scores of some value functions: (N, T, len(values))."""
        return self.scores[..., [self.values.index(name) for name in values]]

    def baseline_of(self, values: Sequence[str]) -> NDArray[np.float32]:
        """The baseline of some value functions: (T, len(values))."""
        return self.baseline[..., [self.values.index(name) for name in values]]


def score(
    plan: Plan,
    scorer: Scorer,
    fill: str = "mean",
    batch_size: int | Literal["auto"] | BatchSize = "auto",
    *,
    progress: Callable[[int, int], None] | None = None,
) -> ScoreTable:
    """Run a plan: N forwards, whatever the number of targets.

    Args:
        plan: N perturbations.
        scorer: what is explained, of which slice.
        fill: what replaces hidden pixels: ``mean`` (of each channel), ``zero``, or ``blur``
            (Gaussian, σ = the longer side / 32).
        batch_size: perturbed images that go through the model at once; see `BatchSize`.
        progress: called with the forwards done and N, after each batch.

    Raises:
        MemoryError: not even one image at a time fits.
    """
    import torch

    from xaiclip.device import free_cache

    inputs, device = scorer.inputs, scorer.device
    side = max(inputs.shape[-2:])
    clock = Clock(device)
    batch = BatchSize.of(batch_size, device, side)
    before = scorer.n_forwards
    with torch.inference_mode(), clock("total"):
        filling = fill_image(fill, inputs)
        chunks: list[Tensor] = []
        start = 0
        while start < plan.n_forwards:
            stop = min(start + batch.value, plan.n_forwards)
            found = _forward(plan, scorer, filling, (start, stop), clock)
            if found is None:
                batch.shrink(stop - start)
                free_cache(device)
                continue
            chunks.append(found)
            batch.succeeded(stop - start)
            start = stop
            if progress is not None:
                progress(start, plan.n_forwards)
        scores = torch.cat(chunks).cpu().numpy()
        baseline = scorer.baseline.cpu().numpy()
    return ScoreTable(scores, baseline, scorer.values, clock.seconds, scorer.n_forwards - before)


def _forward(
    plan: Plan, scorer: Scorer, filling: Tensor, rows: tuple[int, int], clock: Clock
) -> Tensor | None:
    """Scores of a few forwards; None if they do not fit into memory, and then nothing is held.

    Not even by the exception: what its frames hold could not be handed back.
    """
    import torch

    from xaiclip.device import out_of_memory

    inputs = scorer.inputs
    try:
        with clock("perturb"):
            keep = plan.keep(*rows, max(inputs.shape[-2:]), scorer.device)
            perturbed = torch.lerp(filling, inputs, _fit(keep, inputs))
        return scorer(perturbed, clock)
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        if rows[1] - rows[0] == 1:
            raise MemoryError("One perturbed image does not fit into memory.") from error
        return None


def fill_image(name: str, inputs: Tensor) -> Tensor:
    """What replaces hidden pixels of ``inputs`` (C, h, w); broadcasts against it."""
    if name == "mean":
        return inputs.mean((-2, -1), keepdim=True)
    if name == "zero":
        return inputs.new_zeros(())
    if name == "blur":
        from torchvision.transforms.functional import gaussian_blur  # seconds to import

        sigma = max(inputs.shape[-2:]) / 32
        return gaussian_blur(inputs, 2 * round(3 * sigma) + 1, sigma)
    raise ValueError(f"unknown fill '{name}'")


def _fit(keep: Tensor, inputs: Tensor) -> Tensor:
    """Masks drawn on a square, for an input of the slice's aspect."""
    from torch import nn

    shape = inputs.shape[-2:]
    if keep.shape[-2:] == shape:
        return keep
    return nn.functional.interpolate(keep, shape, mode="nearest-exact")


def _on_cpu(device: torch.device | str) -> bool:
    return str(device).startswith("cpu")
