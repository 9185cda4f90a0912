"""Learned prompts go through open_clip's own text tower, unchanged."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from open_clip.model import CLIP, CustomTextCLIP

from test_backbone import TOKENIZER, small_clip
from xaiclip.errors import ConfigError
from xaiclip.localizer.backbone import Backbone
from xaiclip.localizer.prompts import Prompts

CLASSES = ("background", "liver", "right kidney")


@pytest.mark.parametrize("kind", [CLIP, CustomTextCLIP])
@pytest.mark.parametrize("quick", [False, True])
def test_equals_encode_text_for_real_words(kind: type, quick: bool) -> None:
    backbone = Backbone(small_clip(kind, quick), TOKENIZER)
    words = "a photo of the"
    prompts = Prompts(backbone, CLASSES, context=4)
    ids = TOKENIZER([f"{words} {name}" for name in CLASSES])
    text = getattr(backbone.clip, "text", backbone.clip)
    with torch.no_grad():
        prompts.context.copy_(text.token_embedding(ids)[:, 1:5])
        wanted = backbone.clip.encode_text(ids, normalize=True)
        found = prompts()
    assert torch.allclose(found, wanted, atol=1e-6)
    # the hook is gone: the tower is as it was
    assert torch.equal(backbone.clip.encode_text(ids, normalize=True), wanted)


@pytest.mark.parametrize("own", [True, False])
def test_class_specific_and_shared(own: bool) -> None:
    backbone = Backbone(small_clip(), TOKENIZER)
    prompts = Prompts(backbone, CLASSES, 8, own, torch.Generator().manual_seed(3))
    again = Prompts(backbone, CLASSES, 8, own, torch.Generator().manual_seed(3))
    assert torch.equal(prompts.context, again.context)
    assert prompts.context.shape == (3 if own else 1, 8, 32)
    assert 0.015 < prompts.context.std() < 0.025
    features = prompts()
    assert features.shape == (3, 24)
    assert torch.allclose(features.norm(dim=1), torch.ones(3))
    assert not torch.allclose(features[0], features[1])
    features[1].sum().backward()
    assert [bool(g.abs().sum() > 0) for g in prompts.context.grad] == (
        [False, True, False] if own else [True]
    )
    assert [name for name, _ in prompts.named_parameters()] == ["context"]
    assert prompts.state_dict().keys() == {"context"}


def test_causal_mask_is_kept() -> None:
    """What follows the end token must not matter."""
    backbone = Backbone(small_clip(), TOKENIZER)
    prompts = Prompts(backbone, CLASSES, 4)
    before = prompts()
    prompts.token_ids[0, -5:] = 7
    assert torch.allclose(before, prompts(), atol=1e-6)


@pytest.mark.parametrize(("context", "fits"), [(20, True), (21, False), (60, False)])
def test_length(context: int, fits: bool) -> None:
    backbone = Backbone(small_clip(), TOKENIZER)  # 24 tokens, of which start, end, right, kidney
    if fits:
        prompts = Prompts(backbone, CLASSES, context)
        # nothing of a class's name is cut off, its end token included …
        for ids, alone in zip(prompts.token_ids, TOKENIZER(list(CLASSES)), strict=True):
            words = alone[1 : int(alone.argmax()) + 1]
            assert ids[1 + context : 1 + context + len(words)].tolist() == words.tolist()
        # … and every context vector is read
        features = prompts()
        (features * torch.linspace(0, 1, features.shape[1])).sum().backward()
        assert bool((prompts.context.grad.abs().amax(-1) > 0).all())
        return
    with pytest.raises(ConfigError, match=r"lower localizer\.context"):
        Prompts(backbone, CLASSES, context)


def test_normalised_like_open_clip() -> None:
    backbone = Backbone(small_clip(), TOKENIZER)
    features = Prompts(backbone, CLASSES, 1)()
    assert torch.allclose(features, F.normalize(features, dim=-1))
