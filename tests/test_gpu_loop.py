"""What the loop of forwards asks of a GPU, seen without one: on ``meta``, which only has shapes."""

import weakref
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from explain_fakes import PROMPTS, FakeSegmenter, context, picture
from segmenter_models import tiny
from xaiclip import device as d
from xaiclip.clock import Clock
from xaiclip.explain import engine, gradients
from xaiclip.explain.plan import CellPlan, Plan, SuperpixelPlan, WindowPlan, cell_side
from xaiclip.models.segmenters import encoder as e
from xaiclip.models.segmenters.decoder import decode_pairs
from xaiclip.models.segmenters.frame import cut
from xaiclip.targets import SegmenterScorer


class Traffic(TorchDispatchMode):
    """Names of the operations that read numbers of the CPU for another device; counts all."""

    def __init__(self) -> None:
        super().__init__()
        self.from_host: list[str] = []
        self.made: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        # a number, as in `x + 1`, goes with the call
        read, made = (
            [one for one in tree_leaves(some) if isinstance(one, Tensor) and one.ndim]
            for some in ((args, kwargs), result)
        )
        if any(one.is_cpu for one in read) and any(not one.is_cpu for one in read + made):
            self.from_host.append(str(func))
        self.made.append(str(func))
        return result


def windows(count: int, seed: int = 0) -> WindowPlan:
    corner = np.random.default_rng(seed).integers(0, 448, (count, 2))
    edges = np.concatenate([corner, corner + (64, 32)], 1).astype(np.int32)
    return WindowPlan(np.ones((count, 2), bool), count, edges)


def superpixels(count: int, seed: int = 0) -> SuperpixelPlan:
    tiles = (np.arange(512)[:, None] // 128 * 4 + np.arange(512) // 128 - 1).astype(np.int32)
    on = np.random.default_rng(seed).random((count, 15)) < 0.5
    return SuperpixelPlan(np.ones((count, 2), bool), count, tiles, on)


def cells(count: int, seed: int = 0) -> CellPlan:
    rng = np.random.default_rng(seed)
    shifts = rng.integers(0, cell_side(5), (count, 2), dtype=np.int32)
    region = np.ones((512, 512), bool)
    return CellPlan(
        np.ones((count, 2), bool), count, rng.random((count, 5, 5)) < 0.5, shifts, region
    )


KINDS = pytest.mark.parametrize("make", [windows, superpixels, cells])


@KINDS
def test_masks_are_made_on_the_device_from_what_came_with_the_first_batch(make):
    plan = make(6)
    with Traffic() as first:
        plan.keep(0, 2, 64, "meta")
    assert first.from_host
    with Traffic() as second:
        kept = plan.keep(2, 6, 64, "meta")
    assert second.from_host == []
    assert (kept.shape, kept.device.type) == ((4, 1, 64, 64), "meta")


@KINDS
def test_no_plan_draws_what_another_brought(make):
    for seed in range(12):  # one after the other: they may come to lie at the same place
        drawn = make(3, seed).keep(1, 3, 32)
        assert torch.equal(drawn, make(3, seed).take(slice(1, 3)).keep(0, 2, 32))
    first, second = make(3, 1), make(3, 2)
    kept = [plan.keep(0, 3, 32) for plan in (first, second, first)]
    assert torch.equal(kept[0], kept[2])
    assert not torch.equal(kept[0], kept[1])


def test_a_plan_that_compares_its_fields_is_drawn_too():
    """A dataclass of someone who forgot ``eq=False`` has no hash."""
    plan = windows(2)

    class Compared(WindowPlan):
        __hash__ = None

        def __eq__(self, other):
            raise AssertionError("arrays have no truth")

    same = Compared(plan.members, plan.n_full, plan.windows)
    assert isinstance(same, Plan)
    assert torch.equal(same.keep(0, 2, 32), plan.keep(0, 2, 32))


def test_the_encoder_reads_nothing_of_the_host():
    encoder = tiny().image_encoder.to("meta").requires_grad_(False)
    with Traffic() as seen:
        out = e.encode_images(encoder, torch.empty(2, 3, 64, 64, device="meta"))
    assert seen.from_host == []
    assert out.shape == (2, 32, 4, 4)


def test_the_decoder_reads_nothing_of_the_host_but_boxes():
    sam = tiny().to("meta").requires_grad_(False)
    boxes = torch.empty(1, 2, 4, device="meta")
    with Traffic() as seen:
        decode_pairs(sam, torch.empty(3, 32, 4, 4, device="meta"), boxes)
    assert seen.from_host == []


def test_a_gpu_gets_few_large_calls(monkeypatch):
    """A CPU works on what its caches hold."""
    calls = []
    attend = F.scaled_dot_product_attention

    def counted(*args, **kwargs):
        calls.append(args[0].device.type)
        return attend(*args, **kwargs)

    monkeypatch.setattr(F, "scaled_dot_product_attention", counted)
    monkeypatch.setattr(e, "_BIAS", 64)  # of an attention of 2 × 16²
    for device in ("cpu", "meta"):
        encoder = tiny().image_encoder.to(device).requires_grad_(False)
        e.encode_images(encoder, torch.zeros(1, 3, 64, 64, device=device))
    assert calls.count("cpu") > calls.count("meta") == 2
    pieces = {}
    for device in ("cpu", "meta"):
        sam = tiny().to(device).requires_grad_(False)
        boxes = torch.ones(1, 4, 4, device=device)
        with Traffic() as seen:
            decode_pairs(sam, torch.zeros(5, 32, 4, 4, device=device), boxes)
        pieces[device] = sum("bmm" in name for name in seen.made)
    assert pieces["cpu"] - pieces["meta"] == 2  # 20 pairs: 8, 8 and 4, or all of them


def test_the_slices_part_of_the_logits_is_looked_up_with_what_came_once():
    logits = torch.empty(2, 3, 16, 16, device="meta")
    cut(logits, (43, 64), 64)
    with Traffic() as seen:
        assert cut(logits, (43, 64), 64).shape == (2, 3, 10, 16)
    assert seen.from_host == []


def test_a_part_that_was_cut_without_gradients_is_cut_with_them():
    logits = torch.rand(1, 1, 16, 16, requires_grad=True)
    with torch.inference_mode():
        cut(logits.detach(), (41, 64), 64)
    cut(logits, (41, 64), 64).sum().backward()
    assert logits.grad is not None
    assert logits.grad.sum() == pytest.approx(160, rel=1e-4)  # 10 rows of 16: weights add up to 1


# --- memory that runs out ------------------------------------------------------------------------


class Full(FakeSegmenter):
    """Has memory for two images; remembers what it held when it ran out."""

    def __init__(self) -> None:
        super().__init__()
        self.held: list[weakref.ref[Tensor]] = []

    def encode(self, inputs):
        if len(inputs) > 2:
            activations = inputs * 2
            self.held += [weakref.ref(inputs), weakref.ref(activations)]
            raise RuntimeError("CUDA out of memory.")
        return super().encode(inputs)


def test_what_did_not_fit_is_let_go_of_before_the_memory_is_handed_back(monkeypatch):
    model, freed = Full(), []
    monkeypatch.setattr(
        d, "free_cache", lambda where: freed.append((where, [one() for one in model.held]))
    )
    scorer = SegmenterScorer(model, PROMPTS, model.prepare(picture()))
    assert len(engine.score(windows(4), scorer, batch_size=4).scores) == 4
    assert freed == [(torch.device("cpu"), [None, None])]


def test_the_same_of_gradients(monkeypatch):
    model, freed = Full(), []
    monkeypatch.setattr(
        gradients, "free_cache", lambda where: freed.append((where, [one() for one in model.held]))
    )
    scorer = SegmenterScorer(model, PROMPTS, model.prepare(picture()))

    def gradient(question):
        images = question.inputs.repeat(question.batch, 1, 1, 1).requires_grad_()
        return question.score(images)[:1, None, None, None].detach()

    maps = gradients.differentiate(
        SimpleNamespace(gradient=gradient), scorer, context(organs=PROMPTS.organs), batch_size=4
    ).maps
    assert maps.shape[:2] == (2, 1)
    assert freed == [(torch.device("cpu"), [None, None])]


@pytest.mark.parametrize("kind", ["cuda", "mps", "cpu"])
def test_memory_is_handed_back_to_the_device_that_ran_out(kind, monkeypatch):
    asked = []
    for name in ("cuda", "mps"):
        monkeypatch.setattr(
            getattr(torch, name), "empty_cache", lambda name=name: asked.append(name)
        )
    d.free_cache(torch.device(kind))
    assert asked == ([] if kind == "cpu" else [kind])


# --- precision and time --------------------------------------------------------------------------


def test_float32_on_cuda_is_not_rounded_to_tf32():
    before = torch.backends.cudnn.allow_tf32
    try:
        for setting in (True, False):
            torch.backends.cudnn.allow_tf32 = setting
            with d.autocast("cuda", "fp32"):
                assert torch.backends.cudnn.allow_tf32 is False
                assert not torch.is_autocast_enabled("cuda")
            assert torch.backends.cudnn.allow_tf32 is setting
            with pytest.raises(ZeroDivisionError), d.autocast("cuda", "fp32"):
                _ = 1 / 0
            assert torch.backends.cudnn.allow_tf32 is setting
    finally:
        torch.backends.cudnn.allow_tf32 = before


def test_only_cuda_may_go_on_while_numbers_come(monkeypatch):
    seen = {}

    class Watched:
        def to(self, device, non_blocking):
            seen[device] = non_blocking

    for name in ("cuda", "cuda:1", "mps", "cpu"):
        d.bring(Watched(), name)
    assert seen == {"cuda": True, "cuda:1": True, "mps": False, "cpu": False}


@pytest.mark.parametrize("name", ["cuda:1", "mps", "cpu"])
def test_a_phase_waits_for_its_own_device(name, monkeypatch):
    waited = []
    monkeypatch.setattr(torch.accelerator, "synchronize", waited.append)
    with Clock(torch.device(name))("encode"):
        pass
    assert waited == ([] if name == "cpu" else [torch.device(name)] * 2)
