"""Gradients of the scores: for methods that differentiate the model instead of perturbing.

A method that asks for gradients offers ``gradient(question) -> Tensor`` in the place of ``plans``:
it hands the question to captum and gives back one map. The loop over targets and values, the batch
size, the clock and the counts are here. Models compute in float32 for it: half precision loses what
a single pixel adds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Literal, Protocol

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from xaiclip.clock import Clock
from xaiclip.device import free_cache, out_of_memory
from xaiclip.errors import CaseError, ConfigError
from xaiclip.explain.attribution import GRID, Attribution
from xaiclip.explain.engine import BatchSize, fill_image
from xaiclip.explain.plan import Context

if TYPE_CHECKING:
    from xaiclip.targets import Scorer


@dataclass(frozen=True, eq=False)
class Gradients:
    """What a gradient method got from the model, for one slice.

    Attributes:
        maps: float32 (T, V, h, w), over the whole slice at a resolution of the model's own, the
            input's channels added up; positive = the pixel supports the score.
        values: names of the V value functions, those that are explained.
        seconds: by phase, and ``total``.
        n_forwards, n_backwards, n_backwards_to_input: images that went through the model; gradients
            of an image that left the scores, and those of them that went as far as the image.
    """

    maps: NDArray[np.float32]
    values: tuple[str, ...]
    seconds: dict[str, float]
    n_forwards: int
    n_backwards: int
    n_backwards_to_input: int

    def of(self, values: Sequence[str]) -> Gradients:
        """Those of some of the values."""
        maps = self.maps[:, [self.values.index(name) for name in values]]
        return replace(self, maps=maps, values=tuple(values))


@dataclass(frozen=True, eq=False)
class Question:
    """One score of one slice, as captum wants it.

    Attributes:
        score: images (B, C, h, w) → the score (B,); differentiable.
        inputs: float32 (1, C, h, w), the unperturbed slice.
        baseline: float32 (1, C, h, w), what ``explain.fill`` puts in the place of every pixel.
        batch: images that may go through the model at once.
        context: the slice, with the method's settings.
        scorer: where layers are found (`layer`), and maps of layers are placed.
    """

    score: Callable[[Tensor], Tensor]
    inputs: Tensor
    baseline: Tensor
    batch: int
    context: Context
    scorer: Scorer


class GradientMethod(Protocol):
    """What the module of a gradient method offers."""

    PlanSettings: type[Any]

    @staticmethod
    def gradient(question: Question) -> Tensor:
        """One map: float32 (1, C, h, w); what it holds of each channel is added up."""
        ...

    @staticmethod
    def aggregate(gradients: Gradients, context: Context) -> list[Attribution]:
        """The maps of every organ, variant and explained value."""
        ...


def differentiate(
    explainer: GradientMethod,
    scorer: Scorer,
    context: Context,
    fill: str = "mean",
    batch_size: int | Literal["auto"] | BatchSize = "auto",
    *,
    progress: Callable[[int, int], None] | None = None,
) -> Gradients:
    """Ask a gradient method about every target and explained value.

    Every question draws the same random numbers, so that a map does not hang on what else is asked.

    Args:
        explainer: the method.
        scorer: what is explained, of which slice.
        context: the same slice.
        fill, batch_size: as for `engine.score`.
        progress: called with the maps done and their number, after each.

    Raises:
        CaseError: the model gives no gradients.
        ConfigError: an explained value has none, or a layer is wrong.
        MemoryError: not even one image at a time fits.
    """
    for name in context.explained:
        if name in scorer.flat:
            raise ConfigError(
                f"'{name}' has no gradient: take it from the front of 'explain.values', "
                "or the gradient methods from 'explain.methods'."
            )
    inputs = scorer.inputs[None]
    clock = Clock(scorer.device)
    batch = BatchSize.of(batch_size, scorer.device, max(inputs.shape[-2:]))
    before = scorer.n_forwards, scorer.n_backwards, scorer.n_backwards_to_input
    baseline = fill_image(fill, scorer.inputs).expand_as(scorer.inputs)[None].contiguous()
    rows: list[list[NDArray[np.float32]]] = []
    with clock("total"):
        for target in range(len(scorer.targets)):
            rows.append([])
            for name in context.explained:
                score = _score_of(scorer, clock, target, scorer.values.index(name))
                question = Question(score, inputs, baseline, batch.value, context, scorer)
                found = _asked(explainer, question, batch)
                rows[-1].append(found.detach().sum(1)[0].float().cpu().numpy())
                if progress is not None:
                    done = target * len(context.explained) + len(rows[-1])
                    progress(done, len(scorer.targets) * len(context.explained))
    forward = clock.seconds.get("encode", 0.0) + clock.seconds.get("decode", 0.0)
    return Gradients(
        np.array(rows, np.float32),
        context.explained,
        {**clock.seconds, "backward": clock.seconds["total"] - forward},
        scorer.n_forwards - before[0],
        scorer.n_backwards - before[1],
        scorer.n_backwards_to_input - before[2],
    )


def _score_of(scorer: Scorer, clock: Clock, t: int, v: int) -> Callable[[Tensor], Tensor]:
    def score(images: Tensor) -> Tensor:
        scores = scorer(images, clock)
        if torch.is_grad_enabled() and not scores.requires_grad:
            raise CaseError(
                "the model gives no gradients (it may switch them off by itself): explain it by "
                "perturbation."
            )
        return scores[:, t, v]

    return score


def _asked(explainer: GradientMethod, question: Question, batch: BatchSize) -> Tensor:
    """One map; from the start with half the batch where memory runs out."""
    scorer = question.scorer
    counts = scorer.n_forwards, scorer.n_backwards, scorer.n_backwards_to_input
    while True:
        size, found = batch.value, None
        try:
            with _seeded(question.context.seed, scorer.device), torch.inference_mode(False):
                found = explainer.gradient(replace(question, batch=size))
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            if size == 1:
                raise MemoryError("The gradient of one image does not fit into memory.") from error
        if found is None:  # out here the exception is gone, and holds nothing any more
            batch.shrink(size)
            scorer.n_forwards, scorer.n_backwards, scorer.n_backwards_to_input = counts
            free_cache(scorer.device)
            continue
        batch.succeeded(size)
        return found


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """captum draws from the global generators of NumPy and torch: seed them, and put them back."""
    state = np.random.get_state()  # noqa: NPY002
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            np.random.seed(seed % 2**32)  # noqa: NPY002
            torch.manual_seed(seed)
            yield
    finally:
        np.random.set_state(state)  # noqa: NPY002


def layer(question: Question, name: str | None) -> tuple[str, nn.Module]:
    """The name and the module of a layer of the model; without a name its own choice.

    Raises:
        ConfigError: there is no such layer, or the model has no choice; names near ones.
    """
    layers = question.scorer.layers()
    name = name or question.scorer.layer
    if name in layers:
        return name, layers[name]
    near = get_close_matches(name or "", layers, n=3, cutoff=0.5) or list(layers)[-3:]
    words = f"near ones are {', '.join(near)}" if near else "the model shows no layers"
    what = f"the model has no layer '{name}'" if name else "this model needs the name of a layer"
    raise ConfigError(f"config key 'methods.grad_cam.layer': {what}; {words}.")


#: What a variant makes of a raw map.
Change = Callable[[NDArray[np.float32]], NDArray[np.float32]]
SIGNS: dict[str, Change] = {"signed": np.positive, "absolute": np.abs}


def attributions(
    gradients: Gradients, context: Context, variants: dict[str, Change]
) -> list[Attribution]:
    """Maps on the canonical grid, NaN outside the organ's ROI: a variant is a function of the raw.

    The first variant is the primary one. Where the model sees more pixels than the grid has, a
    pixel of the map is the mean of those that it covers.
    """
    found = []
    for position, (name, change) in enumerate(variants.items()):
        maps = np.stack([[_canonical(change(one)) for one in of] for of in gradients.maps])
        maps = np.where(context.domains[:, None], maps, np.float32(np.nan))
        found += context.attributions(name, [], maps, primary=position == 0)
    return found


def _canonical(raw: NDArray[np.float32]) -> NDArray[np.float32]:
    shrinks = max(raw.shape) > GRID
    return np.asarray(
        cv2.resize(raw, (GRID, GRID), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    )
