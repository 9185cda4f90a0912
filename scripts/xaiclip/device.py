"""Where models run, in which precision, with how many threads, from which seed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import TypeVar

import torch
from torch import Tensor

from xaiclip.errors import ConfigError

Result = TypeVar("Result")

PRECISIONS: dict[str, torch.dtype] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}


def choose_device(name: str = "auto") -> torch.device:
    """``auto`` takes CUDA, then MPS, then the CPU; ``cuda:1`` and the like are fine too.

    Raises:
        ConfigError: no such device here.
    """
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if name == "auto":
        return torch.device("cuda" if cuda else "mps" if mps else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"device '{name}' is unknown: use auto, cpu, cuda or mps.") from None
    here = {"cpu": True, "cuda": cuda, "mps": mps}.get(device.type, False)
    if not here or (device.index or 0) >= max(torch.cuda.device_count(), 1):
        raise ConfigError(f"device '{name}' is not available on this machine: use auto or cpu.")
    return device


def choose_precision(device: torch.device | str, name: str = "auto") -> str:
    """``auto`` is fp32 on a CPU, bf16 on MPS and on CUDA that has it, else fp16.

    Raises:
        ConfigError: unknown precision, or one that the device cannot do.
    """
    kind = torch.device(device).type
    if name == "auto":
        if kind == "cuda":
            return "bf16" if torch.cuda.is_bf16_supported() else "fp16"
        return "bf16" if kind == "mps" else "fp32"
    if name not in PRECISIONS:
        raise ConfigError(f"precision '{name}' is unknown: use auto, {', '.join(PRECISIONS)}.")
    if name == "fp16" and kind != "cuda":
        raise ConfigError(f"precision 'fp16' needs CUDA; on {kind} use fp32 or bf16.")
    return name


def autocast(device: torch.device | str, precision: str) -> AbstractContextManager[object]:
    """The context in which a model computes in ``precision``.

    fp32 switches autocast off, and on CUDA the rounding of convolutions to TF32, which PyTorch does
    unasked; matrix products it rounds only for who asks
    (``torch.set_float32_matmul_precision``).
    """
    kind = torch.device(device).type
    if precision != "fp32":
        return torch.autocast(kind, dtype=PRECISIONS[precision])
    if kind == "cuda":
        return _unrounded()
    return torch.autocast(kind, enabled=False) if kind != "mps" else nullcontext()


@contextmanager
def _unrounded() -> Iterator[None]:
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        with torch.autocast("cuda", enabled=False):
            yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def bring(tensor: Tensor, device: torch.device | str) -> Tensor:
    """A tensor of the CPU on ``device``; CUDA goes on with what is queued meanwhile.

    The tensor may be changed or freed at once; on MPS it may not, so there the copy is waited for.
    """
    return tensor.to(device, non_blocking=torch.device(device).type == "cuda")


def free_cache(device: torch.device | str) -> None:
    """Hand back the memory that PyTorch keeps of ``device`` for later."""
    kind = torch.device(device).type
    if kind == "cuda":
        torch.cuda.empty_cache()
    elif kind == "mps":
        torch.mps.empty_cache()


def out_of_memory(error: BaseException) -> bool:
    """Whether a device, or the machine, had no memory left."""
    # CUDA has its own class; the CPU's allocator and MPS only a message
    return isinstance(error, MemoryError | torch.cuda.OutOfMemoryError) or any(
        text in str(error) for text in ("out of memory", "not enough memory", "can't allocate")
    )


def in_batches(
    function: Callable[[Tensor], Result], inputs: Tensor, batch_size: int
) -> list[Result]:
    """``function`` of ``inputs``, ``batch_size`` of them at a time, and half as many when memory
    runs out.

    Raises:
        MemoryError: not even one fits.
    """
    results: list[Result] = []
    start = 0
    while start < len(inputs):
        part = inputs[start : start + batch_size]
        try:
            results.append(function(part))
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            if len(part) == 1:
                raise MemoryError("One image does not fit into memory.") from error
            batch_size = len(part) // 2
            continue
        start += len(part)
    return results


def set_threads(number: int) -> None:
    """Let torch compute with ``number`` threads (at least 1), one operation after the other."""
    torch.set_num_threads(max(1, number))
    with suppress(RuntimeError):  # it can be said once only, and before any work
        torch.set_num_interop_threads(1)
