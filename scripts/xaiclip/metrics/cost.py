"""Floating-point operations, counted by ptflops with both of its backends.

The ``pytorch`` backend hooks modules: it is what the paper used, and it misses matrix products
written as ``a @ b``, which are all of SAM's attention. The ``aten`` backend watches the
operations themselves: it is the full count. Both count multiply-accumulates: 1 MAC = 2 FLOPs.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from ptflops import get_model_complexity_info
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from xaiclip.localizer.model import SIZE, predict
from xaiclip.models.segmenters.base import networks_of

if TYPE_CHECKING:
    from xaiclip.localizer.model import Localizer
    from xaiclip.models.segmenters.base import Prompts, Segmenter


@dataclass(frozen=True)
class Gflops:
    """10⁹ floating-point operations: as ptflops' ``pytorch`` backend sees them, and in total."""

    ptflops: float
    total: float

    def __add__(self, other: Gflops) -> Gflops:
        return Gflops(self.ptflops + other.ptflops, self.total + other.total)

    def __mul__(self, times: float) -> Gflops:
        return Gflops(self.ptflops * times, self.total * times)

    def columns(self) -> dict[str, float]:
        """As columns of ``explanations.parquet``."""
        return {"gflops_ptflops": self.ptflops, "gflops_total": self.total}


@dataclass(frozen=True)
class SegmenterCost:
    """One image through the encoder, and its embedding through the decoder for all prompts."""

    encode: Gflops
    decode: Gflops

    @property
    def forward(self) -> Gflops:
        """One forward of the engine."""
        return self.encode + self.decode


def measure(function: Callable[[Any], Any], sample: Any, modules: Iterable[nn.Module]) -> Gflops:
    """Count the operations of ``function(sample)``, all images of the sample together.

    Args:
        sample: one argument, on a real device (tensors on ``meta`` take other paths through
            PyTorch and are miscounted).
        modules: the networks that the function runs, which the ``pytorch`` backend hooks; they
            are left in evaluation mode.

    Raises:
        RuntimeError: the function failed under ptflops.
    """
    # ptflops would count a module within another one twice
    roots = list(dict.fromkeys(modules))
    inner = {child for root in roots for child in root.modules() if child is not root}
    calls = {
        "pytorch": _Call(function, [root for root in roots if root not in inner]),
        # without children, the aten backend has nothing on which to leave its hooks
        "aten": _Call(_decomposed(function)),
    }
    counts = {}
    with torch.no_grad(), _plain_attention():
        for backend, call in calls.items():
            macs, _ = get_model_complexity_info(
                call,
                (1,),
                # the pytorch backend divides what modules do by the length of its input, and not
                # what functions do: in a tuple of one, both are those of the whole sample
                input_constructor=lambda _: (sample,),
                backend=backend,
                as_strings=False,
                print_per_layer_stat=False,
                ost=io.StringIO(),
            )
            if macs is None:
                raise RuntimeError(f"ptflops' {backend} backend could not count the operations.")
            counts[backend] = 2 * float(macs) / 1e9
    return Gflops(ptflops=counts["pytorch"], total=counts["aten"])


def segmenter_cost(segmenter: Segmenter, prompts: Prompts) -> SegmenterCost:
    """Count one encode and one decode of as many organs as ``prompts`` has."""
    # any image will do: the count depends on shapes alone; a ramp survives min–max scaling
    ramp = np.tile(np.arange(256, dtype=np.uint8), (256, 1))
    inputs = segmenter.prepare(ramp)[None]
    modules = networks_of(segmenter).values()
    with torch.no_grad():
        embeddings = segmenter.encode(inputs)
    return SegmenterCost(
        encode=measure(segmenter.encode, inputs, modules),
        decode=measure(lambda one: segmenter.decode(one, prompts), embeddings, modules),
    )


def localizer_cost(localizer: Localizer) -> Gflops:
    """Count what `xaiclip.localizer.model.predict` does for one slice: four forwards, each with the
    prompts anew."""
    slice_ = np.zeros((1, SIZE, SIZE), np.uint8)
    return measure(lambda images: predict(localizer, images), slice_, [localizer])


class _Call(nn.Module):
    """A function as a module, for ptflops."""

    def __init__(self, function: Callable[[Any], Any], modules: Iterable[nn.Module] = ()) -> None:
        super().__init__()
        # in a tuple: a function that is itself a module must not be registered a second time
        self.call = (function,)
        self.networks = nn.ModuleList(modules)

    def forward(self, sample: tuple[Any]) -> Any:
        return self.call[0](*sample)


def _decomposed(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def call(sample: Any) -> Any:
        with _Decompose():
            return function(sample)

    return call


class _Decompose(TorchDispatchMode):
    """Break composite operations up before ptflops sees them.

    Under inference mode PyTorch dispatches ``linear``, ``einsum`` and others whole, and ptflops
    would take them for free.
    """

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        with self:
            result = func.decompose(*args, **kwargs)
        return func(*args, **kwargs) if result is NotImplemented else result


@contextmanager
def _plain_attention() -> Iterator[None]:
    """Turn off the fused attention kernels: ptflops takes them for free, too."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
