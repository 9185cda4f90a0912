from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xaiclip.evaluate.cost import Gflops, measure, networks, segmenter_cost

TOKENS, WIDTH, HEADS = 16, 8, 2
LINEAR = TOKENS * (3 * WIDTH * WIDTH + 3 * WIDTH) + TOKENS * (WIDTH * WIDTH + WIDTH)
ATTENTION = 2 * TOKENS * TOKENS * WIDTH  # q·kᵀ and a·v, over all heads
EINSUM = TOKENS * TOKENS * WIDTH


class Attention(nn.Module):
    """One attention layer, written as SAM writes it, fused, or with an einsum more."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        batch = len(x)
        q, k, v = self.qkv(x).reshape(batch, TOKENS, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        if self.kind == "fused":
            mixed = F.scaled_dot_product_attention(q, k, v)
        else:
            weights = q @ k.transpose(-1, -2)
            if self.kind == "einsum":
                weights = weights + torch.einsum("bhnd,md->bhnm", q, k[0, 0])
            mixed = weights.softmax(-1) @ v
        return self.out(mixed.transpose(1, 2).reshape(batch, TOKENS, WIDTH))


def macs(gflops: float) -> int:
    return round(gflops * 1e9 / 2)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize(("kind", "extra"), [("plain", 0), ("fused", 0), ("einsum", EINSUM)])
def test_attention_by_hand(kind: str, extra: int, context: Callable[[], Any]) -> None:
    model = Attention(kind).eval()
    cost = measure(context()(model.forward), torch.rand(1, TOKENS, WIDTH), [model])
    assert macs(cost.ptflops) == LINEAR  # misses attention
    assert macs(cost.total) == LINEAR + ATTENTION + extra


def test_multi_head_attention_is_not_free() -> None:
    model = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True).eval()
    x = torch.rand(1, TOKENS, WIDTH)
    cost = measure(lambda x: model(x, x, x, need_weights=False), x, [model])
    assert macs(cost.total) == LINEAR + ATTENTION
    assert torch.backends.mha.get_fastpath_enabled()


def test_convolution_by_hand() -> None:
    model = nn.Conv2d(3, 4, 5, bias=False)
    cost = measure(model, torch.rand(1, 3, 9, 9), [model])
    assert macs(cost.total) == macs(cost.ptflops) == 4 * 3 * 25 * 5 * 5


def test_nothing_is_counted_twice_or_left_behind() -> None:
    outer = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    once = measure(outer, torch.rand(1, 4), [outer])
    again = measure(outer, torch.rand(1, 4), [outer, outer[0], outer])
    assert once == again
    for module in outer.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
        assert not hasattr(module, "__flops__")


def test_a_failing_network_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RuntimeError, match="could not count"):
        measure(nn.Linear(3, 3), torch.rand(1, 4), [])


@dataclass
class Boxes:
    organs: tuple[str, ...]
    boxes: Tensor


class Toy:
    """A segmenter whose cost is easy: one product to encode, one per organ to decode."""

    name, input_size = "toy", 6

    def __init__(self) -> None:
        self.encoder, self.decoder = nn.Linear(6, 5, bias=False), nn.Linear(5, 4, bias=False)

    def prepare(self, image: Any) -> Tensor:
        assert image.dtype == "uint8"
        return torch.zeros(3, 6, 6)

    @torch.inference_mode()
    def encode(self, inputs: Tensor) -> Tensor:
        return self.encoder(inputs)

    @torch.inference_mode()
    def decode(self, embeddings: Tensor, prompts: Boxes) -> Tensor:
        return torch.stack([self.decoder(embeddings) for _ in prompts.organs], dim=1)


@pytest.mark.parametrize("organs", [1, 3])
def test_segmenter_cost(organs: int) -> None:
    prompts = Boxes(("liver",) * organs, torch.zeros(organs, 4))
    cost = segmenter_cost(Toy(), prompts)  # type: ignore[arg-type]
    assert macs(cost.encode.total) == 3 * 6 * 6 * 5
    assert macs(cost.decode.total) == organs * 3 * 6 * 5 * 4
    forwards = (cost.forward * 226 + Gflops(1.0, 2.0)).columns()
    assert forwards["gflops_total"] == pytest.approx(226 * cost.forward.total + 2)
    assert forwards["gflops_ptflops"] == pytest.approx(226 * cost.forward.ptflops + 1)


def test_networks_of_a_holder() -> None:
    toy = Toy()
    assert networks(toy) == [toy.encoder, toy.decoder]
    assert networks(toy.encoder) == [toy.encoder]
