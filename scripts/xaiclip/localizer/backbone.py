"""The frozen vision-language backbone: patch tokens of chosen transformer blocks."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from open_clip.model import CLIP, CustomTextCLIP
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn

from xaiclip.errors import ConfigError
from xaiclip.localizer.clip_weights import load_weights
from xaiclip.localizer.sources import Source, find
from xaiclip.localizer.text_files import Tokenizer, staged, tokenizer_of
from xaiclip.resources import shipped
from xaiclip.weights import check_size

COMPACT_FOLDER = shipped("compact")


@dataclass(frozen=True)
class BackboneSettings:
    """Which model, and which of its blocks.

    ``model`` is ``compact`` (shipped), a folder with ``clip.json`` and ``clip.safetensors`` (or
    in open_clip's own layout), an open_clip model name, a JSON file with an open_clip
    configuration, or ``hf-hub:owner/name@commit``. ``pretrained`` is open_clip's tag or a
    checkpoint file, for a named model or a JSON file; OpenAI's own files (TorchScript) get the
    QuickGELU that they were trained with. ``blocks`` count from 1; None takes the first or middle,
    the third quarter and the last (see `default_blocks`).
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
        revisions: ``owner/name@commit`` of all that came from a hub.
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
        mean: Sequence[float] = OPENAI_DATASET_MEAN,
        std: Sequence[float] = OPENAI_DATASET_STD,
        revisions: Sequence[str] = (),
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
        self.name, self.revisions = name, tuple(revisions)
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

    @property
    def revision(self) -> str | None:
        """What came from a hub, for provenance; None if nothing did."""
        return " + ".join(self.revisions) or None

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
    """Build the backbone and load its weights; no code that comes with them runs.

    Raises:
        ConfigError: unknown model, missing or unreadable files, weights that do not fit, a
            configuration that asks for more than a model, a name that is not pinned.
    """
    try:
        source = find(settings.model, settings.pretrained, COMPACT_FOLDER)
        config = source.config
        with _text_files(source) as staging:
            check_size(config.outline(staging), source.weights)
            clip = config.build(source.quick_gelu, staging)
            load_weights(clip, source.weights)
            own = source.folders[0] if source.folders else None
            tokenizer = tokenizer_of(config, own, staging)
        return Backbone(
            clip,
            tokenizer,
            settings.blocks,
            name=settings.model,
            mean=config.mean,
            std=config.std,
            revisions=source.revisions,
        )
    except ConfigError:
        raise
    except Exception as error:  # open_clip, timm and transformers raise many kinds
        raise ConfigError(
            f"Backbone {settings.model!r} could not be loaded ({_short(error)}): configuration, "
            "weights and tokenizer must belong together."
        ) from error


def _text_files(source: Source) -> AbstractContextManager[Path | None]:
    if source.config.words is None:
        return nullcontext()
    return staged(source.folders, source.config.tower)


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
    line = re.sub(r"\s+", " ", text.splitlines()[0])[:200].rstrip(".:")
    return "".join(one if one.isprintable() else "?" for one in line)
