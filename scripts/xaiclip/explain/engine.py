"""The engine: run a perturbation plan through a segmenter and keep its score table.

Each perturbed image is made on the device from the compact plan, encoded once, and decoded for all
organs in one call; only the scores stay. Memory does not grow with N.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from xaiclip.device import out_of_memory
from xaiclip.explain.attribution import GRID
from xaiclip.explain.values import THRESHOLD, VALUES
from xaiclip.models.segmenters.base import decode, to_mask

if TYPE_CHECKING:
    from xaiclip.explain.plan import Plan
    from xaiclip.models.segmenters.base import Prompts, Segmenter

#: Where the time of an explanation goes; value functions count as decoding.
PHASES = ("perturb", "encode", "decode", "aggregate")


class Clock:
    """Wall-clock seconds by phase. ``total`` is measured on its own, not summed."""

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.seconds: dict[str, float] = {}
        self._queues = torch.device(device).type != "cpu"

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
            torch.accelerator.synchronize()
        return time.perf_counter()


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
        if torch.device(device).type == "cpu":
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
class Baseline:
    """The unperturbed segmentation.

    Attributes:
        logits: float32 (O, h, w).
    """

    logits: Tensor

    @property
    def probability(self) -> Tensor:
        """float32 (O, h, w) in [0, 1]."""
        return self.logits.sigmoid()

    @property
    def mask(self) -> Tensor:
        """float32 (O, h, w) of 0 and 1."""
        return (self.probability > THRESHOLD).float()

    def canonical_masks(self) -> NDArray[np.bool_]:
        """The masks on the canonical grid: bool (O, 512, 512)."""
        return to_mask(self.logits, (GRID, GRID)).cpu().numpy()

    def select(self, chosen: NDArray[np.bool_]) -> Baseline:
        """The same with some of the organs: bool (O,)."""
        return Baseline(self.logits[torch.from_numpy(chosen).to(self.logits.device)])


@dataclass(frozen=True, eq=False)
class ScoreTable:
    """What the perturbations did to the segmentation.

    Attributes:
        scores: float32 (N, O, V).
        baseline: float32 (O, V), of the unperturbed image.
        values: names of the V value functions.
        seconds: by phase, and ``total``.
        n_forwards: images encoded, counted in the loop.
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
        """The scores of some value functions: (N, O, len(values))."""
        return self.scores[..., [self.values.index(name) for name in values]]

    def baseline_of(self, values: Sequence[str]) -> NDArray[np.float32]:
        """The baseline of some value functions: (O, len(values))."""
        return self.baseline[..., [self.values.index(name) for name in values]]


@torch.inference_mode()
def segment(
    segmenter: Segmenter, inputs: Tensor, prompts: Prompts, clock: Clock | None = None
) -> Baseline:
    """Segment the unperturbed input (C, h, w): one forward."""
    clock = clock or Clock(segmenter.device)
    with clock("encode"):
        embedding = segmenter.encode(inputs[None].to(segmenter.device))
    with clock("decode"):
        logits = decode(segmenter, embedding, prompts)[0]
    return Baseline(logits)


@torch.inference_mode()
def score(
    plan: Plan,
    segmenter: Segmenter,
    inputs: Tensor,
    prompts: Prompts,
    values: Sequence[str] = ("soft_dice",),
    fill: str = "mean",
    batch_size: int | Literal["auto"] | BatchSize = "auto",
    *,
    baseline: Baseline | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> ScoreTable:
    """Run a plan: N encodes, whatever the number of organs.

    Args:
        plan: N perturbations.
        segmenter: the model that is explained.
        inputs: float32 (C, h, w), what ``segmenter.prepare`` gave.
        prompts: O organs and their boxes.
        values: names of `VALUES`.
        fill: what replaces hidden pixels: ``mean`` (of each channel), ``zero``, or ``blur``
            (Gaussian, σ = the longer side / 32).
        batch_size: perturbed images encoded at once; see `BatchSize`.
        baseline: the unperturbed segmentation; made (and counted) here if None.
        progress: called with the forwards done and N, after each batch.

    Raises:
        MemoryError: not even one image at a time fits.
    """
    device = segmenter.device
    clock = Clock(device)
    batch = BatchSize.of(batch_size, device, max(inputs.shape[-2:]))
    with clock("total"):
        n_forwards = 0
        if baseline is None:
            baseline = segment(segmenter, inputs, prompts, clock)
            n_forwards += 1
        inputs = inputs.to(device)
        filling = fill_image(fill, inputs)
        mask = baseline.mask
        chunks: list[Tensor] = []
        start = 0
        while start < plan.n_forwards:
            stop = min(start + batch.value, plan.n_forwards)
            try:
                with clock("perturb"):
                    keep = _fit(plan.keep(start, stop, max(inputs.shape[-2:]), device), inputs)
                    perturbed = torch.lerp(filling, inputs, keep)
                with clock("encode"):
                    embeddings = segmenter.encode(perturbed)
                with clock("decode"):
                    probability = decode(segmenter, embeddings, prompts).sigmoid()
                    chunks.append(_evaluate(probability, mask, values))
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                if stop - start == 1:
                    raise MemoryError("One perturbed image does not fit into memory.") from error
                batch.shrink(stop - start)
                if torch.device(device).type != "cpu":
                    torch.accelerator.empty_cache()
                continue
            batch.succeeded(stop - start)
            n_forwards += len(perturbed)
            start = stop
            if progress is not None:
                progress(start, plan.n_forwards)
        scores = torch.cat(chunks).cpu().numpy()
        reference = _evaluate(baseline.probability[None], mask, values)[0].cpu().numpy()
    return ScoreTable(scores, reference, tuple(values), clock.seconds, n_forwards)


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
    shape = inputs.shape[-2:]
    if keep.shape[-2:] == shape:
        return keep
    return nn.functional.interpolate(keep, shape, mode="nearest-exact")


def _evaluate(probability: Tensor, mask: Tensor, values: Sequence[str]) -> Tensor:
    """(B, O, V)"""
    return torch.stack([VALUES[name](probability, mask) for name in values], dim=-1)
