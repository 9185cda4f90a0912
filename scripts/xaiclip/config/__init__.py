"""The configuration: checked against its schema, completed with its defaults.

The schema (config/schema.json) knows the keys, their types and defaults. Where a dataclass of the
library states them, the schema names it (``$from``), and each method states its own section
(`xaiclip.config.methods`): no default stands twice.
"""

from __future__ import annotations

import copy
import datetime
import json
import math
import re
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from xaiclip import plugins
from xaiclip.config import methods
from xaiclip.config.constraints import check_together
from xaiclip.config.names import check_text
from xaiclip.errors import ConfigError
from xaiclip.resources import shipped

if TYPE_CHECKING:
    import jsonschema

SCHEMA_PATH = shipped("config", "schema.json")


def load_schema(*, own: bool = False) -> dict[str, Any]:
    """The JSON schema of the configuration, with the sections of all methods.

    Args:
        own: leave out the methods and models of other packages, which belong to no documentation.
    """
    schema: dict[str, Any] = json.loads(SCHEMA_PATH.read_text(encoding="utf-8"))
    for part in schema["properties"].values():
        for place in part.pop("$from", ()):
            part["properties"] = {**part.get("properties", {}), **methods.properties(place)}
    every = schema["properties"]["methods"]["properties"]
    every |= {name: methods.section(one) for name, one in methods.methods(own=own).items()}
    if not own:
        models = schema["properties"]["segmenter"]["properties"]["model"]["enum"]
        models += [name for name in plugins.brought(plugins.MODELS) if name not in models]
    return schema


def complete(
    config: Mapping[str, Any],
    schema: Mapping[str, Any] | None = None,
    given: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Check a configuration and fill in its defaults.

    Args:
        config: what is to hold; plain builtins.
        schema: the JSON schema; the shipped one by default.
        given: what the user wrote of it, where ``config`` holds defaults too; all of it by
            default. A sheet that is given without a source is the source.

    Returns:
        A new dictionary that holds every key of the schema, plain builtins only, label ids
        as integers.

    Raises:
        ConfigError: an unknown key, a wrong type or value, keys that do not fit together, or one
            that nothing would read. One sentence that names the key.
    """
    schema = load_schema() if schema is None else schema
    plain = _plain(config)
    check_text(plain)
    error = _best_error(plain, schema)
    if error is not None:
        raise ConfigError(_sentence(error))
    full = _fill(plain, schema, schema)
    if isinstance(full["data"]["labels"], dict):
        full["data"]["labels"] = {int(key): name for key, name in full["data"]["labels"].items()}
    said = _plain(config if given is None else given).get("data") or {}
    data = full["data"]
    if data["sheet"] and data["source"] == "phantom" and "source" not in said:
        data["source"] = "sheet"
    check_together(full, _fill({}, schema, schema))
    return full


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
    schema = load_schema(own=True) if schema is None else schema
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
        "Overlays are merged into `config.yaml` key by key; lists are replaced. Several of them",
        "stand after one `--configfile`. Before the first job, one sentence stops the run for",
        "",
        "* a wrong key, type, number or file, a model or tag that open_clip does not know;",
        "* a key that stands twice in one section, of which YAML would keep the last in silence;",
        "* what YAML reads as something else: `0012` (the number 10), `1e-3` (text), a date;",
        "* what is set and would not be read: `data.phantom` in a study of scans,",
        "  `data.slices.test.index` under another policy, `segmenter.adapter` without a `factory`,",
        "  `localizer.pretrained` of a backbone that brings its weights along (what a method or",
        "  rule that is switched off would read may stay);",
        "* names of classes that cannot be file names (letters, digits, and one space, `_`, `-` or",
        "  `.` between words), or that differ in upper case or in space and `_` only;",
        "* paths with `$`, quotes, backticks, backslashes, `<`, `>` or control characters; with",
        "  braces, too, unless they lead to a sheet, a scan or a `factory`.",
        "",
        "This page is written by `make docs` from `schema.json` and the methods' modules.",
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
        several = leaf.get("items", {}) if "array" in leaf.get("type", ()) else {}
        for words, choice in (("One of", leaf), ("Out of", several)):
            if "enum" in choice:
                meaning += f" {words}: {', '.join(f'`{item}`' for item in choice['enum'])}."
        meaning += _limits(leaf)
        lines.append(f"| `{key}` | `{default}` | {meaning} |".replace("\n", " "))
    return "\n".join(lines) + "\n"


def _limits(leaf: Mapping[str, Any]) -> str:
    """The numbers that a key may have, in words."""
    words = {
        "minimum": "at least",
        "exclusiveMinimum": "more than",
        "maximum": "at most",
        "exclusiveMaximum": "less than",
    }
    found = [f"{word} {leaf[name]}" for name, word in words.items() if name in leaf]
    return f" {', '.join(found).capitalize()}." if found else ""


def _plain(value: Any, key: str = "") -> Any:
    """Plain builtins with string keys, as JSON has them (YAML gives integer label ids)."""
    if isinstance(value, Mapping):
        plain: dict[str, Any] = {}
        for name, item in value.items():
            if str(name) in plain:
                raise ConfigError(f"config key '{key}' names '{name}' twice: join them.")
            plain[str(name)] = _plain(item, f"{key}.{name}" if key else str(name))
        return plain
    if isinstance(value, (list, tuple)):
        return [_plain(item, key) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"config key '{key}' is {value}; it must be a finite number.")
    return value


def _best_error(config: object, schema: Mapping[str, Any]) -> jsonschema.ValidationError | None:
    """What is wrong first of all; None if nothing is."""
    import jsonschema

    def whole(validator: Any, pattern: str, instance: Any, schema: Any) -> Iterator[Any]:
        """The keyword ``pattern``, matched whole: Python's ``$`` lets a final newline through."""
        if isinstance(instance, str) and not re.fullmatch(pattern, instance):
            yield jsonschema.ValidationError(f"{instance!r} is not like {pattern}")

    draft = jsonschema.Draft202012Validator
    validator = jsonschema.validators.extend(draft, {"pattern": whole})
    return jsonschema.exceptions.best_match(validator(schema).iter_errors(config))


def _resolve(schema: Mapping[str, Any], root: Mapping[str, Any]) -> dict[str, Any]:
    """The schema with its reference (if any) followed; its own keys win."""
    if "$ref" not in schema:
        return dict(schema)
    target = root["$defs"][schema["$ref"].rsplit("/", 1)[-1]]
    return {**target, **{key: item for key, item in schema.items() if key != "$ref"}}


def _fill(value: Any, schema: Mapping[str, Any], root: Mapping[str, Any]) -> Any:
    schema = _resolve(schema, root)
    if "properties" not in schema or not isinstance(value, Mapping):
        kinds = schema.get("type", ())
        if isinstance(value, float) and "integer" in kinds and "number" not in kinds:
            return int(value)  # 64.0, which the schema takes for a whole number
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
        kinds = error.validator_value
        kinds = kinds if isinstance(kinds, list) else [kinds]
        wrong = f"{where} is {error.instance!r}"
        if "string" in kinds and isinstance(error.instance, (bool, int, float, datetime.date)):
            return f"{where} is {error.instance}, as YAML reads it; put it in quotes, as written."
        if isinstance(error.instance, str) and {"number", "integer"} & set(kinds):
            number = error.instance.strip().replace(",", ".")
            if re.fullmatch(r"[-+]?[\d.]+([eE][-+]?\d+)?", number):
                cure = f"{float(number):.10g}" if number.count(".") < 2 else "a plain number"
                return f"{wrong}, which YAML reads as text; write {cure}, without quotes."
        return f"{wrong}; it must be of type {' or '.join(kinds)}."
    if error.validator == "oneOf" and key == "data.labels":
        return f"{where} is {error.instance!r}; give 'flare22' or a mapping from label id to organ."
    return f"{where} is not valid: {error.message}."
