"""From the configuration to a `Segmenter`: find, check and load weights."""

from __future__ import annotations

import json
import logging
import os
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from segment_anything import sam_model_registry
from segment_anything.modeling import Sam
from torch import Tensor, nn

from xaiclip.catalogue import WEIGHTS
from xaiclip.device import choose_device, choose_precision
from xaiclip.errors import ConfigError
from xaiclip.files import check_kind, digest, verify
from xaiclip.segmenters.base import Segmenter
from xaiclip.segmenters.compact import build
from xaiclip.segmenters.own import call_factory
from xaiclip.segmenters.sam import SamSegmenter

log = logging.getLogger(__name__)

#: The shipped weights.
COMPACT = Path(__file__).parents[3] / "resources" / "compact"

#: Model name → builder of the untrained Sam. MedSAM is SAM's ViT-B with other weights.
BUILDERS: dict[str, Callable[[], Sam]] = {
    "medsam": sam_model_registry["vit_b"],
    "sam_vit_b": sam_model_registry["vit_b"],
    "sam_vit_l": sam_model_registry["vit_l"],
    "sam_vit_h": sam_model_registry["vit_h"],
}

MEDSAM_MD5 = WEIGHTS["medsam"].checksum.removeprefix("md5:")


def load_segmenter(
    settings: Mapping[str, Any], device: str = "auto", precision: str = "auto"
) -> Segmenter:
    """The segmenter that the ``segmenter`` section of the configuration asks for.

    Args:
        settings: ``model``: ``compact``, ``medsam``, ``sam_vit_b``, ``sam_vit_l``, ``sam_vit_h``.
            ``factory`` (optional): ``file.py:function`` of the user's own in place of ``model``,
            with ``options`` and ``adapter``; see `call_factory`.
            ``checkpoint``: the weights; for ``compact`` a folder in place of the shipped one.
            ``attention`` (optional): ``fast`` or ``stock``, see `SamSegmenter`.
            ``checksum`` (optional): ``sha256:…`` or ``md5:…`` of the checkpoint.
        device: see `choose_device`.
        precision: see `choose_precision`.

    Raises:
        ConfigError: unknown model; weights missing, damaged, unsafe or not of this model.
    """
    model, checkpoint = settings.get("model"), settings.get("checkpoint")
    where = choose_device(device)
    how = choose_precision(where, precision)
    if settings.get("factory"):
        if checkpoint and settings.get("checksum"):
            verify(Path(checkpoint), settings["checksum"])
        return call_factory(settings, where, how)
    if model == "compact":
        sam = load_compact(Path(checkpoint) if checkpoint else COMPACT)
    elif model not in BUILDERS:
        known = ", ".join(["compact", *BUILDERS])
        raise ConfigError(f"segmenter.model '{model}' is unknown: use {known}, or a factory.")
    elif not checkpoint:
        raise ConfigError(f"segmenter.checkpoint is empty: model '{model}' needs a weights file.")
    else:
        path = Path(checkpoint)
        if settings.get("checksum"):
            verify(path, settings["checksum"])
        elif model == "medsam" and path.is_file() and digest(path, "md5") != MEDSAM_MD5:
            log.warning("%s are not MedSAM's published weights (fine if you tuned them)", path)
        with torch.device("meta"):  # the initial values would only be overwritten
            sam = BUILDERS[model]()
        load_weights(sam, path)
        # not part of any state dict, hence still on the meta device
        sam.pixel_mean = torch.tensor([123.675, 116.28, 103.53]).view(-1, 1, 1)
        sam.pixel_std = torch.tensor([58.395, 57.12, 57.375]).view(-1, 1, 1)
    return SamSegmenter(
        sam,
        model,
        device=where,
        precision=how,
        stock=model.startswith("sam_"),
        box_masks=model == "compact",
        attention=settings.get("attention", "fast"),
    )


def load_compact(folder: Path = COMPACT) -> Sam:
    """The compact SAM of a folder with ``sam.json`` and ``sam.safetensors``.

    Where the folder holds ``SHA256SUMS``, both files must be as it says.
    """
    for name in ("sam.json", "sam.safetensors"):
        if not (folder / name).is_file():
            raise ConfigError(f"{folder / name} does not exist: run `make compact` to train it.")
    sums = folder / "SHA256SUMS"
    if sums.is_file():
        for line in sums.read_text(encoding="utf-8").splitlines():
            wanted, _, name = line.partition("  ")
            if name in ("sam.json", "sam.safetensors"):
                verify(folder / name, f"sha256:{wanted}")
    sam = build(json.loads((folder / "sam.json").read_text())["model"])
    fill(sam, read_weights(folder / "sam.safetensors"), folder / "sam.safetensors")
    return sam.eval()


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a weights file by name, on the CPU.

    Reads safetensors and torch files; the latter only as far as tensors go (a pickle can run any
    code). A dictionary nested under ``model`` or ``state_dict`` is unpacked and the prefix
    ``module.`` taken off, as fine-tuned files have them.

    Raises:
        ConfigError: missing, empty, a web page, damaged, with pickled objects, or without tensors.
    """
    check_kind(path, "weights file")
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
    except (SafetensorError, RuntimeError, EOFError, ValueError, OSError) as error:
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
        ConfigError: a tensor is missing, unexpected or of another shape; names them.
    """
    wanted = module.state_dict()
    missing = [name for name in wanted if name not in weights]
    unexpected = [name for name in weights if name not in wanted]
    shapes = [n for n in wanted if n in weights and wanted[n].shape != weights[n].shape]
    for what, names in (
        ("lacks", missing),
        ("holds unexpected", unexpected),
        ("holds, in another shape,", shapes),
    ):
        if names:
            more = f" and {len(names) - 4} more" if len(names) > 4 else ""
            raise ConfigError(
                f"{path} {what} {', '.join(names[:4])}{more}: it belongs to another model or size."
            )
    own = {name: value.to(wanted[name].dtype) for name, value in weights.items()}
    module.load_state_dict(own, assign=True)


def load_weights(module: nn.Module, path: str | os.PathLike[str]) -> nn.Module:
    """Fill a network of the user's own from a file, as safely as the project's.

    Raises:
        ConfigError: see `read_weights` and `fill`.
    """
    check_size(module, Path(path))
    fill(module, read_weights(Path(path)), Path(path))
    return module


def check_size(module: nn.Module, path: Path) -> None:
    """A file must be large enough for the model's numbers (in half precision at least).

    Raises:
        ConfigError: it is smaller: cut off, or of a smaller model.
    """
    least = 2 * sum(value.numel() for value in module.state_dict().values())
    check_kind(path, "weights file")
    if path.stat().st_size < least:
        raise ConfigError(
            f"{path} has {path.stat().st_size / 1e6:.1f} MB, but the model's weights take "
            f"{least / 1e6:.1f} MB at least: it is cut off or belongs to another model."
        )
