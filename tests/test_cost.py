import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from test_backbone import TOKENIZER, small_clip
from xaiclip.localizer.backbone import Backbone, BackboneSettings, load_backbone
from xaiclip.localizer.model import SIZE, Localizer, LocalizerSettings, save_localizer
from xaiclip.metrics.cost import Gflops, localizer_cost, measure, segmenter_cost
from xaiclip.models.segmenters.base import networks_of

ROOT = Path(__file__).parents[1]
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


class Mixed(nn.Module):
    """Modules and functions: ptflops' pytorch backend counts the two in different ways."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(3, 4, 3, bias=False), nn.ReLU(), nn.Conv2d(4, 2, 1, bias=False)
        )
        self.weights = nn.Parameter(torch.rand(5, 7))

    def forward(self, x: Tensor) -> Tensor:
        return torch.matmul(F.gelu(self.net(x)), self.weights).softmax(-1)


@pytest.mark.parametrize("images", [1, 2, 3, 7])
def test_n_images_cost_n_times_one(images: int) -> None:
    model = Mixed()
    one, all_ = (measure(model, torch.rand(n, 3, 7, 7), [model]) for n in (1, images))
    assert macs(one.ptflops) > macs(one.total) == 3 * 4 * 9 * 25 + 4 * 2 * 25 + 2 * 25 * 7
    assert macs(all_.ptflops) == images * macs(one.ptflops)
    assert macs(all_.total) == images * macs(one.total)


def test_all_that_a_function_does_is_counted() -> None:
    """One image, then two: as a localizer that moves its slice."""
    model = Mixed()
    one = measure(model, torch.rand(1, 3, 7, 7), [model])
    three = measure(lambda x: [model(x), model(torch.cat([x, x]))], torch.rand(1, 3, 7, 7), [model])
    assert macs(three.ptflops) == 3 * macs(one.ptflops)
    assert macs(three.total) == 3 * macs(one.total)


def test_the_localizer_costs_four_forwards_of_one_slice() -> None:
    localizer = Localizer(
        Backbone(small_clip(), TOKENIZER), ("background", "liver"), LocalizerSettings(4, width=32)
    ).eval()
    one = measure(localizer, torch.zeros(1, SIZE, SIZE, dtype=torch.uint8), [localizer])
    seen = []
    handle = localizer.backbone.register_forward_pre_hook(lambda _, x: seen.append(len(x[0])))
    cost = localizer_cost(localizer)
    handle.remove()
    assert seen == 2 * [1, 1, 1, 1]  # once for each backend
    assert macs(cost.total) == 4 * macs(one.total) > 0
    assert macs(cost.ptflops) == 4 * macs(one.ptflops) > 0


@pytest.mark.slow
def test_the_script_writes_what_runs(tmp_path: Path) -> None:
    localizer = Localizer(load_backbone(BackboneSettings("compact")), ("background", "liver"))
    save_localizer(tmp_path / "localizer.safetensors", localizer)
    job = {
        "params": {
            "cfg": {
                "organs": ["spleen", "liver", "pancreas"],
                "segmenter": {"model": "compact", "attention": "fast"},
                "device": "cpu",
                "precision": "fp32",
                "backbone": "compact",
                "pretrained": None,
            }
        },
        "input": {"localizer": str(tmp_path / "localizer.safetensors")},
    }
    code = f"""
import json, runpy, sys
from types import SimpleNamespace as Names
sys.path.insert(0, {str(ROOT / "scripts")!r})
job = json.loads({json.dumps(job)!r}, object_hook=lambda d: d if "organs" in d or "model" in d
                 else Names(**d))
vars(job).update(threads=1, log=[], output=[{str(tmp_path / "cost.json")!r}], rule="cost",
                 resources=Names())
runpy.run_path({str(ROOT / "scripts/cost.py")!r}, {{"snakemake": job}})
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    cost = json.loads((tmp_path / "cost.json").read_text())
    assert cost["decoded_organs"] == 3
    expected = localizer_cost(localizer)
    assert cost["localizer"] == {"ptflops": expected.ptflops, "total": expected.total}
    # segment_anything's own encoder, whatever the study runs: 1.97 GFLOPs at 256 px
    assert cost["encode"]["total"] == pytest.approx(1.9727, abs=1e-4)


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
    assert macs(cost.forward.total) == 3 * 6 * 6 * 5 + organs * 3 * 6 * 5 * 4


def test_counts_add_up() -> None:
    one, other = Gflops(1.0, 2.0), Gflops(10.0, 40.0)
    assert (one * 226 + other).columns() == {"gflops_ptflops": 236.0, "gflops_total": 492.0}


def test_networks_of_a_holder() -> None:
    toy = Toy()
    assert networks_of(toy) == {"encoder": toy.encoder, "decoder": toy.decoder}
    assert networks_of(toy.encoder) == {"": toy.encoder}
