"""What the schema cannot say of a configuration: keys that fit each other, and that are read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from xaiclip import plugins
from xaiclip.config.names import check_class, check_distinct, check_path
from xaiclip.errors import ConfigError
from xaiclip.organs import BACKGROUND, FLARE22, SIX_CLASSES, organs_of
from xaiclip.published.catalogue import WEIGHTS

Config = Mapping[str, Any]

#: Side of the grid that explanations are made on, in pixels.
_GRID = 512
#: More windows would each differ from the next by a hair, and take days.
_MOST_WINDOWS = 65536


def check_together(config: Config, defaults: Config) -> None:
    """Check what hangs on several keys; ``config`` is complete.

    Raises:
        ConfigError: one sentence that names the key.
    """
    _check_names(config, defaults)
    _check_paths(config)
    _check_data(config["data"])
    _check_localizer(config)
    _check_shipped(config)
    _check_explain(config)
    _check_segmenter(config["segmenter"])
    for key, why in _unread(config):
        if value_of(config, key) != value_of(defaults, key):
            raise ConfigError(f"config key '{key}' is set, but {why}: take one of the two out.")


def label_table(config: Config) -> dict[int, str]:
    """The table from label id to organ that the configuration asks for."""
    labels = config["data"]["labels"]
    return dict(FLARE22) if labels == "flare22" else dict(labels)


def value_of(config: Config, key: str) -> Any:
    """The value of ``"roi.sigma"``."""
    value: Any = config
    for part in key.split("."):
        value = value[part]
    return value


def _unread(config: Config) -> Iterator[tuple[str, str]]:
    """Keys that nothing reads, with the reason: whoever sets one expects something else.

    What a switched-off method or rule would read is no such key; it waits to be switched on.
    """
    data, segmenter = config["data"], config["segmenter"]
    source = f"'data.source' is '{data['source']}'"
    if data["source"] != "phantom":
        yield "data.phantom.train", source
        yield "data.phantom.test", source
        yield "data.phantom.settings", source
    if data["source"] != "sheet":
        yield "data.sheet", source
    for split in ("train", "test"):
        chosen, where = data["slices"][split], f"data.slices.{split}"
        why = f"'{where}.policy' is '{chosen['policy']}'"
        if chosen["policy"] != "index":
            yield f"{where}.index", why
        if chosen["policy"] not in ("all", "found") and chosen["every"] != 1:
            yield f"{where}.every", why
        if chosen["policy"] != "found":
            yield f"{where}.count", why
    if segmenter["factory"]:
        for key in ("model", "attention"):
            yield f"segmenter.{key}", "'segmenter.factory' makes the segmenter"
        return
    if segmenter["model"] in plugins.brought(plugins.MODELS):
        yield "segmenter.attention", f"the model '{segmenter['model']}' is another package's"
        return
    for key in segmenter["adapter"]:
        yield f"segmenter.adapter.{key}", "'segmenter.factory' is empty"
    yield "segmenter.options", "'segmenter.factory' is empty"
    if not segmenter["checkpoint"]:
        yield "segmenter.checksum", "'segmenter.checkpoint' is empty"
    elif segmenter["model"] == "compact":
        yield "segmenter.checksum", "the model 'compact' brings its checksums along"


def _check_names(config: Config, defaults: Config) -> None:
    classes = config["classes"]
    if classes[0] != BACKGROUND:
        raise ConfigError("config key 'classes' must begin with 'background'.")
    for name in classes:
        check_class(name, "config key 'classes'")
    check_distinct(classes, "config key 'classes'")
    labels = label_table(config)
    for number, name in labels.items():
        check_class(name, "config key 'data.labels'")
        if number == 0 and name != BACKGROUND:
            raise ConfigError(
                f"config key 'data.labels' calls the id 0 '{name}'; it is the background's."
            )
    for organ in organs_of(classes):
        if organ not in labels.values():
            raise ConfigError(
                f"config key 'classes' names '{organ}', which no id of 'data.labels' stands for."
            )
    shown = config["figures"]["organ"]
    if shown not in organs_of(classes) and shown != defaults["figures"]["organ"]:
        raise ConfigError(
            f"config key 'figures.organ' is {shown!r}; it must be one of: "
            f"{', '.join(organs_of(classes))}."
        )
    channels = config["segmenter"]["adapter"]["channels"] or {}
    for organ in channels:
        check_class(organ, "config key 'segmenter.adapter.channels'")
    if channels and not set(channels) & set(organs_of(classes)):
        raise ConfigError(
            "config key 'segmenter.adapter.channels' names no organ of 'classes'; it has "
            f"{', '.join(channels)}."
        )
    taken: dict[int, str] = {}
    for organ, own in channels.items():
        for channel in own if isinstance(own, list) else [own]:
            if taken.setdefault(channel, organ) != organ:
                raise ConfigError(
                    f"config key 'segmenter.adapter.channels' gives channel {channel} to both "
                    f"'{taken[channel]}' and '{organ}'."
                )


def _check_paths(config: Config) -> None:
    # a scan's path may hold braces (rules/common.smk); these are files that rules declare
    places = ("data.sheet", "segmenter.factory")
    declared = ("downloads", "localizer.weights", "localizer.backbone", "localizer.pretrained")
    for key in (*places, *declared, "segmenter.checkpoint"):
        if path := value_of(config, key):
            check_path(path, f"config key '{key}'", braces=key in places)


def _check_data(data: Config) -> None:
    if data["source"] == "sheet" and not data["sheet"]:
        raise ConfigError("config key 'data.sheet' is empty; source 'sheet' needs a sample sheet.")
    if data["slices"]["train"]["policy"] == "found":
        raise ConfigError(
            "config key 'data.slices.train.policy' is 'found', but these slices train the "
            "localizer that would find: take 'all' or 'middle_labelled'."
        )
    if data["percentiles"]["low"] >= data["percentiles"]["high"]:
        raise ConfigError("config key 'data.percentiles.low' must be below its 'high'.")
    for split in ("train", "test"):
        policy = data["slices"][split]
        if policy["policy"] == "index" and policy["index"] is None:
            raise ConfigError(
                f"config key 'data.slices.{split}.index' is empty; policy 'index' needs it."
            )
    if data["source"] != "sheet" and data["labels"] != "flare22":
        for number, name in data["labels"].items():
            if FLARE22.get(number) != name:
                raise ConfigError(
                    f"config key 'data.labels' calls the id {number} '{name}', but the labels of "
                    f"source '{data['source']}' have FLARE22's ids: {FLARE22.get(number, 'none')}."
                )


def _check_localizer(config: Config) -> None:
    preprocess = config["preprocess"]
    if preprocess["low"] >= preprocess["high"]:
        raise ConfigError("config key 'preprocess.low' must be below 'preprocess.high'.")
    if preprocess["clip"] and preprocess["tiles"] * 4 > preprocess["size"]:
        raise ConfigError(
            f"config key 'preprocess.tiles' is {preprocess['tiles']}; tiles of {preprocess['size']}"
            " pixels need at least 4 of them each."
        )


def _check_shipped(config: Config) -> None:
    """The shipped localizer knows six classes, on the shipped backbone, on its own tokens."""
    localizer = config["localizer"]
    if localizer["weights"] != "compact":
        return
    other = "name another one's file, or leave 'localizer.weights' empty to train one."
    if localizer["backbone"] != "compact":
        raise ConfigError(
            "config key 'localizer.weights' is 'compact', which was trained on the backbone "
            f"'compact', not on '{localizer['backbone']}': {other}"
        )
    if tuple(config["classes"]) != SIX_CLASSES:
        raise ConfigError(
            "config key 'localizer.weights' is 'compact', which knows the classes "
            f"{', '.join(SIX_CLASSES)}, in this order: take 'classes' out, or {other}"
        )


def _check_explain(config: Config) -> None:
    explain, methods = config["explain"], config["methods"]
    for method in explain["methods"]:
        if method not in methods:
            raise ConfigError(
                f"config key 'explain.methods' names '{method}', which 'methods' does not have."
            )
    window, stride = methods["occlusion"]["window"], methods["occlusion"]["stride"]
    if stride > window:
        raise ConfigError(
            f"config key 'methods.occlusion.stride' is {stride}, more than the window ({window}): "
            "no window would cover the pixels between; make it at most the window."
        )
    steps = -(-(_GRID - window) // stride) + 1
    if steps**2 > _MOST_WINDOWS:
        raise ConfigError(
            f"config key 'methods.occlusion.stride' is {stride}, which makes {steps**2} windows; "
            f"{_MOST_WINDOWS} are the most."
        )
    lime = methods["lime"]
    if lime["min_samples"] > lime["samples"]:
        raise ConfigError(
            f"config key 'methods.lime.min_samples' is {lime['min_samples']}, more than 'samples' "
            f"({lime['samples']}): lower it."
        )
    planned = {scale for one in lime["superpixels"] for scale in _superpixels(lime, one)}
    for variant in lime["variants"] or ():
        if not planned.issuperset(_superpixels(lime, variant)):
            raise ConfigError(
                f"config key 'methods.lime.variants' names '{variant}', of which "
                f"'methods.lime.superpixels' lacks the superpixels: add it there."
            )


def _superpixels(lime: Config, name: str) -> list[Any]:
    """The superpixel maps behind a name: Felzenszwalb's by their scales."""
    return {"multiscale": lime["scales"], "felzenszwalb": [lime["scale"]]}.get(name, [name])


def _check_segmenter(segmenter: Config) -> None:
    model = segmenter["model"]
    if segmenter["checkpoint"] == "auto" and (segmenter["factory"] or model not in WEIGHTS):
        raise ConfigError(
            f"config key 'segmenter.checkpoint' is 'auto', but there are no published weights of "
            f"{'a factory' if segmenter['factory'] else repr(model)}, only of {', '.join(WEIGHTS)}."
        )
    # a function of the user's own, or of another package, may need no file
    own = segmenter["factory"] or model in plugins.brought(plugins.MODELS)
    if not own and model != "compact" and not segmenter["checkpoint"]:
        raise ConfigError(
            f"config key 'segmenter.checkpoint' is empty; model '{model}' needs a weights file, "
            "or 'auto' to fetch the published one."
        )
    adapter = segmenter["adapter"]
    for key in ("mean", "std"):
        if isinstance(adapter[key], list) and len(adapter[key]) != adapter["in_channels"]:
            raise ConfigError(
                f"config key 'segmenter.adapter.{key}' has {len(adapter[key])} numbers, but "
                f"'in_channels' is {adapter['in_channels']}."
            )
