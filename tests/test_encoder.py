"""The encoder's fast way gives segment_anything's numbers."""

from functools import partial

import pytest
import torch
from segment_anything.modeling import ImageEncoderViT
from segment_anything.modeling.common import LayerNorm2d
from segment_anything.modeling.image_encoder import Attention
from torch import nn

from explain_fakes import LargestTensor
from xaiclip.errors import ConfigError
from xaiclip.models.segmenters import encoder as e
from xaiclip.models.segmenters.compact import CONFIG, build
from xaiclip.models.segmenters.sam import SamSegmenter


def shaken(model: nn.Module) -> nn.Module:
    """Zeros, as positions begin, would hide what they do."""
    torch.manual_seed(3)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.15)
    return model.eval().requires_grad_(False)


def vit(size: int = 96, window: int = 0, positions: bool = True, absolute: bool = True):
    return shaken(
        ImageEncoderViT(
            img_size=size,
            patch_size=16,
            embed_dim=48,
            depth=3,
            num_heads=3,
            out_chans=16,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
            use_abs_pos=absolute,
            use_rel_pos=positions,
            window_size=window,
            global_attn_indexes=(1,),
        )
    )


@pytest.mark.parametrize("window", [0, 2, 4])  # 4 does not divide the grid of 6: padding
@pytest.mark.parametrize("positions", [True, False])
@pytest.mark.parametrize("images", [1, 3])
def test_equals_the_stock_encoder(window: int, positions: bool, images: int) -> None:
    encoder = vit(window=window, positions=positions)
    x = torch.rand(images, 3, 96, 96)
    expected = encoder(x)
    assert expected.std() > 0.05
    torch.testing.assert_close(e.encode_images(encoder, x), expected, atol=1e-5, rtol=1e-5)


def test_without_absolute_positions() -> None:
    encoder = vit(absolute=False)
    x = torch.rand(2, 3, 96, 96)
    torch.testing.assert_close(e.encode_images(encoder, x), encoder(x), atol=1e-5, rtol=1e-5)


def test_equals_the_stock_encoder_on_the_compact_model() -> None:
    encoder = shaken(build({**CONFIG, "depth": 2})).image_encoder
    x = torch.rand(2, 3, 256, 256)
    torch.testing.assert_close(e.encode_images(encoder, x), encoder(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("grid", [(5, 5), (4, 7), (7, 4)])
@pytest.mark.parametrize("held", [1, 300, 2**22])  # a row at a time, a few, all
def test_attention_in_pieces(grid: tuple[int, int], held: int, monkeypatch) -> None:
    monkeypatch.setattr(e, "_BIAS", held)
    attention = shaken(Attention(24, 2, use_rel_pos=True, input_size=grid))
    x = torch.randn(2, *grid, 24)
    torch.testing.assert_close(e.attend(attention, x), attention(x), atol=1e-5, rtol=1e-5)


def test_positions_of_another_grid_are_resampled_as_the_stock_does() -> None:
    attention = shaken(Attention(24, 2, use_rel_pos=True, input_size=(4, 4)))
    x = torch.randn(1, 6, 6, 24)
    torch.testing.assert_close(e.attend(attention, x), attention(x), atol=1e-5, rtol=1e-5)


def test_no_attention_matrix_is_held() -> None:
    """The stock holds heads · n² numbers."""
    attention = shaken(Attention(24, 2, use_rel_pos=True, input_size=(32, 32)))
    x, whole = torch.randn(1, 32, 32, 24), 2 * (32 * 32) ** 2
    with LargestTensor() as stock:
        attention(x)
    before, e._BIAS = e._BIAS, whole // 16
    try:
        with LargestTensor() as fast:
            e.attend(attention, x)
    finally:
        e._BIAS = before
    assert stock.numel >= whole
    assert fast.numel <= whole // 8


def test_channel_norm() -> None:
    norm = shaken(LayerNorm2d(7))
    mine = e.ChannelNorm(7)
    mine.load_state_dict(norm.state_dict())
    x = torch.randn(2, 7, 5, 6)
    torch.testing.assert_close(mine(x), norm(x), atol=1e-6, rtol=1e-5)


def test_the_setting_chooses_the_encoder(monkeypatch) -> None:
    sam = shaken(build({**CONFIG, "depth": 1}))
    x = torch.rand(1, 3, 256, 256)
    fast, stock = (SamSegmenter(sam, "one", attention=name) for name in ("fast", "stock"))
    torch.testing.assert_close(fast.encode(x), stock.encode(x), atol=1e-5, rtol=1e-5)
    monkeypatch.setattr(
        "xaiclip.models.segmenters.sam.encode_images", lambda *_: torch.full((1,), 7.0)
    )
    assert fast.encode(x).tolist() == [7]
    assert stock.encode(x).shape == (1, 128, 16, 16)
    with pytest.raises(ConfigError, match="attention 'flash'"):
        SamSegmenter(sam, "one", attention="flash")
