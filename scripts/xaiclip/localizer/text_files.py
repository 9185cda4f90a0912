"""Tokenizers and text towers from files: what transformers is given to read, and nothing else."""

from __future__ import annotations

import gzip
import json
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from open_clip.hf_configs import arch_dict
from open_clip.tokenizer import HFTokenizer, SimpleTokenizer
from torch import Tensor
from transformers import CONFIG_MAPPING

from xaiclip.errors import ConfigError
from xaiclip.localizer.clip_config import ClipConfig
from xaiclip.plain import check_keys, keys, read_json

Tokenizer = Callable[[list[str]], Tensor]

#: Vocabularies and the like: words and numbers, read as such.
WORDS = (
    "tokenizer.json", "vocab.txt", "vocab.json", "merges.txt", "sentencepiece.bpe.model",
    "spiece.model", "tokenizer.model",
)  # fmt: skip
#: What a word means to a tokenizer.
SETTINGS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")

#: Bytes of a vocabulary: one of 256,000 words has some 35 MB.
MAX_WORDS = 1 << 27
#: Bytes of open_clip's own list of pairs, unpacked; it has 3 MB.
MAX_PAIRS = 1 << 24

_CLASS = re.compile(
    "(Bert|DistilBert|Roberta|XLMRoberta|T5|M2M100|Nllb|Gemma|CLIP|Siglip|Siglip2|PreTrained)"
    "Tokenizer(Fast)?|TokenizersBackend"
)
#: Keys of ``tokenizer_config.json`` that pass, beside those that end in ``_token``.
_KNOWN = keys(
    "tokenizer_class do_lower_case strip_accents tokenize_chinese_chars do_basic_tokenize "
    "model_max_length padding_side truncation_side clean_up_tokenization_spaces add_prefix_space "
    "add_bos_token add_eos_token extra_ids additional_special_tokens extra_special_tokens "
    "added_tokens_decoder legacy src_lang tgt_lang split_special_tokens keep_accents trim_offsets "
    "errors"
)
#: Keys of a tower's ``config.json`` that do not pass, though its class knows them.
_NOT_TAKEN = keys(
    "architectures auto_map attn_implementation quantization_config transformers_version dtype "
    "torch_dtype id2label label2id problem_type name_or_path"
)
_SPECIAL = re.compile(r"[\w<>]{1,64}")


@contextmanager
def staged(folders: Sequence[Path], tower: str | None) -> Iterator[Path]:
    """A folder for transformers to read, made from others.

    Copies of vocabularies, and of the settings those keys that are known; no Python file, and no
    path to anything else.

    Args:
        folders: the first that has a tokenizer gives it; the first that has ``config.json`` gives
            the text tower.
        tower: the text tower's name on the hub; None if only a tokenizer is wanted.

    Raises:
        ConfigError: a file is missing, or asks for what is not done here.
    """
    for folder in folders:
        for path in sorted(folder.glob("*.json")):
            # keys of those are words, not settings
            if path.name not in (*WORDS, "added_tokens.json"):
                read_json(path, MAX_WORDS)
    with tempfile.TemporaryDirectory(prefix="xaiclip-text-") as name:
        made = Path(name)
        holding = (one for one in folders if any((one / file).is_file() for file in WORDS))
        if words := next(holding, None):
            for file in (*WORDS, *SETTINGS):
                if (words / file).is_file():
                    _stage_words(words / file, made / file)
        if tower is not None:
            _stage_tower(folders, tower, made / "config.json")
        yield made


def tokenizer_of(config: ClipConfig, folder: Path | None, staging: Path | None) -> Tokenizer:
    """The tokenizer that a configuration asks for.

    Args:
        config: of the model.
        folder: where its own vocabulary lies, if it names one.
        staging: see `staged`, for a Hugging Face tokenizer.

    Raises:
        ConfigError: arguments that are not known, a vocabulary elsewhere or too large.
    """
    options = dict(config.tokenizer)
    if staging is None:
        return SimpleTokenizer(context_length=config.context_length, **_simple(options, folder))
    if not any((staging / file).is_file() for file in WORDS):
        raise ConfigError(f"The tokenizer's files are missing: take them from '{config.words}'.")
    check_keys("tokenizer_kwargs", options, ("clean", "strip_sep_token", "language"))
    return HFTokenizer(
        str(staging),
        context_length=config.context_length,
        tokenizer_mode=config.mode,
        trust_remote_code=False,
        local_files_only=True,
        **options,
    )


def _simple(options: dict[str, Any], folder: Path | None) -> dict[str, Any]:
    known = ("bpe_path", "additional_special_tokens", "clean")
    check_keys("tokenizer_kwargs", options, known)
    # they become part of a regular expression
    special = options.get("additional_special_tokens") or []
    if not all(isinstance(one, str) and _SPECIAL.fullmatch(one) for one in special):
        raise ConfigError("tokenizer_kwargs.additional_special_tokens must be words like <name>.")
    if (name := options.get("bpe_path")) is not None:
        path = None if folder is None else folder / str(name)
        if path is None or Path(str(name)).name != name or not path.is_file():
            raise ConfigError(
                f"tokenizer_kwargs.bpe_path is {name!r}, which must be the name of a file beside "
                "the configuration."
            )
        with gzip.open(path) as stream:
            if len(stream.read(MAX_PAIRS + 1)) > MAX_PAIRS:
                raise ConfigError(f"{path} unpacks to more than a vocabulary can have.")
        options["bpe_path"] = str(path)
    return options


def _stage_words(source: Path, target: Path) -> None:
    with open(source, "rb") as stream:
        content = stream.read(MAX_WORDS + 1)
    if len(content) > MAX_WORDS:
        raise ConfigError(f"{source} is larger than a vocabulary can be.")
    if source.name == "tokenizer_config.json":
        settings = read_json(source, MAX_WORDS)
        kept = {k: v for k, v in settings.items() if k in _KNOWN or k.endswith("_token")}
        name = kept.get("tokenizer_class")
        if name is not None and not (isinstance(name, str) and _CLASS.fullmatch(name)):
            raise ConfigError(
                f"{source} wants the tokenizer {name!r:.80}, which is not known here: save it as "
                "a PreTrainedTokenizerFast."
            )
        content = json.dumps(kept).encode()
    target.write_bytes(content)


def _stage_tower(folders: Sequence[Path], tower: str, target: Path) -> None:
    source = next((one / "config.json" for one in folders if (one / "config.json").is_file()), None)
    if source is None:
        raise ConfigError(
            f"{folders[0]} lacks config.json of the text tower: take it from '{tower}' on the hub."
        )
    settings = read_json(source)
    kind = settings.get("model_type")
    if not isinstance(kind, str) or kind not in arch_dict:
        raise ConfigError(f"{source} describes a text tower {kind!r:.80}; known: {[*arch_dict]}.")
    known = {
        key
        for key in CONFIG_MAPPING[kind]().to_dict()
        if key not in _NOT_TAKEN and not key.startswith("_")
    }
    kept = {key: value for key, value in settings.items() if key in known | {"model_type"}}
    name = kept.get("tokenizer_class")
    if name is not None and not (isinstance(name, str) and _CLASS.fullmatch(name)):
        del kept["tokenizer_class"]
    target.write_text(json.dumps(check_keys(str(source), kept, kept)), encoding="utf-8")
