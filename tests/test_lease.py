"""Concurrent jobs take different GPUs; threads are those that Snakemake granted."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from xaiclip.workflow.lease import VISIBLE, accelerated, gpus, leased_gpu

SCRIPTS = Path(__file__).parents[1] / "scripts"


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Pretends a number of GPUs: a program nvidia-smi, and a temporary folder of its own."""
    monkeypatch.delenv(VISIBLE, raising=False)
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
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
from xaiclip.workflow.lease import leased_gpu
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


def _usual(tmp_path):
    return tmp_path / f"xaiclip-gpu-{os.getuid()}"


def _of_another_user(path, monkeypatch):
    """As if somebody else had made it: only root could really."""
    path.mkdir(mode=0o700)
    lstat = os.lstat

    def other(place, **options):
        found = list(lstat(place, **options))
        found[4] += Path(place) == path
        return os.stat_result(found)

    monkeypatch.setattr(os, "lstat", other)


@pytest.mark.parametrize(
    "planted", ["file", "link", "dangling", "link to own", "open to all", "pipe", "another user's"]
)
def test_what_others_put_in_the_leases_place_blocks_nobody(
    machine, tmp_path, monkeypatch, planted, caplog
):
    machine(1)
    usual = _usual(tmp_path)
    target = tmp_path / "target"
    match planted:
        case "file":
            usual.write_text("")
        case "link":
            target.mkdir(mode=0o777)
            usual.symlink_to(target)
        case "dangling":
            usual.symlink_to(target)
        case "link to own":
            target.mkdir(mode=0o700)
            usual.symlink_to(target)
        case "open to all":
            usual.mkdir()
            usual.chmod(0o777)
        case "pipe":
            os.mkfifo(usual)
        case "another user's":
            _of_another_user(usual, monkeypatch)
    with leased_gpu() as gpu:
        assert gpu == "GPU-0"
        # and the next job sees that it is taken
        with leased_gpu() as shared:
            assert shared == "GPU-0"
            assert "is shared with 1 other job" in caplog.text
    assert not target.exists() or list(target.iterdir()) == []
    held = tmp_path / "home" / ".cache" / "xaiclip" / "gpu"
    assert held.stat().st_mode & 0o777 == 0o700
    assert [path.name for path in held.iterdir()] == ["GPU-0.0", "GPU-0.1"]


def test_the_runtime_folder_comes_first_if_it_is_ones_own(machine, tmp_path, monkeypatch):
    machine(1)
    runtime = tmp_path / "runtime"
    runtime.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    with leased_gpu():
        assert (runtime / "xaiclip-gpu" / "GPU-0.0").is_file()
        assert not _usual(tmp_path).exists()
    runtime.chmod(0o755)
    with leased_gpu():
        assert (_usual(tmp_path) / "GPU-0.0").is_file()


def test_a_lock_that_is_a_link_is_not_followed(machine, tmp_path):
    machine(2)
    _usual(tmp_path).mkdir(mode=0o700)
    (_usual(tmp_path) / "GPU-0.0").symlink_to(tmp_path / "victim")
    with leased_gpu() as gpu:
        assert gpu == "GPU-1"
    assert not (tmp_path / "victim").exists()


def test_no_place_at_all_costs_the_lease_and_not_the_job(machine, tmp_path, monkeypatch, caplog):
    machine(1)
    _usual(tmp_path).write_text("")
    (tmp_path / "home").write_text("")
    with leased_gpu() as gpu:
        assert gpu is None
    assert "takes the first GPU" in caplog.text


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


@pytest.mark.slow
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


@pytest.mark.parametrize(
    ("uuids", "system", "driver", "expected"),
    [
        ({}, "linux", False, False),
        ({"GPU-1": "GPU-1"}, "linux", False, True),
        ({}, "darwin", False, True),
        ({}, "linux", True, True),
    ],
)
def test_a_gpu_of_any_maker_is_seen(monkeypatch, uuids, system, driver, expected):
    monkeypatch.setattr("xaiclip.workflow.lease.gpus", lambda: uuids)
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(Path, "exists", lambda path: str(path) == "/dev/kfd" and driver)
    assert accelerated() is expected
