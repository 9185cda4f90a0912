"""A segmenter of the user's own: a function in a Python file."""

from __future__ import annotations

import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from xaiclip.errors import ConfigError
from xaiclip.models.segmenters.base import Segmenter
from xaiclip.models.segmenters.fixed import FixedClassSegmenter

#: What the project passes by itself, to factories that have parameters of these names.
GIVEN = ("checkpoint", "device", "precision")


def call_factory(settings: Mapping[str, Any], device: torch.device, precision: str) -> Segmenter:
    """Call the function that ``factory`` names, and wrap what it returns if need be.

    The function gets ``options`` as keyword arguments and, if it has parameters of these names,
    ``checkpoint`` (str or None), ``device`` (torch.device) and ``precision`` (``fp32``, ``bf16``
    or ``fp16``). It returns a `Segmenter`, or a plain module from images to class logits, which
    becomes a `FixedClassSegmenter` with the arguments in ``adapter``.

    Args:
        settings: the ``segmenter`` section: ``factory`` (``file.py:function``), ``options``,
            ``adapter``, ``checkpoint``.
        device: where the model should run.
        precision: in which it should compute.

    Raises:
        ConfigError: no such file or function, arguments that it does not take, or it returns
            something else.
    """
    factory = settings["factory"]
    where = f"segmenter.factory '{factory}'"
    file, _, name = factory.rpartition(":")
    path = Path(file)
    if not path.is_file():
        raise ConfigError(f"{where}: there is no file '{file}'; give file.py:function.")
    if path.suffix != ".py":
        raise ConfigError(f"{where}: {file} is not a Python file (.py).")
    make = getattr(_import(path, where), name, None)
    if not callable(make):
        raise ConfigError(f"{where}: {file} has no function '{name}'.")
    return call_maker(make, path.stem, settings, device, precision, where)


def call_maker(
    make: Callable[..., Any],
    name: str,
    settings: Mapping[str, Any],
    device: torch.device,
    precision: str,
    where: str,
) -> Segmenter:
    """Call a function that gives a segmenter or a plain network; see `call_factory`.

    Args:
        make: the function.
        name: of the model, for the record.
        settings, device, precision: as of `call_factory`.
        where: begins the sentence of an error.

    Raises:
        ConfigError: see `call_factory`.
    """
    arguments = _arguments(make, settings, device, precision, where)
    made = make(**arguments)
    if isinstance(made, Segmenter):
        return made
    if isinstance(made, nn.Module):
        adapter = {k: v for k, v in (settings.get("adapter") or {}).items() if v is not None}
        if not adapter.get("channels"):
            raise ConfigError(
                f"{where}: it returns a plain network, so the config key "
                "'segmenter.adapter.channels' must give the output channel of each organ."
            )
        return FixedClassSegmenter(made, name=name, device=device, precision=precision, **adapter)
    needed = ("name", "input_size", "device", "precision", "prepare", "encode", "decode")
    missing = ", ".join(one for one in needed if not hasattr(made, one))
    raise ConfigError(
        f"{where}: what it returns is no segmenter; it lacks {missing}. "
        "Return one, or a torch.nn.Module."
    )


def _import(path: Path, where: str) -> ModuleType:
    """Run the file as a module; files beside it can be imported from it."""
    folder = str(path.parent.resolve())
    if folder not in sys.path:
        sys.path.append(folder)
    spec = importlib.util.spec_from_file_location(f"_own_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up by name
    try:
        spec.loader.exec_module(module)
    except (ImportError, SyntaxError) as error:
        raise ConfigError(f"{where}: the file cannot be imported ({error}).") from error
    return module


def _arguments(
    make: Any, settings: Mapping[str, Any], device: torch.device, precision: str, where: str
) -> dict[str, Any]:
    options = dict(settings.get("options") or {})
    for taken in GIVEN:
        if taken in options:
            raise ConfigError(f"{where}: '{taken}' is given by itself; take it out of 'options'.")
    parameters = inspect.signature(make).parameters.values()
    anything = any(one.kind is one.VAR_KEYWORD for one in parameters)
    names = {one.name for one in parameters}
    given = {"checkpoint": settings.get("checkpoint"), "device": device, "precision": precision}
    options |= {key: value for key, value in given.items() if anything or key in names}
    try:
        inspect.signature(make).bind(**options)
    except TypeError as error:
        raise ConfigError(
            f"{where}: 'segmenter.options' do not fit the function ({error})."
        ) from None
    return options
