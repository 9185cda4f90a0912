"""Where a backbone's files lie: shipped, in a folder, under a name of open_clip's, or on a hub.

What is fetched is one certain thing: a file whose checksum is known, or a commit of a repository.
A name alone may mean other files tomorrow.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import open_clip
from open_clip.pretrained import download_pretrained_from_url, get_pretrained_cfg
from transformers.utils.hub import snapshot_download  # type: ignore[attr-defined]

from xaiclip.errors import ConfigError
from xaiclip.files import verify
from xaiclip.localizer.clip_config import ClipConfig
from xaiclip.localizer.clip_weights import NAMES, SUFFIXES, openai_checksums
from xaiclip.localizer.text_files import SETTINGS, WORDS
from xaiclip.published.catalogue import HUB, pinned, revision_of
from xaiclip.published.download import Remote, fetch
from xaiclip.weights import check_sums, is_torchscript

CONFIG = "open_clip_config.json"
#: Where open_clip keeps OpenAI's archives, too.
CACHE = Path("~/.cache/clip")
_TEXT = (CONFIG, "config.json", *WORDS, *SETTINGS)


@dataclass(frozen=True)
class Source:
    """Files of a model, all of them here.

    Attributes:
        config: what the model is.
        weights: the file with its weights.
        folders: where tokenizer and text tower lie, the first that has them counts.
        quick_gelu: the weights want QuickGELU whatever the configuration says.
        revisions: ``owner/name@commit`` of what came from a hub.
    """

    config: ClipConfig
    weights: Path
    folders: tuple[Path, ...] = ()
    quick_gelu: bool = False
    revisions: tuple[str, ...] = ()


def find(model: str, pretrained: str | None, compact: Path) -> Source:
    """The files of a backbone; what is missing here and can be fetched is fetched.

    Args:
        model, pretrained: see `BackboneSettings`.
        compact: folder of the shipped model.

    Raises:
        ConfigError: an unknown name, a missing file, or something that could change unnoticed.
    """
    folder = compact if model == "compact" else Path(model)
    if model == "compact" or folder.is_dir():
        return _folder(folder)
    if model.startswith(HUB):
        repository, revision = pinned(model)
        there = snapshot(repository, revision, NAMES)
        return _folder(there, revisions=(f"{repository}@{revision}",))
    if model.endswith(".json") and folder.is_file():
        return _named(ClipConfig.read(folder), folder.stem, pretrained)
    name = model.replace("/", "-")
    known = open_clip.get_model_config(name)
    if known is None:
        raise ConfigError(
            f"localizer.backbone '{model}' is neither a folder nor a model of open_clip: use "
            "'compact', a folder with clip.json, 'hf-hub:…@…', or a name that open_clip lists."
        )
    return _named(ClipConfig.of(known, {}, name), name, pretrained)


def _folder(folder: Path, revisions: Sequence[str] = ()) -> Source:
    """A folder with clip.json and clip.safetensors, or in open_clip's own layout."""
    if (folder / CONFIG).is_file() and not (folder / "clip.json").is_file():
        config = ClipConfig.read(folder / CONFIG)
        weights = _weights_in(folder)
        folders, more = _towers(config, folder)
        return Source(config, weights, folders, revisions=(*revisions, *more))
    if not (folder / "clip.json").is_file() and not (folder / "clip.safetensors").is_file():
        raise ConfigError(f"{folder} holds neither clip.json nor {CONFIG}.")
    for name in ("clip.json", "clip.safetensors"):
        if not (folder / name).is_file():
            raise ConfigError(
                f"{folder / name} is missing: restore it, or train the compact models with "
                "`make compact`."
            )
    config = ClipConfig.read(folder / "clip.json")
    check_sums(folder, ("clip.json", "clip.safetensors", config.tokenizer.get("bpe_path")))
    folders, more = _towers(config, folder)
    return Source(config, folder / "clip.safetensors", folders, revisions=more)


def _weights_in(folder: Path) -> Path:
    """The file with an open_clip name, or else the only one."""
    files = [path for path in sorted(folder.iterdir()) if path.suffix in SUFFIXES]
    named = [folder / name for name in NAMES if (folder / name) in files]
    if not named and len(files) != 1:
        raise ConfigError(f"{folder} holds {len(files)} files of weights: name one {NAMES[0]}.")
    return (named or files)[0]


def _named(config: ClipConfig, name: str, pretrained: str | None) -> Source:
    """A configuration with a tag of open_clip, or with a checkpoint file."""
    if pretrained is None:
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(name)) or "none known"
        raise ConfigError(
            f"Backbone '{name}' needs weights: set localizer.pretrained to a tag of open_clip "
            f"({tags}) or to a checkpoint file."
        )
    tag = get_pretrained_cfg(name, pretrained)
    if tag:
        config = replace(config, mean=tuple(tag["mean"]), std=tuple(tag["std"]))
        weights = _tagged(f"{name} ({pretrained})", tag)
        folders, revisions = _towers(config, None)
        return Source(config, weights, folders, bool(tag.get("quick_gelu")), revisions)
    path = Path(pretrained)
    if not path.exists():
        raise ConfigError(
            f"Backbone '{name}' could not be loaded: localizer.pretrained '{pretrained}' is "
            "neither a file nor a tag that open_clip has for it."
        )
    folders, revisions = _towers(config, None)
    return Source(config, path, folders, is_torchscript(path), revisions)


def _tagged(words: str, tag: dict[str, str]) -> Path:
    """The weights of a tag of open_clip: those whose address tells their checksum."""
    url, hub = tag.get("url", ""), tag.get("hf_hub", "").rsplit("/", 1)[0]
    for checksum, address in openai_checksums().items():
        if address == url:
            target = CACHE.expanduser() / os.path.basename(url)
            fetch(Remote(target.name, url, f"sha256:{checksum}"), target)
            return target
    if re.search(r"github\.com/mlfoundations/.*-[0-9a-f]{8}\.pt$", url):
        return Path(download_pretrained_from_url(url))
    cure = (
        f"use localizer.backbone: {HUB}{hub}@ and a commit of that repository"
        if hub
        else f"fetch {url} and name the file in localizer.pretrained"
    )
    raise ConfigError(
        f"The weights of backbone '{words}' lie where they can be replaced unnoticed: {cure}."
    )


def _towers(config: ClipConfig, folder: Path | None) -> tuple[tuple[Path, ...], tuple[str, ...]]:
    """Folders with a Hugging Face tower's and tokenizer's files: the model's own, then the hub's.

    The hub is asked only for what the model's folder lacks, at a commit that is known.
    """
    own = () if folder is None else (folder,)
    wanted = []
    if config.words and not any((one / file).is_file() for one in own for file in WORDS):
        wanted.append(config.words)
    if config.tower and not any((one / "config.json").is_file() for one in own):
        wanted.append(config.tower)
    folders, revisions = list(own), []
    for name in dict.fromkeys(wanted):
        revision = revision_of(name)
        if revision is None:
            place = folder or "a folder with open_clip_config.json and the weights"
            raise ConfigError(
                f"This backbone needs config.json or the tokenizer of '{name}', which is not among "
                f"the commits that are known here: take it from '{name}' on the hub, into {place}."
            )
        folders.append(snapshot(name, revision))
        revisions.append(f"{name}@{revision}")
    return tuple(folders), tuple(revisions)


def snapshot(repository: str, revision: str, weights: Sequence[str] = ()) -> Path:
    """A repository's files at a commit, from the hub's cache if they are there.

    Args:
        repository: ``owner/name``.
        revision: the commit, 40 hexadecimal digits.
        weights: names of the file of weights, of which the first kind that is there is fetched.

    Raises:
        ConfigError: it cannot be had, or is not as the hub had it.
    """
    try:
        for names in _by_suffix(weights) or [[]]:
            found = Path(
                snapshot_download(repository, revision=revision, allow_patterns=[*_TEXT, *names])
            )
            held = [found / name for name in names if (found / name).is_file()]
            if held:
                break
    except Exception as error:  # the hub raises many kinds
        raise ConfigError(
            f"'{repository}' at {revision} could not be had from the hub: check the name, the "
            "commit and the connection."
        ) from error
    for path in held:
        # the cache names a large file by its checksum
        if re.fullmatch("[0-9a-f]{64}", name := path.resolve().name):
            verify(path, f"sha256:{name}")
    return found


def _by_suffix(names: Sequence[str]) -> list[list[str]]:
    suffixes = dict.fromkeys(Path(name).suffix for name in names)
    return [[name for name in names if name.endswith(suffix)] for suffix in suffixes]
