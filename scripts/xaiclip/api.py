"""What a notebook needs: a model, an image, boxes; and an explanation.

The workflow's stages call the same functions, so the numbers are the same for the same inputs.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from numpy.typing import ArrayLike, NDArray

from xaiclip import plugins
from xaiclip.errors import CaseError, ConfigError, named_extras
from xaiclip.explain import GRADIENT_PRECISION, differentiates
from xaiclip.images import load_found, load_image
from xaiclip.organs import SIX_CLASSES
from xaiclip.seeds import derived

if TYPE_CHECKING:
    from torch import nn

    from xaiclip.data.record import Slice
    from xaiclip.explanation import Explanation
    from xaiclip.masks.roi import Roi, RoiSettings
    from xaiclip.models.segmenters.base import Segmenter

    Model = str | nn.Module | Segmenter
    Image = NDArray[Any] | str | os.PathLike[str] | Slice
    Progress = bool | Callable[[int, int], None]

_log = logging.getLogger(__name__)

#: The config's default seed.
SEED = 2026
#: What fidelity rests on; always scored.
_ALWAYS = ("hard_dice", "hard_iou")
VALUES = ("soft_dice", "in_mask_probability", *_ALWAYS)


def explain(
    model: Model,
    image: Image,
    boxes: Mapping[str, ArrayLike | Roi | None] | str | None = None,
    method: str = "occlusion",
    *,
    rois: Mapping[str, ArrayLike | Roi] | None = None,
    guidance: str | None = None,
    values: Sequence[str] = VALUES,
    fill: str = "mean",
    slice: int | None = None,
    modality: str | None = None,
    classes: Sequence[str] = SIX_CLASSES,
    checkpoint: str | os.PathLike[str] | None = None,
    channels: Mapping[str, int | Sequence[int]] | None = None,
    batch_size: int | str = "auto",
    seed: int = SEED,
    device: str = "auto",
    precision: str = "auto",
    progress: Progress | None = None,
    **settings: Any,
) -> Explanation:
    """Explain the segmentation of one slice, for all its organs together.

    Args:
        model: a name (see `load_model`), a torch module, or a segmenter.
        image: what `load_image` takes; with ``slice`` and ``modality``. More about reading an
            image is said to `load_image`, which gives a slice.
        boxes: of each organ, XYXY in pixels of the slice: the prompt. What `locate` gave will do;
            ``"reference"`` takes those of the image's label. A network of fixed classes needs
            none.
        method: ``occlusion``, ``lime``, ``rise``, or one that an installed package brings.
        rois: regions that perturbations are restricted to, bool (H, W) of each organ; what
            `locate` gave will do.
        guidance: ``full`` (without any region; the default without ``rois``), ``roi`` (``rois``),
            ``roi_body`` (all but air), ``roi_reference`` (the image's label).
        values: value functions that are scored; a map explains the first, and soft Dice and the
            probability in the mask.
        fill: what replaces hidden pixels: ``mean``, ``zero`` or ``blur``.
        slice: axial index of a volume, counted from the feet.
        modality: ``CT`` or ``MR``, of numbers that are not 8 bits.
        classes: what the numbers of the image's label stand for; background first.
        checkpoint: the model's weights, if it is a name; ``"auto"`` fetches the published ones.
        channels: output channel of each organ, if the model is a network of fixed classes.
        batch_size: images at once; ``auto`` finds what fits.
        seed: of every random choice; it is mixed with the image's name and slice.
        device: ``auto``, ``cpu``, ``cuda``, ``mps``.
        precision: ``auto``, ``fp32``, ``bf16``, ``fp16``.
        progress: True for a bar, or what is called with the forwards done and their number.
        settings: of the method, such as ``masks=500``; its defaults are the config's.

    Raises:
        ConfigError: the arguments do not fit: no such model, method, setting, box.
        CaseError: the image cannot be read, or none of its organs be explained.
    """
    with named_extras():
        if differentiates(method):
            precision = GRADIENT_PRECISION
        segmenter = load_model(
            model, checkpoint=checkpoint, channels=channels, device=device, precision=precision
        )
        if differentiates(method) and segmenter.precision != precision:
            raise ConfigError(
                f"'{method}' needs a model that computes in {precision}, not in "
                f"{segmenter.precision}: load it with precision='{precision}'."
            )
        item = load_image(image, slice=slice, modality=modality, classes=classes)

        from xaiclip import arguments
        from xaiclip.explain.runner import Request, Run, attribute_slice, score_slice
        from xaiclip.explanation import Explanation
        from xaiclip.models.segmenters.predict import segment_slice

        plan_settings, map_settings = arguments.settings_of(method, settings)
        arguments.check_words(values, fill)
        prompts = arguments.boxes_of(segmenter, item, boxes, classes)
        regions, guidance, source = arguments.regions_of(
            item, list(prompts), rois, guidance, classes
        )
        units = arguments.units_of(item, plan_settings.get("regions"), rois, classes)
        request = Request(item.case, item.index, item.image, prompts, regions, guidance, units)
        run = Run(
            method,
            plan_settings,
            tuple(dict.fromkeys((*values, *_ALWAYS))),
            fill,
            batch_size,  # type: ignore[arg-type]
            derived(seed, "explain", method),
        )
        with arguments.Reporting(progress) as report:
            scores, skips = score_slice(segmenter, request, run, report)
        left_out = {str(skip.organ): skip.reason for skip in skips}
        for organ, reason in left_out.items():
            _log.warning("%s is left out: %s", organ, reason)
        if scores is None:
            words = "; ".join(f"{organ}: {reason}" for organ, reason in left_out.items())
            raise CaseError(f"nothing can be explained ({words}): correct the boxes or the ROIs.")
        attributions, seconds = attribute_slice(scores, map_settings)
        masks = segment_slice(segmenter, item.image, prompts)
    return Explanation(
        slice=item,
        scores=scores,
        attributions=attributions,
        masks={organ: masks[organ] for organ in scores.context.organs},
        boxes=prompts,
        regions=regions or {},
        roi_source=source,
        classes=tuple(classes),
        left_out=left_out,
        model=segmenter.name,
        device=str(segmenter.device),
        precision=segmenter.precision,
        seed=seed,
        seconds_aggregate=seconds,
    )


def load_model(
    model: Model,
    *,
    checkpoint: str | os.PathLike[str] | None = None,
    checksum: str | None = None,
    channels: Mapping[str, int | Sequence[int]] | None = None,
    device: str = "auto",
    precision: str = "auto",
    **options: Any,
) -> Segmenter:
    """A model that can be explained.

    Args:
        model: ``compact`` (shipped), ``litemedsam``, ``medsam``, ``sam_vit_b``, ``sam_vit_l``,
            ``sam_vit_h`` (with a ``checkpoint``), ``file.py:function`` of your own, or a name that
            an installed package brings to the entry points ``xaiclip.models``; a segment_anything
            ``Sam``; a torch module from images to class logits, with ``channels``; a segmenter,
            given back.
        checkpoint: the weights, of a name; ``"auto"`` takes the published ones, fetched once into
            the folder where torch.hub keeps its own.
        checksum: ``sha256:…`` or ``md5:…`` of the checkpoint.
        channels: output channel of each organ, of a network of fixed classes.
        device: see `xaiclip.device.choose_device`.
        precision: see `xaiclip.device.choose_precision`.
        options: of a ``Sam``, the arguments of `SamSegmenter`; of a module, those of
            `FixedClassSegmenter`; of a function, its own.

    Raises:
        ConfigError: no such model; its weights are missing, damaged or of another model; options
            that it does not take.
    """
    from torch import nn

    from xaiclip.device import choose_device, choose_precision
    from xaiclip.models.segmenters.base import Segmenter

    weights = {"checkpoint": str(checkpoint) if checkpoint else None, "checksum": checksum}
    if isinstance(model, str):
        if weights["checkpoint"] == "auto":
            weights = _published_weights(model, checksum)
        return _named_model(model, weights, channels, device, precision, options)
    if checkpoint or checksum:
        raise ConfigError(
            "checkpoint belongs to a model's name; a model that is given has its weights: take one "
            "of the two out."
        )
    where = choose_device(device)
    how = choose_precision(where, precision)
    if isinstance(model, nn.Module):
        return _wrapped(model, channels, {"device": where, "precision": how, **options})
    if channels or options:
        given = ", ".join([*(["channels"] if channels else []), *options])
        raise ConfigError(f"a segmenter takes no {given}: it was given as it is.")
    if not isinstance(model, Segmenter):
        raise ConfigError(
            f"the model is of type {type(model).__name__}; give a name, a torch module, or a "
            "segmenter (with name, input_size, device, precision, prepare, encode, decode)."
        )
    return model


def locate(
    image: Image,
    localizer: str | os.PathLike[str] | Any = "compact",
    *,
    settings: RoiSettings | None = None,
    device: str = "auto",
    **reading: Any,
) -> dict[str, Roi]:
    """Where the localizer finds the organs of a slice: the mask and the box of each that it finds.

    Args:
        image: what `load_image` takes, with its arguments in ``reading``.
        localizer: ``compact``, the one that is shipped (trained on phantoms; no clinical model);
            the .safetensors of a study's; a loaded `Localizer`.
        settings: how a probability map becomes a region; the config's by default.
        device: where it runs.

    Raises:
        ConfigError: no such localizer, or its extra is not installed.
    """
    with named_extras():
        from xaiclip.localizer.locating import Locator

        locator = localizer if isinstance(localizer, Locator) else Locator(localizer, device)
        found = locator.rois(load_image(image, **reading), settings)
    return {organ: roi for organ, roi in found.items() if roi.box is not None}


def find_slice(
    image: Image,
    organs: Sequence[str] | None = None,
    localizer: str | os.PathLike[str] | Any = "compact",
    *,
    device: str = "auto",
    **reading: Any,
) -> Slice:
    """The slice of a volume in which the localizer finds the most of some organs.

    `xaiclip.data.found.most_shown` says what is more. Of a picture or an array, the slice it is.

    Args:
        image: what `load_image` takes, with its arguments in ``reading`` but ``slice``, ``label``.
        organs: those that are wanted; None: all that the localizer knows.
        localizer: as of `locate`.
        device: where it runs.

    Raises:
        ConfigError: no such localizer, or one that does not know an organ.
        CaseError: it cannot be read, or none of the organs is found.
    """
    if not isinstance(image, str | os.PathLike):
        return load_image(image, **reading)
    with named_extras():
        from xaiclip.localizer.locating import Locator

        locator = localizer if isinstance(localizer, Locator) else Locator(localizer, device)
    known = locator.classes[1:]
    wanted = list(known if organs is None else organs)
    if unknown := [organ for organ in wanted if organ not in known]:
        raise ConfigError(f"the localizer knows no {unknown[0]}; it knows {', '.join(known)}.")
    return load_found(image, lambda planes: locator.find(planes, wanted), **reading)


def _published_weights(model: str, checksum: str | None) -> dict[str, Any]:
    """The published weights of a model, fetched unless they are here."""
    from pathlib import Path

    import torch

    from xaiclip.published.catalogue import WEIGHTS, get

    if model not in WEIGHTS:
        raise ConfigError(
            f"checkpoint is 'auto', but there are no published weights of '{model}', only of "
            f"{', '.join(WEIGHTS)}."
        )
    path = Path(torch.hub.get_dir(), "checkpoints", WEIGHTS[model].name)
    get(WEIGHTS[model], path)
    return {"checkpoint": str(path), "checksum": checksum or WEIGHTS[model].checksum}


def _named_model(
    model: str,
    weights: dict[str, Any],
    channels: Mapping[str, int | Sequence[int]] | None,
    device: str,
    precision: str,
    options: dict[str, Any],
) -> Segmenter:
    from xaiclip.models.segmenters.loading import load_segmenter

    section: dict[str, Any] = {"model": model, **weights}
    own = ".py:" in model or model in plugins.brought(plugins.MODELS)
    if own:
        section |= {"options": options, "adapter": {"channels": channels}}
        if ".py:" in model:
            section |= {"model": None, "factory": model}
    elif channels:
        raise ConfigError(f"model '{model}' is told by boxes what to segment: take channels out.")
    elif unknown := sorted(set(options) - {"attention"}):
        raise ConfigError(f"model '{model}' takes no {', '.join(unknown)}: take it out.")
    else:
        section |= options
    return load_segmenter(section, device, precision)


def _wrapped(
    module: nn.Module,
    channels: Mapping[str, int | Sequence[int]] | None,
    arguments: dict[str, Any],
) -> Segmenter:
    """A torch module as a segmenter."""
    from segment_anything.modeling import Sam

    from xaiclip.models.segmenters.fixed import FixedClassSegmenter
    from xaiclip.models.segmenters.sam import SamSegmenter

    name = arguments.pop("name", type(module).__name__)
    try:
        if isinstance(module, Sam):
            if channels:
                raise ConfigError("a Sam is told by boxes what to segment: take channels out.")
            arguments.setdefault("stock", True)
            return SamSegmenter(module, name, **arguments)
        if not channels:
            raise ConfigError(
                "a plain network does not say which organ is which: give channels, such as "
                "channels={'liver': 1, 'spleen': 3}."
            )
        return FixedClassSegmenter(module, channels, name=name, **arguments)
    except TypeError as error:
        raise ConfigError(f"the options do not fit the model ({error}): correct them.") from error
