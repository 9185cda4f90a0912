"""Weights from files: tensors and nothing else, all of them, and only those that fit."""

from __future__ import annotations

import logging
import pickle
import zipfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from xaiclip.errors import ConfigError
from xaiclip.files import check_kind, verify

log = logging.getLogger(__name__)

#: Bytes of a weights file; the largest model that this project names has 2.6 GB.
MAX_BYTES = 1 << 36


@contextmanager
def shapes_only() -> Iterator[None]:
    """Within this, networks are made without values and without memory for them."""
    with torch.device("meta"), _Unfilled():
        yield


class _Unfilled(TorchFunctionMode):
    """Leaves out what fills tensors: for ``meta`` that is written in Python, whose first call loads
    the compiler, in more time than a small model takes to load.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        if func in (torch.Tensor.mul, torch.Tensor.__rmul__) and not torch.is_tensor(args[1]):
            return args[0]
        return (torch.empty if func is torch.randn else func)(*args, **kwargs)


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a weights file by name, on the CPU.

    Reads safetensors and torch files; the latter only as far as tensors go (a pickle can run any
    code). A dictionary nested under ``model`` or ``state_dict`` is unpacked and the prefix
    ``module.`` taken off, as fine-tuned files have them.

    Raises:
        ConfigError: missing, no regular file, empty, a web page, damaged, with pickled objects or
            TorchScript code, or without tensors.
    """
    check_weights(path)
    if is_torchscript(path):
        raise ConfigError(
            f"{path} is a TorchScript archive, which runs code of its own while it is opened: "
            "save its weights as safetensors on a machine that may run it."
        )
    try:
        if path.suffix == ".safetensors":
            content: Any = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        unsafe = "Unsupported global" in str(error)
        reason = (
            "holds pickled objects besides tensors, which could run any code; save its state_dict"
            if unsafe
            else "is damaged or no weights file: fetch it again"
        )
        raise ConfigError(f"{path} {reason}.") from None
    except Exception as error:  # a damaged pickle can raise anything
        log.debug("%s", error)
        raise ConfigError(f"{path} is damaged or no weights file: fetch it again.") from None
    for key in ("model", "state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    tensors = (
        {str(k).removeprefix("module."): v for k, v in content.items() if isinstance(v, Tensor)}
        if isinstance(content, Mapping)
        else {}
    )
    if not tensors:
        raise ConfigError(f"{path} holds no tensors by name: save the model's state_dict.")
    return tensors


def fill(module: nn.Module, weights: Mapping[str, Tensor], path: Path) -> None:
    """Put weights into a model (built on the meta device or not), in the model's own types.

    Raises:
        ConfigError: a tensor is missing, unexpected, of another shape or kind of number, or not
            finite; names them. Or all of them are zero.
    """
    wanted = module.state_dict()
    if not wanted.keys() & weights.keys():
        raise ConfigError(f"{path} holds no weights of this model: it belongs to another one.")
    both = [name for name in wanted if name in weights]
    for what, names in (
        ("lacks", [name for name in wanted if name not in weights]),
        ("holds unexpected", [name for name in weights if name not in wanted]),
        ("holds, in another shape,", [n for n in both if wanted[n].shape != weights[n].shape]),
        (
            "holds, as another kind of number,",
            [n for n in both if wanted[n].is_floating_point() != weights[n].is_floating_point()],
        ),
    ):
        _refuse(names, f"{path} {what}", "it belongs to another model or size")
    own = {name: weights[name].to(value.dtype) for name, value in wanted.items()}
    check_values(own, path)
    unreal = any(value.is_meta for value in wanted.values())
    module.load_state_dict(own, assign=unreal)


def check_values(weights: Mapping[str, Tensor], path: Path) -> None:
    """Weights are finite, and something.

    Raises:
        ConfigError: names those that are not.
    """
    unfit = [name for name, value in weights.items() if not bool(torch.isfinite(value).all())]
    _refuse(unfit, f"{path} holds NaN or infinity in", "train or fetch it again")
    if not any(bool(value.any()) for value in weights.values()):
        raise ConfigError(f"{path} holds nothing but zeros: train or fetch it again.")


def _refuse(names: list[str], beginning: str, cure: str) -> None:
    if names:
        more = f" and {len(names) - 4} more" if len(names) > 4 else ""
        shown = ", ".join(f"{name!r}"[1:-1][:100] for name in names[:4])
        raise ConfigError(f"{beginning} {shown}{more}: {cure}.")


def check_weights(path: Path) -> None:
    """Refuse what is plainly no weights file, before it is read or its checksum made.

    Raises:
        ConfigError: see `check_kind`; or larger than `MAX_BYTES`.
    """
    check_kind(path, "weights file")
    if path.stat().st_size > MAX_BYTES:
        raise ConfigError(f"{path} has more than {MAX_BYTES >> 30} GiB: it is no weights file.")


def check_size(module: nn.Module, path: Path) -> None:
    """A file must be large enough for the model's numbers (in half precision at least).

    With a module on the meta device that is known before any memory is taken.

    Raises:
        ConfigError: it is smaller: cut off, or of a smaller model.
    """
    least = 2 * sum(value.numel() for value in module.state_dict().values())
    check_weights(path)
    if path.stat().st_size < least:
        raise ConfigError(
            f"{path} has {path.stat().st_size / 1e6:.1f} MB, but the model's weights take "
            f"{least / 1e6:.1f} MB at least: it is cut off or belongs to another model."
        )


def check_sums(folder: Path, names: Collection[str | None]) -> None:
    """Where a folder holds ``SHA256SUMS``, these files must be as it says.

    Raises:
        ConfigError: a file differs.
    """
    sums = folder / "SHA256SUMS"
    if sums.is_file():
        for line in sums.read_text(encoding="utf-8").splitlines():
            wanted, _, name = line.partition("  ")
            if name in names:
                verify(folder / name, f"sha256:{wanted}")


def is_torchscript(path: Path) -> bool:
    """Whether a file is a TorchScript archive, as OpenAI published CLIP."""
    if not path.is_file():  # looking for the end of a device would never end
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            return any(
                name.split("/", 1)[-1] == "constants.pkl" or "/code/" in name
                for name in archive.namelist()
            )
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return False
