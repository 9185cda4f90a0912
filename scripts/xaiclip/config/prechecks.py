"""The files and names that a configuration leads to: looked at before anything is loaded.

None of this imports a model library, which would cost seconds in every look at the workflow.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from xaiclip.errors import ConfigError
from xaiclip.files import check_kind
from xaiclip.published.catalogue import pinned

#: Endings of what is a file rather than a name.
_FILES = (".pt", ".pth", ".bin", ".safetensors", ".json", ".ckpt")
#: What a factory gets without asking.
_PASSED = ("checkpoint", "device", "precision")


def check_file(path: str, key: str) -> None:
    """Refuse a weights file that is not there or plainly no data.

    Raises:
        ConfigError: one sentence that begins with the key.
    """
    if not Path(path).exists():
        raise ConfigError(f"config key '{key}': there is no file '{path}'.")
    try:
        check_kind(Path(path), "file")
    except (ConfigError, OSError) as error:
        raise ConfigError(f"config key '{key}': {error}") from None


def check_shipped(path: Path) -> None:
    """Refuse a clone from which a shipped file is gone.

    Raises:
        ConfigError: it is not there.
    """
    if not path.is_file():
        raise ConfigError(
            f"{path} is missing: restore it, or train the compact models with `make compact`."
        )


def check_phantom(settings: Iterable[str], known: Sequence[str]) -> None:
    """Refuse settings of the phantom that it does not have.

    Args:
        settings: names in the section ``data.phantom.settings``.
        known: names that the phantom has.

    Raises:
        ConfigError: names the setting.
    """
    for name in settings:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            cure = f"did you mean '{near[0]}'?" if near else f"known are {', '.join(known)}."
            raise ConfigError(f"config key 'data.phantom.settings.{name}' is unknown; {cure}")


def check_backbone(
    backbone: str, pretrained: str | None, blocks: list[int] | None, compact: Path
) -> None:
    """Refuse a backbone that could not be loaded, as far as its names and files tell.

    Args:
        backbone, pretrained, blocks: of the section ``localizer``.
        compact: folder of the shipped model.

    Raises:
        ConfigError: a file that is not there, a configuration that is none, a name or tag that
            open_clip does not know, weights that nothing would read, a block that does not exist.
    """
    key, folder = "config key 'localizer.backbone'", Path(backbone)
    alone = backbone == "compact" or folder.is_dir() or backbone.startswith("hf-hub:")
    if alone and pretrained:
        raise ConfigError(
            f"config key 'localizer.pretrained' is set, but the backbone '{backbone}' brings its "
            "weights along: take one of the two out."
        )
    if backbone.startswith("hf-hub:"):
        pinned(backbone)
        return
    if backbone == "compact" or folder.is_dir():
        model = _model_of_folder(compact if backbone == "compact" else folder, key)
    elif backbone.endswith(_FILES) or ("/" in backbone and backbone not in (_names() or ())):
        check_file(backbone, "localizer.backbone")
        model = _model_of_file(folder, key)
        _check_weights(folder.stem, pretrained)
    else:
        model = _named_model(backbone, key)
        _check_weights(backbone, pretrained)
    layers = model.get("vision_cfg", {}).get("layers")
    if blocks and isinstance(layers, int) and max(blocks) > layers:
        raise ConfigError(
            f"config key 'localizer.blocks' names block {max(blocks)}, but the backbone "
            f"'{backbone}' has {layers}."
        )


def check_factory(factory: str, options: Mapping[str, Any]) -> Path:
    """Refuse a factory whose file or function is not there, or does not take the options.

    Returns:
        The file.

    Raises:
        ConfigError: one sentence that begins with the key.
    """
    name, key = factory.rpartition(":")[2], "config key 'segmenter.factory'"
    file = Path(factory.rpartition(":")[0])
    if not file.is_file():
        raise ConfigError(f"{key}: there is no file '{file}'.")
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"), str(file))
    except (SyntaxError, UnicodeDecodeError, ValueError) as error:
        raise ConfigError(f"{key}: '{file}' is no Python ({error}).") from None
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    if name not in functions:
        # it may be made in another way, which only running the file would show
        if not re.search(rf"\b{re.escape(name)}\b", file.read_text(encoding="utf-8")):
            raise ConfigError(f"{key}: '{file}' has no function '{name}'.")
        return file
    taken = functions[name].args
    names = {one.arg for one in (*taken.args, *taken.kwonlyargs)}
    for option in options:
        if option in _PASSED or (option not in names and not taken.kwarg):
            cure = "is given by itself" if option in _PASSED else f"is none of '{name}'"
            raise ConfigError(
                f"config key 'segmenter.options': the argument '{option}' {cure}; take it out."
            )
    return file


def _check_weights(name: str, pretrained: str | None) -> None:
    key = "config key 'localizer.pretrained'"
    tags = _tags().get(name, ())
    known = ", ".join(tags) or "none known"
    if pretrained is None:
        raise ConfigError(
            f"{key} is empty; the backbone '{name}' needs a tag of open_clip ({known}) or a "
            "checkpoint file."
        )
    if Path(pretrained).exists() or pretrained.endswith(_FILES) or "/" in pretrained:
        check_file(pretrained, "localizer.pretrained")
    elif _tags() and pretrained.lower().replace("-", "_") not in tags:
        raise ConfigError(
            f"{key} is {pretrained!r}, which is neither a file nor a tag of '{name}' ({known})."
        )


def _model_of_folder(folder: Path, key: str) -> dict[str, Any]:
    for name in ("clip.json", "open_clip_config.json"):
        if (folder / name).is_file():
            model = _json(folder / name, key).get("model_cfg")
            if not isinstance(model, dict):
                raise ConfigError(f"{key}: {folder / name} lacks 'model_cfg'.")
            kinds = ("clip.safetensors",) if name == "clip.json" else ("*.safetensors", "*.bin")
            if not any(file.is_file() for kind in kinds for file in folder.glob(kind)):
                raise ConfigError(f"{key}: {folder} lacks {' or '.join(kinds)}.")
            return model
    raise ConfigError(f"{key}: {folder} holds neither clip.json nor open_clip_config.json.")


def _model_of_file(path: Path, key: str) -> dict[str, Any]:
    if path.suffix != ".json":
        raise ConfigError(f"{key}: {path} must be a JSON file; weights belong to 'pretrained'.")
    model = _json(path, key)
    for part in ("embed_dim", "vision_cfg", "text_cfg"):
        if part not in model:
            raise ConfigError(f"{key}: {path} lacks '{part}': it is no open_clip configuration.")
    return model


def _named_model(name: str, key: str) -> dict[str, Any]:
    names = _names()
    if names is None:  # not installed where Snakemake runs
        return {}
    if name.replace("/", "-") not in names:
        near = get_close_matches(name, names, n=3)
        raise ConfigError(
            f"{key} is {name!r}, which is neither a file or folder nor a model of open_clip"
            f"{'; did you mean ' + ' or '.join(near) + '?' if near else '.'}"
        )
    return _json(names[name.replace("/", "-")], key)


def _json(path: Path, key: str) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{key}: {path} is no JSON ({error}).") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{key}: {path} holds no configuration.")
    return content


@cache
def _names() -> dict[str, Path] | None:
    """The models that open_clip has, with their configurations; None without open_clip."""
    folder = _package()
    if folder is None:
        return None
    return {path.stem: path for path in (folder / "model_configs").glob("*.json")}


def _package() -> Path | None:
    spec = find_spec("open_clip")
    return Path(spec.origin).parent if spec and spec.origin else None


@cache
def _tags() -> dict[str, list[str]]:
    """The tags of open_clip's models, from the text of its table; empty if it has another form."""
    folder = _package()
    path = folder and folder / "pretrained.py"
    if not path or not path.is_file():
        return {}
    tables: dict[str, dict[str, bool]] = {}
    models: dict[str, list[str]] = {}
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if not (isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)):
            continue
        name, value = node.targets[0].id, node.value
        if isinstance(value, ast.Call):
            tables[name] = _table(value)
        elif isinstance(value, ast.Dict) and name == "_PRETRAINED":
            for model, entry in zip(value.keys, value.values, strict=True):
                if not isinstance(model, ast.Constant):
                    continue
                table = _table(entry) or tables.get(getattr(entry, "id", ""), {})
                name = str(model.value)
                models[name] = list(table)
                quick = [tag for tag, is_quick in table.items() if is_quick]
                if quick:  # open_clip lists these models a second time
                    models[f"{name}-quickgelu"] = quick
    return models


def _table(value: ast.expr) -> dict[str, bool]:
    """Tag → whether it wants QuickGELU, of ``dict(openai=_pcfg(…, quick_gelu=True), …)``."""
    keywords = value.keywords if isinstance(value, ast.Call) else []
    return {one.arg: "quick_gelu=True" in ast.unparse(one.value) for one in keywords if one.arg}
