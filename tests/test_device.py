"""Device, precision, seeds."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from xaiclip import device as d
from xaiclip.errors import ConfigError


def test_auto_takes_what_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    for cuda, mps, expected in ((True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda cuda=cuda: cuda)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda mps=mps: mps)
        assert d.choose_device("auto").type == expected
    assert d.choose_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["gpu", "cuda", "mps", "cuda:1", "meta"])
def test_a_device_that_is_not_there_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=name):
        d.choose_device(name)


def test_only_existing_cuda_indices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert d.choose_device("cuda:1").index == 1
    with pytest.raises(ConfigError, match="cuda:2"):
        d.choose_device("cuda:2")


@pytest.mark.parametrize(
    ("kind", "name", "bf16", "expected"),
    [
        ("cpu", "auto", False, "fp32"),
        ("cpu", "bf16", False, "bf16"),
        ("mps", "auto", False, "bf16"),
        ("cuda", "auto", True, "bf16"),
        ("cuda", "auto", False, "fp16"),
        ("cuda", "fp32", True, "fp32"),
    ],
)
def test_precision(
    kind: str, name: str, bf16: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: bf16)
    assert d.choose_precision(kind, name) == expected


@pytest.mark.parametrize(("kind", "name"), [("cpu", "fp16"), ("mps", "fp16"), ("cpu", "int8")])
def test_precision_that_cannot_be(kind: str, name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        d.choose_precision(kind, name)


def test_autocast_computes_in_the_precision() -> None:
    layer, x = torch.nn.Linear(4, 4), torch.ones(2, 4)
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        with d.autocast("cpu", precision):
            assert layer(x).dtype == dtype
    with d.autocast("cpu", "bf16"), d.autocast("cpu", "fp32"):
        assert layer(x).dtype == torch.float32


def test_threads_are_at_least_one() -> None:
    before = torch.get_num_threads()
    d.set_threads(0)
    assert torch.get_num_threads() == 1
    torch.set_num_threads(before)


@pytest.mark.slow
def test_operations_come_one_after_the_other() -> None:
    """In a process of its own: it can be said once only, before any work."""
    code = (
        "import torch; from xaiclip.device import set_threads; set_threads(3); set_threads(2); "
        "print(torch.get_num_threads(), torch.get_num_interop_threads())"
    )
    scripts = str(Path(d.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": scripts},
    )
    assert done.stdout.split() == ["2", "1"]


def test_a_batch_is_halved_until_it_fits() -> None:
    sizes = []

    def double(part: torch.Tensor) -> torch.Tensor:
        sizes.append(len(part))
        if len(part) > 3:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return 2 * part

    x = torch.arange(10.0)
    assert torch.equal(torch.cat(d.in_batches(double, x, 16)), 2 * x)
    assert sizes == [10, 5, 2, 2, 2, 2, 2]
    assert d.in_batches(double, x[:0], 4) == []


@pytest.mark.parametrize(
    ("error", "expected"),
    [(MemoryError(), MemoryError), (RuntimeError("shapes do not match"), RuntimeError)],
)
def test_what_never_fits_or_is_another_fault(error: Exception, expected: type) -> None:
    def fail(part: torch.Tensor) -> None:
        raise error

    with pytest.raises(expected):
        d.in_batches(fail, torch.zeros(4), 4)
