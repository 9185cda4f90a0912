"""The configuration: checked against its schema, completed with its defaults.

The schema (config/schema.json) is the one place that knows the keys, their types and defaults.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import jsonschema

from xaiclip.catalogue import WEIGHTS
from xaiclip.errors import ConfigError
from xaiclip.organs import BACKGROUND, FLARE22, organs_of

SCHEMA_PATH = Path(__file__).parents[2] / "config" / "schema.json"


def load_schema(path: Path = SCHEMA_PATH) -> dict[str, Any]:
    """Read a JSON schema."""
    schema: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return schema


def complete(config: Mapping[str, Any], schema: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Check a configuration and fill in its defaults.

    Args:
        config: what the user wrote; plain builtins.
        schema: the JSON schema; the shipped one by default.

    Returns:
        A new dictionary that holds every key of the schema, plain builtins only, label ids
        as integers.

    Raises:
        ConfigError: an unknown key, a wrong type or value, or keys that do not fit together.
            One sentence that names the key.
    """
    schema = load_schema() if schema is None else schema
    plain = _plain(config)
    validator = jsonschema.Draft202012Validator(schema)
    error = jsonschema.exceptions.best_match(validator.iter_errors(plain))
    if error is not None:
        raise ConfigError(_sentence(error))
    full = _fill(plain, schema, schema)
    if isinstance(full["data"]["labels"], dict):
        full["data"]["labels"] = {int(key): name for key, name in full["data"]["labels"].items()}
    _check_together(full)
    return full


def label_table(config: Mapping[str, Any]) -> dict[int, str]:
    """The table from label id to organ that the configuration asks for."""
    labels = config["data"]["labels"]
    return dict(FLARE22) if labels == "flare22" else dict(labels)


def default_config(schema: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The configuration that an empty file stands for."""
    return complete({}, schema)


def leaves(
    schema: Mapping[str, Any], root: Mapping[str, Any] | None = None, prefix: str = ""
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every key of the schema that is no section, with its schema: ``("roi.sigma", {...})``."""
    root = schema if root is None else root
    for key, child in _resolve(schema, root).get("properties", {}).items():
        resolved = _resolve(child, root)
        if "properties" in resolved:
            yield from leaves(resolved, root, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", resolved


def document(schema: Mapping[str, Any] | None = None) -> str:
    """Every key with its default and meaning, as Markdown: the content of config/README.md."""
    schema = load_schema() if schema is None else schema
    lines = [
        "# Configuration",
        "",
        "`config.yaml` is the demo and holds every key with its default. A study of your own is an",
        "overlay with the keys that differ, given on the command line:",
        "",
        "```",
        "snakemake --cores 8 --configfile config/real.yaml",
        "```",
        "",
        "Overlays are merged into `config.yaml` key by key; lists are replaced. A wrong key, type",
        "or file stops the run before its first job, in one sentence. This page is written by",
        "`make docs` from `schema.json`.",
        "",
        "| key | default | meaning |",
        "| --- | --- | --- |",
    ]
    defaults = default_config(schema)
    for key, leaf in leaves(schema):
        value: Any = defaults
        for part in key.split("."):
            value = value[part]
        default = json.dumps(value, ensure_ascii=False)
        meaning = leaf.get("description", "")
        if "enum" in leaf:
            meaning += f" One of: {', '.join(f'`{item}`' for item in leaf['enum'])}."
        lines.append(f"| `{key}` | `{default}` | {meaning} |".replace("\n", " "))
    return "\n".join(lines) + "\n"


def _plain(value: Any) -> Any:
    """Plain builtins with string keys, as JSON has them (YAML gives integer label ids)."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def _resolve(schema: Mapping[str, Any], root: Mapping[str, Any]) -> dict[str, Any]:
    """The schema with its reference (if any) followed; its own keys win."""
    if "$ref" not in schema:
        return dict(schema)
    target = root["$defs"][schema["$ref"].rsplit("/", 1)[-1]]
    return {**target, **{key: item for key, item in schema.items() if key != "$ref"}}


def _fill(value: Any, schema: Mapping[str, Any], root: Mapping[str, Any]) -> Any:
    schema = _resolve(schema, root)
    if "properties" not in schema or not isinstance(value, Mapping):
        return copy.deepcopy(value)
    full = {key: item for key, item in value.items() if key not in schema["properties"]}
    for key, child in schema["properties"].items():
        resolved = _resolve(child, root)
        if key in value:
            full[key] = _fill(value[key], resolved, root)
        elif "default" in resolved:
            full[key] = _fill(resolved["default"], resolved, root)
    return full


def _sentence(error: jsonschema.ValidationError) -> str:
    """One sentence for a person from a validator's error."""
    key = ".".join(str(part) for part in error.absolute_path)
    where = f"config key '{key}'" if key else "the config"
    if error.validator == "additionalProperties":
        known = sorted(error.schema.get("properties", {}))
        unknown = sorted(set(error.instance) - set(known))[0]
        full = f"{key}.{unknown}" if key else unknown
        near = get_close_matches(unknown, known, n=1)
        cure = f"did you mean '{near[0]}'?" if near else f"known keys are {', '.join(known)}."
        return f"config key '{full}' is unknown; {cure}"
    if error.validator == "enum":
        allowed = ", ".join(str(item) for item in error.validator_value)
        return f"{where} is {error.instance!r}; it must be one of: {allowed}."
    if error.validator == "type":
        wanted = error.validator_value
        wanted = " or ".join(wanted) if isinstance(wanted, list) else wanted
        return f"{where} is {error.instance!r}; it must be of type {wanted}."
    if error.validator == "oneOf" and key == "data.labels":
        return f"{where} is {error.instance!r}; give 'flare22' or a mapping from label id to organ."
    return f"{where} is not valid: {error.message}."


def _check_together(config: Mapping[str, Any]) -> None:
    """What a schema cannot say: keys that have to fit each other."""
    data = config["data"]
    if config["classes"][0] != BACKGROUND:
        raise ConfigError("config key 'classes' must begin with 'background'.")
    for organ in organs_of(config["classes"]):
        if organ not in label_table(config).values():
            raise ConfigError(
                f"config key 'classes' names '{organ}', which no id of 'data.labels' stands for."
            )
    if data["source"] == "sheet" and not data["sheet"]:
        raise ConfigError("config key 'data.sheet' is empty; source 'sheet' needs a sample sheet.")
    if data["percentiles"]["low"] >= data["percentiles"]["high"]:
        raise ConfigError("config key 'data.percentiles.low' must be below its 'high'.")
    if config["preprocess"]["low"] >= config["preprocess"]["high"]:
        raise ConfigError("config key 'preprocess.low' must be below 'preprocess.high'.")
    for split in ("train", "test"):
        policy = data["slices"][split]
        if policy["policy"] == "index" and policy["index"] is None:
            raise ConfigError(
                f"config key 'data.slices.{split}.index' is empty; policy 'index' needs it."
            )
    for method in config["explain"]["methods"]:
        if method not in config["methods"]:
            raise ConfigError(
                f"config key 'explain.methods' names '{method}', which 'methods' does not have."
            )
    for value in ("hard_dice", "hard_iou"):
        if value not in config["explain"]["values"]:
            raise ConfigError(
                f"config key 'explain.values' lacks '{value}', which the fidelity rests on."
            )
    if config["methods"]["occlusion"]["window"] > 512:
        raise ConfigError("config key 'methods.occlusion.window' must be at most 512 (the grid).")
    segmenter = config["segmenter"]
    model = segmenter["model"]
    if segmenter["checkpoint"] == "auto" and (segmenter["factory"] or model not in WEIGHTS):
        raise ConfigError(
            f"config key 'segmenter.checkpoint' is 'auto', but there are no published weights of "
            f"{'a factory' if segmenter['factory'] else repr(model)}, only of {', '.join(WEIGHTS)}."
        )
    # a function of the user's own may need no file
    if not segmenter["factory"] and model != "compact" and not segmenter["checkpoint"]:
        raise ConfigError(
            f"config key 'segmenter.checkpoint' is empty; model '{model}' needs a weights file."
        )
    if segmenter["checksum"] and not segmenter["checkpoint"]:
        raise ConfigError(
            "config key 'segmenter.checksum' is set, but 'segmenter.checkpoint' is empty."
        )
    if segmenter["options"] and not segmenter["factory"]:
        raise ConfigError(
            "config key 'segmenter.options' is set, but 'segmenter.factory' is empty."
        )
    channels = segmenter["adapter"]["channels"]
    if channels is not None and not set(channels) & set(organs_of(config["classes"])):
        raise ConfigError(
            "config key 'segmenter.adapter.channels' names no organ of 'classes'; it has "
            f"{', '.join(channels)}."
        )
