"""Learned prompts (CoOp): ``[V1]…[VM][CLASS]`` through the frozen text tower."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xaiclip.errors import ConfigError
from xaiclip.localizer.backbone import Backbone

_PLACEHOLDER = "x"


class Prompts(nn.Module):
    """M learnable context vectors before each class name.

    The prompts go through the model's own ``encode_text``; only the rows that the token embedding
    gives for M placeholder words are replaced by the context. So causal or padding mask,
    activation, final norm, pooling at the end token and projection are the model's, for any text
    tower of open_clip (Hugging Face's included).
    """

    token_ids: Tensor

    def __init__(
        self,
        backbone: Backbone,
        classes: Sequence[str],
        context: int = 8,
        class_specific: bool = True,
        generator: torch.Generator | None = None,
    ) -> None:
        """Draw the context from N(0, 0.02).

        Args:
            backbone: frozen model and tokenizer.
            classes: class names as they are spoken, background included.
            context: M.
            class_specific: one context per class, else one for all.
            generator: source of the initial values.

        Raises:
            ConfigError: context and class name are longer than the text tower's context.
        """
        super().__init__()
        self.classes, self.length = tuple(classes), context
        words = " ".join([_PLACEHOLDER] * context)
        ids = backbone.tokenizer([f"{words} {name}" for name in classes])
        self._check(backbone, ids)
        self.register_buffer("token_ids", ids, persistent=False)
        # plain references: the frozen model is neither saved nor counted with the prompts
        self._frozen = [backbone.clip, _token_embedding(backbone.clip)]
        shape = (len(classes) if class_specific else 1, context, self._frozen[1].embedding_dim)
        self.context = nn.Parameter(torch.empty(shape).normal_(0, 0.02, generator=generator))

    def _check(self, backbone: Backbone, ids: Tensor) -> None:
        """The placeholders must be M equal tokens after the start token, and nothing cut off."""
        pad = backbone.tokenizer([""])[0, -1]
        lengths = (ids != pad).sum(1) - (backbone.tokenizer(list(self.classes)) != pad).sum(1)
        placeholders = ids[:, 1 : 1 + self.length]
        if bool((lengths != self.length).any() or (placeholders != ids[0, 1]).any()):
            longest = max(self.classes, key=len)
            raise ConfigError(
                f"{self.length} context vectors and a class name like '{longest}' do not fit into "
                f"the {ids.shape[1]} tokens of this backbone: lower localizer.context."
            )

    def forward(self) -> Tensor:
        """Unit text features, float (classes, embed_dim)."""
        clip, embedding = self._frozen
        context = self.context.expand(len(self.classes), -1, -1)

        def insert(module: nn.Module, inputs: object, output: Tensor) -> Tensor:
            rows = context.to(output.dtype)
            return torch.cat([output[:, :1], rows, output[:, 1 + self.length :]], dim=1)

        handle = embedding.register_forward_hook(insert)
        try:
            return F.normalize(clip.encode_text(self.token_ids), dim=-1)
        finally:
            handle.remove()


def _token_embedding(clip: Any) -> nn.Embedding:
    text = getattr(clip, "text", clip)
    if hasattr(text, "token_embedding"):
        embedding: nn.Embedding = text.token_embedding
    else:  # Hugging Face
        embedding = text.transformer.get_input_embeddings()
    return embedding
