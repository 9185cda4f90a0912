"""Concurrent jobs take different GPUs; threads are those that Snakemake granted."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from xaiclip.lease import VISIBLE, gpus, leased_gpu

SCRIPTS = Path(__file__).parents[1] / "scripts"


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Pretends a number of GPUs: a program nvidia-smi, and a temporary folder of its own."""
    monkeypatch.delenv(VISIBLE, raising=False)
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)

    def build(count):
        program = tmp_path / "bin" / "nvidia-smi"
        program.parent.mkdir(exist_ok=True)
        lines = "\n".join(f"echo GPU-{i}" for i in range(count))
        program.write_text(f"#!/bin/sh\n{lines}\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")

    return build


HOLD = """
import sys
from xaiclip.lease import leased_gpu
with leased_gpu() as gpu:
    print(gpu, flush=True)
    sys.stdin.read()
"""


def hold():
    """Another process with a lease, until its input ends."""
    job = subprocess.Popen(
        [sys.executable, "-c", HOLD],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(SCRIPTS)},
    )
    return job, job.stdout.readline().strip()


def test_two_processes_take_two_gpus_and_give_them_back(machine, caplog):
    machine(2)
    one, first = hold()
    two, second = hold()
    assert {first, second} == {"GPU-0", "GPU-1"}
    with leased_gpu() as shared:  # never waits
        assert shared == "GPU-0"
        assert "shared" in caplog.text
    one.kill()  # the lock goes with the process, however it ends
    one.wait()
    with leased_gpu() as again:
        assert again == first
        assert os.environ[VISIBLE] == first
    assert VISIBLE not in os.environ
    two.communicate("")


@pytest.mark.parametrize(
    ("outer", "expected"),
    [
        (None, {"GPU-0": "GPU-0", "GPU-1": "GPU-1"}),
        ("1", {"1": "GPU-1"}),
        ("1,0", {"1": "GPU-1", "0": "GPU-0"}),
        ("MIG-abc", {"MIG-abc": "MIG-abc"}),
        ("5", {"5": "77-5"}),
        ("0,-1,1", {"0": "GPU-0"}),
        ("", {}),
        ("-1", {}),
    ],
)
def test_an_outer_choice_is_the_limit(machine, monkeypatch, outer, expected):
    machine(2)
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    if outer is not None:
        monkeypatch.setenv(VISIBLE, outer)
    assert gpus() == expected
    with leased_gpu() as gpu:
        assert gpu == next(iter(expected), None)
    assert os.environ.get(VISIBLE) == outer


def test_a_machine_without_gpus_leases_nothing(machine, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with leased_gpu() as gpu:
        assert gpu is None
    machine(0)
    with leased_gpu() as gpu:
        assert gpu is None


JOB = """
import os, types
from _job import job
space = types.SimpleNamespace
snakemake = space(
    threads=1, log=[], rule="test", params=space(cfg={"device": @}), resources=space(gpu=1),
    scriptdir=os.getcwd(),
)
with job(snakemake):
    import cv2, torch, SimpleITK
    print(cv2.getNumThreads(), torch.get_num_threads())
    print(SimpleITK.ProcessObject.GetGlobalDefaultNumberOfThreads())
    print(os.environ.get("CUDA_VISIBLE_DEVICES"))
"""


@pytest.mark.parametrize(("device", "gpu"), [("auto", "GPU-0"), ("cpu", "None")])
def test_a_job_has_its_threads_and_its_gpu(machine, device, gpu):
    machine(1)
    done = subprocess.run(
        [sys.executable, "-c", JOB.replace("@", repr(device))],
        capture_output=True,
        text=True,
        check=True,
        cwd=SCRIPTS,
        env={**os.environ, "PYTHONPATH": str(SCRIPTS), "OMP_NUM_THREADS": "2"},
    )
    assert done.stdout.split() == ["1", "1", "1", gpu]
