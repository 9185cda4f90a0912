"""What `make gpu` computes and says; the GPU itself is tried where there is one."""

import importlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from xaiclip.metrics.cost import Gflops, SegmenterCost

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
COST = SegmenterCost(encode=Gflops(1.0, 500.0), decode=Gflops(1.0, 20.0))


@pytest.fixture
def modules(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield importlib.import_module("gpu"), importlib.import_module("gpu_numbers")
    for name in ("gpu", "gpu_numbers", "benchmark", "page", "peers"):
        sys.modules.pop(name)


def ramp():
    return np.arange(12, dtype=np.float32).reshape(3, 4)


def test_the_agreement_of_two_maps(modules):
    _, numbers = modules
    same = numbers.agreement(ramp(), ramp())
    assert same == pytest.approx({"rank_correlation": 1, "max_difference": 0, "undefined": 0})
    squared = numbers.agreement(ramp() ** 2 / 11, ramp())  # the same order, another shape
    assert squared["rank_correlation"] == pytest.approx(1)
    assert squared["max_difference"] == pytest.approx(30 / 121)  # 5 or 6: 30/11 of 11
    assert numbers.agreement(-ramp(), ramp())["rank_correlation"] == pytest.approx(-1)
    moved = ramp()
    moved[0, 0] = np.nan
    assert numbers.agreement(moved, ramp())["undefined"] == 1
    assert numbers.agreement(ramp(), moved)["undefined"] == 1
    assert numbers.agreement(moved, moved) == pytest.approx(same)


def test_maps_without_a_range_are_equal_or_not(modules):
    _, numbers = modules
    flat = np.zeros((3, 4), np.float32)
    assert numbers.agreement(flat, flat)["rank_correlation"] == 1
    assert numbers.agreement(flat, flat)["max_difference"] == 0
    assert numbers.agreement(flat + 1, flat)["max_difference"] == np.inf
    for pair in ((ramp(), flat), (flat, ramp())):
        assert np.isnan(numbers.agreement(*pair)["rank_correlation"])
        assert not numbers.within(numbers.agreement(*pair), "fp32")
    nowhere = flat * np.nan
    assert not numbers.within(numbers.agreement(nowhere, nowhere), "fp32")


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, True),
        ({"rank_correlation": 0.998}, False),
        ({"max_difference": 0.011}, False),
        ({"undefined": 1}, False),
        ({"rank_correlation": np.nan}, False),
    ],
)
def test_what_is_near_enough(modules, changed, expected):
    _, numbers = modules
    row = {"rank_correlation": 0.9991, "max_difference": 0.009, "undefined": 0, **changed}
    assert numbers.within(row, "fp32") is expected
    assert numbers.within(row, "bf16") is None


def test_a_map_that_one_side_lacks_is_no_agreement(modules):
    _, numbers = modules
    liver, spleen = (
        SimpleNamespace(organ=organ, variant="x", value="soft_dice", map=ramp())
        for organ in ("liver", "spleen")
    )
    other = SimpleNamespace(organ="liver", variant="x", value="soft_dice", map=-ramp())
    for ours, theirs in (([liver, spleen], [other]), ([liver], [other, spleen])):
        rows = {row["organ"]: row for row in numbers.compared(ours, theirs)}
        assert rows["liver"]["rank_correlation"] == pytest.approx(-1)
        assert rows["spleen"]["undefined"] == 12
        assert numbers.within(rows["spleen"], "fp32") is False


def test_what_seconds_mean(modules):
    _, numbers = modules
    row = numbers.rates(8, (0.04, 0.01), COST, (400.0, 50.0))
    assert row["forwards_per_second"] == pytest.approx(160)
    assert row["encode_tflops"] == pytest.approx(100)
    assert row["encode_share_of_peak"] == pytest.approx(0.25)
    assert row["decode_tflops"] == pytest.approx(16)
    assert row["decode_share_of_peak"] == pytest.approx(0.32)
    assert numbers.batches(64) == [1, 2, 4, 8, 16, 32, 64]
    assert numbers.batches(5) == [1, 2, 4]


def no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "no GPU that PyTorch can use"),
        (["--device", "cuda"], "'cuda' is not available"),
        (["--device", "cpu", "--weights", "medsam=nowhere.pth"], "nowhere.pth"),
        (["--device", "cpu", "--weights", "medsan=x.pth"], "medsan"),
    ],
)
def test_without_a_gpu_or_a_model_it_says_so(
    modules, monkeypatch, tmp_path, capsys, arguments, words
):
    gpu, _ = modules
    no_gpu(monkeypatch)
    assert gpu.main([*arguments, "--quick", "--out", str(tmp_path / "x")]) == 2
    said = capsys.readouterr().err.strip()
    assert words in said
    assert "\n" not in said
    assert not (tmp_path / "x").exists()


def test_random_weights_are_for_speed_alone(modules):
    gpu, _ = modules
    compact, *others = gpu.subjects({}, quick=False)
    assert (compact.words, compact.published) == ("shipped", True)
    assert [one.name for one in others] == ["litemedsam", "medsam"]
    for one in others:
        assert (one.words, one.published) == ("random", False)
    given = gpu.subjects({"medsam": "a.pth"}, quick=False)
    assert {one.name: one.words for one in given} == {
        **{"compact": "shipped", "litemedsam": "random", "medsam": "file"}
    }
    assert [one.name for one in gpu.subjects({}, quick=True)] == ["compact"]


@pytest.mark.slow
def test_random_weights_make_a_model_that_can_be_timed(modules):
    gpu, _ = modules
    _, litemedsam, _ = gpu.subjects({}, quick=False)
    segmenter = litemedsam.load("cpu", "fp32")
    inputs = segmenter.prepare(np.arange(48, dtype=np.uint8).reshape(6, 8))
    with torch.inference_mode():
        assert segmenter.encode(inputs[None]).shape == (1, 256, 64, 64)


def test_calls_are_timed_after_a_warm_up(modules, monkeypatch):
    """On a clock that goes on with the calls alone; the first ones are slow."""
    gpu, _ = modules
    now, calls = [0.0], []

    def call():
        calls.append(None)
        now[0] += 9.0 if len(calls) <= 2 else 0.02

    monkeypatch.setattr(gpu.time, "perf_counter", lambda: now[0])
    assert gpu.seconds_of(call, torch.device("cpu"), 0.5) == pytest.approx(0.02)
    assert len(calls) == 2 + 1 + 5 * 5


def test_the_device_is_waited_for(modules, monkeypatch):
    gpu, _ = modules
    waited = []
    monkeypatch.setattr(torch.accelerator, "synchronize", waited.append)
    gpu.seconds_of(lambda: None, torch.device("cuda:1"), 0.0)
    assert waited == [torch.device("cuda:1")] * (1 + 1 + 5)


def test_a_batch_that_does_not_fit_ends_the_row(modules, monkeypatch):
    gpu, _ = modules

    class Small:
        device, input_size = torch.device("cpu"), 8

        def prepare(self, image):
            return torch.zeros(3, 8, 8)

        def encode(self, images):
            if len(images) > 2:
                raise RuntimeError("CUDA out of memory.")
            return images

        def decode(self, embeddings, prompts):
            return embeddings[:, :1]

    monkeypatch.setattr(gpu, "segmenter_cost", lambda *_: COST)
    subject = SimpleNamespace(name="small", words="file", load=lambda *_: Small())
    image, boxes = np.zeros((9, 8), np.uint8), {"liver": np.array([1, 1, 6, 7])}
    peaks = {"fp32": 2.0, "bf16": 4.0}
    rows = list(gpu.speed(subject, torch.device("cpu"), image, boxes, 16, peaks, 0.0))
    assert [(row["precision"], row["batch"]) for row in rows] == [
        *[("fp32", 1), ("fp32", 2), ("bf16", 1), ("bf16", 2)]
    ]
    for row in rows:
        assert row["encode_share_of_peak"] * peaks[row["precision"]] == pytest.approx(
            row["encode_tflops"]
        )
        assert row["decode_share_of_peak"] * peaks["fp32"] == pytest.approx(row["decode_tflops"])


def test_tf32_is_for_the_time_of_a_measurement(modules):
    gpu, _ = modules
    before = torch.get_float32_matmul_precision()
    with gpu.rounding("tf32"):
        assert torch.get_float32_matmul_precision() == "high"
    with gpu.rounding("fp32"):
        assert torch.get_float32_matmul_precision() == "highest"
    assert torch.get_float32_matmul_precision() == before
    assert [gpu.of_model(one) for one in ("tf32", "fp16")] == ["fp32", "fp16"]


def test_one_map_that_is_not_the_cpus_fails_the_run(modules, monkeypatch, tmp_path, capsys):
    gpu, numbers = modules
    row = dict.fromkeys(numbers.EQUALITY, 0.5) | {"model": "compact", "precision": "fp32"}
    quick = dict.fromkeys(numbers.SPEED, 0.5) | {"model": "compact", "precision": "fp32"}
    monkeypatch.setattr(gpu, "peak", lambda *_: 1.0)
    monkeypatch.setattr(gpu, "speed", lambda *_: iter([quick]))
    for verdicts, code in (((True, None), 0), ((True, False), 1), ((True, True), 0)):
        rows = [{**row, "within": one, "organ": k} for k, one in enumerate(verdicts)]
        monkeypatch.setattr(gpu, "equality", lambda *_, rows=rows: iter(rows))
        assert gpu.main(["--device", "cpu", "--quick", "--out", str(tmp_path)]) == code
        words = "1 maps in fp32 are not the CPU's" if code else "Every map in fp32 is the CPU's"
        assert words in capsys.readouterr().out
        assert words in (tmp_path / "summary.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_run_on_a_cpu(modules, tmp_path):
    """The same code, with the CPU in the place of the GPU: its own maps are its own."""
    gpu, numbers = modules
    assert gpu.main(["--device", "cpu", "--quick", "--out", str(tmp_path)]) == 0
    equal, fast = (pd.read_csv(tmp_path / f"{name}.csv") for name in ("equality", "speed"))
    assert list(equal.columns) == numbers.EQUALITY
    assert list(fast.columns) == numbers.SPEED
    assert set(equal.method) == {"occlusion", "rise", "lime"}
    assert equal.organ.nunique() == 5
    exact, rough = equal[equal.precision == "fp32"], equal[equal.precision == "bf16"]
    assert (exact.rank_correlation > 0.9999).all()
    assert exact.within.all()
    assert rough.within.isna().all()
    assert (rough.max_difference > 0).any()
    assert (rough.rank_correlation > 0.5).all()
    assert list(fast.batch) == [1, 2, 1, 2]
    assert (fast[["encode_seconds", "decode_seconds", "encode_share_of_peak"]] > 0).all(None)
    about = json.loads((tmp_path / "about.json").read_text(encoding="utf-8"))
    assert set(about["peak_tflops"]) == {"fp32", "bf16"}
    assert "## The best batch" in (tmp_path / "summary.md").read_text(encoding="utf-8")
