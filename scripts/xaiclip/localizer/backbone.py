"""The frozen vision-language backbone: patch tokens of chosen transformer blocks."""

from __future__ import annotations

import hashlib
import json
import re
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from open_clip.factory import load_checkpoint
from open_clip.model import CLIP, CustomTextCLIP
from open_clip.pretrained import get_pretrained_cfg
from open_clip.timm_model import TimmModel
from open_clip.tokenizer import SimpleTokenizer
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn

from xaiclip.errors import ConfigError

COMPACT_FOLDER = Path(__file__).parents[3] / "resources" / "compact"

#: Model names that bring their weights along.
_SCHEMAS = ("local-dir:", "hf-hub:")

Tokenizer = Callable[[list[str]], Tensor]


@dataclass(frozen=True)
class BackboneSettings:
    """Which model, and which of its blocks.

    ``model`` is ``compact`` (shipped), a folder with ``clip.json`` and ``clip.safetensors`` (or
    in open_clip's own layout), an open_clip model name, a JSON file with an open_clip
    configuration, or ``hf-hub:…``. ``pretrained`` is open_clip's tag or a checkpoint file, for a
    named model or a JSON file; OpenAI's own files (TorchScript) get the QuickGELU that they were
    trained with. ``blocks`` count from 1; None takes the first or middle, the third quarter and
    the last (see `default_blocks`).
    """

    model: str = "compact"
    pretrained: str | None = None
    blocks: tuple[int, ...] | None = None


def default_blocks(depth: int) -> tuple[int, ...]:
    """Middle, third quarter and last, as MediCLIP takes 12, 18 and 24 of ViT-L/14's 24.

    A shallow model gives its first block instead of the middle one: there it is the one that
    still holds the detail inside a patch.
    """
    first = depth // 2 if depth >= 12 else 1
    return tuple(sorted({first, max(1, depth * 3 // 4), depth}))


class Backbone(nn.Module):
    """An open_clip model with frozen weights, always in evaluation mode.

    Attributes:
        name: the model as in the settings.
        fingerprint: SHA-256 over all weights.
        blocks: the chosen blocks, from 1.
        width: channels of a token.
        grid: tokens along one side.
        embed_dim: size of the shared image–text space.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        clip: CLIP | CustomTextCLIP,
        tokenizer: Tokenizer,
        blocks: Sequence[int] | None = None,
        *,
        name: str = "custom",
        mean: Sequence[float] = open_clip.OPENAI_DATASET_MEAN,
        std: Sequence[float] = open_clip.OPENAI_DATASET_STD,
    ) -> None:
        """Wrap ``clip``; ``mean`` and ``std`` are those of its training (images in 0…1).

        Raises:
            ConfigError: the image tower is no transformer, or a block does not exist.
        """
        super().__init__()
        visual = clip.visual
        if isinstance(visual, VisionTransformer):
            depth = len(visual.transformer.resblocks)
        elif isinstance(visual, TimmModel) and hasattr(visual.trunk, "blocks"):
            depth = len(visual.trunk.blocks)
        else:
            raise ConfigError(
                f"Backbone '{name}' has no vision transformer: choose a ViT model of open_clip."
            )
        self.blocks = tuple(blocks) if blocks else default_blocks(depth)
        if not all(1 <= block <= depth for block in self.blocks):
            raise ConfigError(
                f"localizer.blocks {list(self.blocks)} do not all exist: "
                f"backbone '{name}' has blocks 1 to {depth}."
            )
        self.name = name
        self.tokenizer = tokenizer
        self.clip = clip.eval().requires_grad_(False)
        size = visual.image_size
        self.image_size = int(size[0] if isinstance(size, (tuple, list)) else size)
        self.fingerprint = fingerprint(clip)
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)
        with torch.inference_mode():
            tokens = self(torch.zeros(1, self.image_size, self.image_size, dtype=torch.uint8))
            text = clip.encode_text(tokenizer([""]))
        self.width, self.grid = int(tokens[0].shape[1]), int(tokens[0].shape[2])
        self.embed_dim = int(text.shape[1])

    def train(self, mode: bool = True) -> Backbone:
        """Stay in evaluation mode."""
        return super().train(False)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Tokens of the chosen blocks: CLS dropped, no final norm, no projection.

        Args:
            images: uint8 (B, S, S) grey slices; resized if S is not the model's own size.

        Returns:
            One float tensor (B, width, grid, grid) for each block.
        """
        x = images[:, None].float() / 255
        if x.shape[-1] != self.image_size:
            size = (self.image_size, self.image_size)
            x = F.interpolate(x, size, mode="bicubic", antialias=True).clamp(0, 1)
        x = (x - self.mean) / self.std
        with torch.no_grad():
            found = self.clip.visual.forward_intermediates(
                x,
                indices=sorted({block - 1 for block in self.blocks}),
                stop_early=True,
                intermediates_only=True,
            )["image_intermediates"]
        by_block = dict(zip(sorted(set(self.blocks)), found, strict=True))
        return [by_block[block] for block in self.blocks]

    def projection(self) -> Tensor | None:
        """The model's own way from a token to the text space, (embed_dim, width), up to scale.

        The final norm's centring and gain are folded into the projection; its division by the
        token's spread does not change a direction, and its shift is left out. None where the
        tower has no plain projection (timm).
        """
        visual = self.clip.visual
        if not isinstance(visual, VisionTransformer) or visual.proj is None:
            return None
        weight = visual.proj.detach().T * visual.ln_post.weight.detach()
        return weight - weight.mean(1, keepdim=True)


def load_backbone(settings: BackboneSettings) -> Backbone:
    """Build the backbone and load its weights (never unpickling code).

    Raises:
        ConfigError: unknown model, missing or unreadable files, weights that do not fit.
    """
    name = settings.model
    folder = COMPACT_FOLDER if name == "compact" else Path(name)
    if name == "compact" or folder.is_dir():
        if name == "compact" or (folder / "clip.json").exists():
            return _from_folder(folder, settings)
        name = f"local-dir:{folder}"
    elif not name.startswith("hf-hub:"):
        if name.endswith(".json") and folder.is_file():
            open_clip.add_model_config(folder)
            name = folder.stem
        if name.replace("/", "-") not in open_clip.list_models():
            raise ConfigError(
                f"localizer.backbone '{name}' is neither a folder nor a model of open_clip: use "
                "'compact', a folder with clip.json, 'hf-hub:…', or a name that open_clip lists."
            )
        if settings.pretrained is None:
            raise ConfigError(
                f"Backbone '{name}' needs weights: set localizer.pretrained to a tag of open_clip "
                f"({', '.join(open_clip.list_pretrained_tags_by_model(name)) or 'none known'}) "
                "or to a checkpoint file."
            )
    try:
        if _is_torchscript(settings.pretrained) and not name.startswith(_SCHEMAS):
            clip = open_clip.create_model(name, force_quick_gelu=True)
            _fill_from_torchscript(clip, str(settings.pretrained))
        else:
            # OpenAI's weights and others want QuickGELU whatever the model's plain config says
            tag = get_pretrained_cfg(name, settings.pretrained) or {}
            clip = open_clip.create_model(
                name,
                pretrained=None if name.startswith(_SCHEMAS) else settings.pretrained,
                require_pretrained=True,
                force_quick_gelu=bool(tag.get("quick_gelu")),
                **(_local_text(folder) if name.startswith("local-dir:") else {}),
            )
        tokenizer = open_clip.get_tokenizer(name)
    except ConfigError:
        raise
    except Exception as error:  # open_clip and the hub raise many kinds
        raise ConfigError(
            f"Backbone '{name}' could not be loaded ({_short(error)}): check localizer.backbone, "
            "localizer.pretrained and the connection."
        ) from error
    norm = clip.visual.preprocess_cfg
    return Backbone(
        clip, tokenizer, settings.blocks, name=settings.model, mean=norm["mean"], std=norm["std"]
    )


def _local_text(folder: Path) -> dict[str, Any]:
    """The text tower of a folder in open_clip's layout, from the folder alone.

    open_clip would ask the hub for a Hugging Face tower's configuration, even offline.
    """
    path = folder / "open_clip_config.json"
    if not path.is_file():
        raise ConfigError(f"{folder} holds neither clip.json nor open_clip_config.json.")
    text = dict(json.loads(path.read_text(encoding="utf-8"))["model_cfg"]["text_cfg"])
    tower = text.get("hf_model_name")
    if tower is None:
        return {}
    if not (folder / "config.json").is_file():
        raise ConfigError(
            f"{folder} lacks config.json of the text tower: take it from '{tower}' on the hub."
        )
    return {"text_cfg": text | {"hf_model_name": str(folder), "hf_model_pretrained": False}}


def _is_torchscript(path: str | None) -> bool:
    """Whether a file is a TorchScript archive, as OpenAI published CLIP."""
    if path is None or not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _fill_from_torchscript(clip: nn.Module, path: str) -> None:
    """Put an archive's weights into the model; none of its code runs."""
    weights = torch.jit.load(path, map_location="cpu").state_dict()
    for name in ("input_resolution", "context_length", "vocab_size"):
        weights.pop(name, None)
    clip.load_state_dict({name: value.float() for name, value in weights.items()})


def _from_folder(folder: Path, settings: BackboneSettings) -> Backbone:
    config_path, weights = folder / "clip.json", folder / "clip.safetensors"
    for path in (config_path, weights):
        if not path.is_file():
            raise ConfigError(
                f"{path} is missing: restore it, or train the compact models with `make compact`."
            )
    try:
        config: dict[str, Any] = json.loads(config_path.read_text(encoding="utf-8"))
        model = dict(config["model_cfg"])
        text = model["text_cfg"]
        options = dict(text.get("tokenizer_kwargs", {}))
        if "bpe_path" in options:
            options["bpe_path"] = str(folder / options["bpe_path"])
        tokenizer = SimpleTokenizer(context_length=text.get("context_length", 77), **options)
        kind = CustomTextCLIP if model.pop("custom_text", False) else CLIP
        clip = kind(**model)
        load_checkpoint(clip, str(weights))
    except Exception as error:
        raise ConfigError(
            f"{folder} does not hold a usable CLIP ({_short(error)}): clip.json and "
            "clip.safetensors must belong together."
        ) from error
    norm = config.get("preprocess_cfg", {})
    return Backbone(
        clip,
        tokenizer,
        settings.blocks,
        name=settings.model,
        mean=norm.get("mean", open_clip.OPENAI_DATASET_MEAN),
        std=norm.get("std", open_clip.OPENAI_DATASET_STD),
    )


def fingerprint(module: nn.Module) -> str:
    """SHA-256 over the names and values of all weights, whatever file they came from."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _short(error: Exception) -> str:
    """The first line of an error, without its final stop."""
    text = str(error).strip() or type(error).__name__
    return re.sub(r"\s+", " ", text.splitlines()[0])[:200].rstrip(".:")
