"""The benchmark's book-keeping; `make benchmark` itself is run by people."""

import importlib
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from explain_fakes import PROMPTS, FakeSegmenter, picture

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def modules(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield importlib.import_module("benchmark"), importlib.import_module("peers")
    for name in ("benchmark", "page", "peers"):
        sys.modules.pop(name)


@pytest.mark.slow
def test_systems_make_the_forwards_that_are_reported(modules):
    benchmark, peers = modules
    bench = peers.Bench(FakeSegmenter(), picture(), PROMPTS, parts=2)
    systems = {
        "floor": peers.floor(10),
        "ours": peers.ours("occlusion", {"window": 256, "stride": 128}),
        "captum": peers.captum(together=True),
        "captum, one run an organ": peers.captum(together=False),
        "monai": peers.monai,
        "RISE's formula": peers.rise_formula(6, together=True),
        "RISE's formula, one run an organ": peers.rise_formula(6, together=False),
        "lime": peers.lime_package(6, together=True),
        "lime, one run an organ": peers.lime_package(6, together=False),
    }
    found = benchmark.compare("occlusion", bench, systems, 2)
    rows, ledger = found["benchmark"], found["phases"]
    frame = pd.DataFrame(rows).set_index("system")
    assert list(pd.DataFrame(rows).columns) == benchmark.COLUMNS["benchmark"]
    assert list(pd.DataFrame(ledger).columns) == benchmark.COLUMNS["phases"]
    assert frame.forwards["floor"] == frame.forwards["ours"] == 10
    for peer, count in {"captum": 10, "RISE's formula": 6, "lime": 6}.items():
        assert frame.forwards[peer] == count
        assert frame.forwards[f"{peer}, one run an organ"] == 2 * count
    assert frame.ratio_to_ours["ours"] == frame.ratio_to_floor["floor"] == 1
    assert (frame.seconds > 0).all()
    assert {row["phase"] for row in ledger} >= {"perturb", "encode", "decode", "aggregate"}
    assert sum(row["share"] for row in ledger) == pytest.approx(1)


def test_captum_gives_the_same_maps_in_both_modes(modules):
    """And they are those of ours."""
    _, peers = modules
    bench = peers.Bench(FakeSegmenter(), picture(), PROMPTS, parts=2)
    (together,) = peers.captum(together=True)(bench)
    alone = peers.captum(together=False)(bench)
    assert together.shape == (2, 3, 128, 128)
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=1e-4)
    ours = peers.ours("occlusion", {"window": 256, "stride": 128})(bench)
    assert [one.value for one in ours] == ["soft_dice"] * 2
    for one, other in zip(ours, together, strict=True):
        np.testing.assert_allclose(one.map[2::4, 2::4], other[0], atol=1e-5)
    assert not torch.allclose(together[0], together[1], atol=1e-2)


@pytest.mark.slow
def test_every_peer_stands_in_its_best_mode_first(modules, monkeypatch):
    """What comes after the comma is no better way, but the usual one."""
    benchmark, _ = modules
    arguments = benchmark.argparse.Namespace(quick=True, repeats=1, threads=1, precision="fp32")
    found = {}

    def compare(task, bench, systems, repeats):
        found[task] = list(systems)
        return {"benchmark": [], "phases": []}

    monkeypatch.setattr(benchmark, "compare", compare)
    for name, run in benchmark.tasks(arguments):
        if "organs, " in name:
            run()
    assert len(found) == 3
    for systems in found.values():
        for name in systems:
            peer, _, mode = name.partition(", ")
            if mode:
                assert mode == "one run an organ"
                assert systems.index(peer) < systems.index(name)
    named = {name for systems in found.values() for name in systems}
    assert {"captum", "lime", "RISE's formula", "monai", "xaitk-saliency"} <= named


def test_rise_formula_is_the_mean_of_masks_weighted_by_scores(modules):
    _, peers = modules
    bench = peers.Bench(FakeSegmenter(), picture(), PROMPTS)
    alone = peers.rise_formula(5, together=False)(bench)
    together = peers.rise_formula(5, together=True)(bench)
    torch.testing.assert_close(torch.cat(alone), together[0], atol=1e-5, rtol=1e-4)


def test_peak_memory_sees_a_large_array(modules):
    benchmark, _ = modules
    if np.isnan(benchmark.resident()):
        pytest.skip("this system does not tell a process's resident memory")
    with benchmark.Peak() as peak:
        held = np.ones(25_000_000)  # 200 MB
        benchmark.time.sleep(0.1)
    assert held.nbytes / 1e6 * 0.9 < peak.megabytes < 1000


def test_a_table_for_the_page(modules):
    benchmark, _ = modules
    frame = pd.DataFrame({"system": ["ours", "floor"], "seconds": [1.234, np.nan]})
    assert benchmark.markdown(frame, {"seconds": 1}).splitlines() == [
        "| system | seconds |",
        "| --- | --- |",
        "| ours | 1.2 |",
        "| floor |  |",
    ]


def test_the_page_has_a_place_for_the_numbers(modules):
    benchmark, _ = modules
    page = (BENCHMARKS.parent / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    assert page.count("<!-- numbers -->") == page.count("<!-- end of numbers -->") == 1
    again = benchmark.page_with("the numbers\n", page)
    assert "the numbers" in again
    assert benchmark.page_with("others\n", again) == benchmark.page_with("others\n", page)


def test_one_task_again_keeps_the_rows_of_others(modules, tmp_path):
    benchmark, _ = modules
    row = dict.fromkeys(benchmark.COLUMNS["benchmark"], 1)
    first = {"benchmark": [{**row, "task": "a"}, {**row, "task": "b", "seconds": 2}]}
    benchmark.merged(tmp_path, "benchmark", first, None).to_csv(tmp_path / "benchmark.csv")
    again = {"benchmark": [{**row, "task": "b", "seconds": 3}]}
    frame = benchmark.merged(tmp_path, "benchmark", again, "b").set_index("task")
    assert dict(frame.seconds) == {"a": 1, "b": 3}
    assert list(benchmark.merged(tmp_path, "benchmark", again, None).task) == ["b"]
