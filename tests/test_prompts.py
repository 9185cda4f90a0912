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


def by_hand(backbone: Backbone, context: torch.Tensor, name: str) -> torch.Tensor:
    """CLIP's text tower written out: start, context, name, end; causal; the feature of the end."""
    clip = backbone.clip
    start, *words, end = TOKENIZER([name])[0, : 2 + len(TOKENIZER.encode(name))].tolist()
    table = clip.token_embedding.weight
    rows = torch.cat([table[[start]], context, table[[*words, end]]])
    x = (rows + clip.positional_embedding[: len(rows)])[None]
    mask = torch.full((len(rows), len(rows)), float("-inf")).triu(1)
    for block in clip.transformer.resblocks:
        y = block.ln_1(x)
        x = x + block.attn(y, y, y, need_weights=False, attn_mask=mask)[0]
        x = x + block.mlp(block.ln_2(x))
    return F.normalize(clip.ln_final(x)[0, -1] @ clip.text_projection, dim=-1)


@pytest.mark.parametrize("context", [1, 3, 8, 20])
@pytest.mark.parametrize("own", [True, False])
def test_context_stands_before_the_name_and_the_end_is_read(context: int, own: bool) -> None:
    """Names of one and two words: the end token lies at another place."""
    names = ("spleen", "right kidney", "liver")  # not the alphabet's order
    backbone = Backbone(small_clip(), TOKENIZER)
    prompts = Prompts(backbone, names, context, own)
    with torch.no_grad():
        prompts.context.normal_(0, 0.5)
        found = prompts()
        for k, name in enumerate(names):
            mine = prompts.context[k if own else 0]
            assert mine.shape == (context, 32)
            wanted = by_hand(backbone, mine, name)
            torch.testing.assert_close(found[k], wanted, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("context", "fits"), [(20, True), (21, False), (60, False)])
def test_length(context: int, fits: bool) -> None:
    """24 tokens, of which start, end, right and kidney: 20 are left."""
    backbone = Backbone(small_clip(), TOKENIZER)
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
        end = TOKENIZER.eot_token_id
        assert [ids.index(end) for ids in prompts.token_ids.tolist()] == [22, 22, 23]
        assert prompts.context.shape == (3, context, 32)
        return
    with pytest.raises(ConfigError, match=r"lower localizer\.context") as caught:
        Prompts(backbone, CLASSES, context)
    assert f"{context} context vectors" in str(caught.value)
    assert "'right kidney'" in str(caught.value)
    assert "24 tokens" in str(caught.value)


def test_normalised_like_open_clip() -> None:
    backbone = Backbone(small_clip(), TOKENIZER)
    features = Prompts(backbone, CLASSES, 1)()
    assert torch.allclose(features, F.normalize(features, dim=-1))
