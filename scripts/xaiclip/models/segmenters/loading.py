"""From the configuration to a `Segmenter`: find, check and load weights."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from segment_anything.build_sam import sam_model_registry
from segment_anything.modeling import Sam
from torch import nn

from xaiclip import plugins
from xaiclip.device import choose_device, choose_precision
from xaiclip.errors import ConfigError
from xaiclip.files import digest, verify
from xaiclip.models.segmenters.base import Segmenter
from xaiclip.models.segmenters.compact import CONFIG, build
from xaiclip.models.segmenters.own import call_factory, call_maker
from xaiclip.models.segmenters.sam import SamSegmenter
from xaiclip.plain import check_keys, read_json
from xaiclip.published.catalogue import WEIGHTS
from xaiclip.resources import shipped
from xaiclip.weights import (
    check_size,
    check_sums,
    check_weights,
    fill,
    read_weights,
    shapes_only,
)

log = logging.getLogger(__name__)

#: The shipped weights.
COMPACT = shipped("compact")

#: Model name → builder of the untrained Sam. MedSAM is SAM's ViT-B with other weights.
BUILDERS: dict[str, Callable[[], Sam]] = {
    "medsam": sam_model_registry["vit_b"],
    "sam_vit_b": sam_model_registry["vit_b"],
    "sam_vit_l": sam_model_registry["vit_l"],
    "sam_vit_h": sam_model_registry["vit_h"],
}

#: The model of a module of its own.
LITE = "litemedsam"

MEDSAM_MD5 = WEIGHTS["medsam"].checksum.removeprefix("md5:")


def load_segmenter(
    settings: Mapping[str, Any], device: str = "auto", precision: str = "auto"
) -> Segmenter:
    """The segmenter that the ``segmenter`` section of the configuration asks for.

    Args:
        settings: ``model``: ``compact``, ``litemedsam``, ``medsam``, ``sam_vit_b``, ``sam_vit_l``,
            ``sam_vit_h``. Or a name that an installed package brings to the entry points
            ``xaiclip.models``, of a function as ``factory`` names one.
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
    known = model in ("compact", LITE) or model in BUILDERS
    make = None if known else plugins.load(plugins.MODELS, str(model))
    if settings.get("factory") or callable(make):
        if checkpoint and settings.get("checksum"):
            check_weights(Path(checkpoint))
            verify(Path(checkpoint), settings["checksum"])
        if settings.get("factory"):
            return call_factory(settings, where, how)
        assert callable(make)
        return call_maker(make, str(model), settings, where, how, f"model '{model}'")
    more: dict[str, Any] = {}
    if model == "compact":
        sam = load_compact(Path(checkpoint) if checkpoint else COMPACT)
        more = {"box_masks": True}
    elif not known:
        names = ", ".join(["compact", LITE, *BUILDERS, *plugins.brought(plugins.MODELS)])
        raise ConfigError(f"segmenter.model '{model}' is unknown: use {names}, or a factory.")
    elif not checkpoint:
        raise ConfigError(
            f"segmenter.checkpoint is empty: model '{model}' needs a weights file, or 'auto' to "
            "fetch the published one."
        )
    else:
        path = Path(checkpoint)
        check_weights(path)
        if settings.get("checksum"):
            verify(path, settings["checksum"])
        elif model == "medsam" and digest(path, "md5") != MEDSAM_MD5:
            log.warning("%s are not MedSAM's published weights (fine if you tuned them)", path)
        sam, more = _published(str(model), path)
    return SamSegmenter(
        sam,
        str(model),
        device=where,
        precision=how,
        attention=settings.get("attention", "fast"),
        **more,
    )


def _published(model: str, path: Path) -> tuple[Sam, dict[str, Any]]:
    """A model with its weights, and what its segmenter must know of it."""
    if model == LITE:
        from xaiclip.models.segmenters import lite  # what it is built of takes seconds to import

        return lite.load(path), {"keep_aspect": True, "encode": lite.encode_lite}
    with shapes_only():  # the initial values would only be overwritten
        sam = BUILDERS[model]()
    load_weights(sam, path)
    # not part of any state dict, hence still on the meta device
    sam.pixel_mean = torch.tensor([123.675, 116.28, 103.53]).view(-1, 1, 1)
    sam.pixel_std = torch.tensor([58.395, 57.12, 57.375]).view(-1, 1, 1)
    return sam, {"stock": model.startswith("sam_")}


def load_compact(folder: Path = COMPACT) -> Sam:
    """The compact SAM of a folder with ``sam.json`` and ``sam.safetensors``.

    Where the folder holds ``SHA256SUMS``, both files must be as it says.
    """
    for name in ("sam.json", "sam.safetensors"):
        if not (folder / name).is_file():
            raise ConfigError(f"{folder / name} does not exist: run `make compact` to train it.")
    check_sums(folder, ("sam.json", "sam.safetensors"))
    path, weights = folder / "sam.json", folder / "sam.safetensors"
    config = check_keys(f"{path}: model", read_json(path).get("model"), CONFIG)
    try:
        with shapes_only():
            check_size(build(config), weights)
        sam = build(config)
    except (
        KeyError,
        TypeError,
        ValueError,
        RuntimeError,
        ArithmeticError,
        AssertionError,
    ) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{path} describes no model: run `make compact` to train it.") from error
    fill(sam, read_weights(weights), weights)
    return sam.eval()


def load_weights(module: nn.Module, path: str | os.PathLike[str]) -> nn.Module:
    """Fill a network of the user's own from a file, as safely as the project's.

    Raises:
        ConfigError: see `read_weights` and `fill`.
    """
    check_size(module, Path(path))
    fill(module, read_weights(Path(path)), Path(path))
    return module
