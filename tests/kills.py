"""A small study that is killed at random moments, and finished again.

python tests/kills.py DIRECTORY 50 [--until preprocess]
"""

import gzip
import json
import os
import random
import signal
import subprocess
import sys
import time
import zipfile
import zlib
from collections import Counter
from contextlib import suppress
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import psutil
import yaml
from matplotlib.image import imread
from safetensors.numpy import load_file

from xaiclip.workflow.verify import compared

ROOT = Path(__file__).parents[1]
TINY = yaml.safe_load((ROOT / "tests" / "tiny.yaml").read_text(encoding="utf-8"))
STUDY = {
    **TINY,
    "run": "kills",
    "data": {
        **TINY["data"],
        "phantom": {"train": {"CT": 2, "MR": 0}, "test": {"CT": 1, "MR": 1}},
    },
    "cases_per_job": 1,
    "localizer": {"epochs": 1, "ablation": False},
    "explain": {**TINY["explain"], "methods": ["occlusion", "rise"], "guidances": ["full", "roi"]},
    "device": "cpu",
}
#: Everything at once, as when the power fails; Snakemake alone, whose jobs run on; one job alone.
KINDS = ("all", "head", "job")
LIMIT = 3600  # seconds after which a run counts as hanging


def command(directory, *arguments, config=STUDY):
    """The command line of a run in ``directory``."""
    path = Path(directory, "study.json")
    path.write_text(json.dumps(config), encoding="utf-8")
    parts = (sys.executable, "-m", "snakemake", "--snakefile", ROOT / "Snakefile", "--directory")
    parts += (directory, "--configfile", path, "--cores", "2", *arguments)
    return [str(part) for part in parts]


def start(directory, *arguments, config=STUDY, before=(), **options):
    """A run in the background; its output goes to the end of output.txt."""
    with Path(directory, "output.txt").open("a") as output:
        return subprocess.Popen(
            [*before, *command(directory, *arguments, config=config)],
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            start_new_session=True,
            env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
            **options,
        )


def run(directory, *arguments, limit=LIMIT, **options):
    """A run to its end: exit status and its own part of the output.

    Raises:
        subprocess.TimeoutExpired: it hangs; it is killed.
    """
    path = Path(directory, "output.txt")
    before = path.stat().st_size if path.exists() else 0
    process = start(directory, *arguments, **options)
    try:
        code = process.wait(timeout=limit)
    except subprocess.TimeoutExpired:
        kill(process, "all")
        raise
    return code, path.read_bytes()[before:].decode()


def jobs(process):
    """The scripts that a run executes now."""
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            words = child.cmdline()
        except psutil.Error:
            continue
        # the interpreter, not the shell that calls it
        if any(".snakemake/scripts/" in word for word in words[1:]) and "-c" not in words:
            found.append(child)
    return found


def kill(process, kind, rng=random):
    """SIGKILL; whether there was something to kill."""
    try:
        head = psutil.Process(process.pid)
        victims = {
            "all": lambda: [head, *head.children(recursive=True)],
            "head": lambda: [head],
            "job": lambda: rng.sample(running, 1) if (running := jobs(process)) else [],
        }[kind]()
    except psutil.NoSuchProcess:
        return False
    killed = False
    for victim in victims:
        try:
            victim.send_signal(signal.SIGKILL)
            killed = True
        except psutil.NoSuchProcess:
            pass
    if kind != "job":
        process.wait()
    return killed


def damaged(folder, known):
    """Results that cannot be read whole; ``known`` remembers those that were read before."""
    bad = []
    for path in sorted(Path(folder).rglob("*")):
        if path.name.startswith(".tmp-") or not {"logs", "benchmarks"}.isdisjoint(path.parts):
            continue
        try:
            state = path.stat()
            if not path.is_file() or known.get(path) == (state.st_ino, state.st_mtime_ns):
                continue
            _read(path)
            known[path] = (state.st_ino, state.st_mtime_ns)
        except FileNotFoundError:  # replaced or removed by a job that runs on
            continue
        except Exception as error:
            bad.append(f"{path.relative_to(folder)}: {error!r}")
    return bad


def _read(path):
    """Read all of a file; raise if it is not whole."""
    if path.suffix == ".npz":
        with zipfile.ZipFile(path) as archive:
            assert archive.testzip() is None
        np.load(path, allow_pickle=False).close()
    elif path.suffix == ".parquet":
        pd.read_parquet(path)
    elif path.suffix == ".gz":
        np.asarray(nib.Nifti1Image.from_filename(path).dataobj)
    elif path.suffix == ".json":
        json.loads(path.read_text(encoding="utf-8"))
    elif path.suffix in (".csv", ".tsv"):
        pd.read_csv(path, sep="\t" if path.suffix == ".tsv" else ",")
    elif path.suffix == ".png":
        imread(path)
    elif path.suffix == ".safetensors":
        load_file(path)
    else:
        assert path.stat().st_size > 0 or "maps" in path.parts


def differences(directory, reference):
    """What differs between two finished runs of the study, apart from times and logs."""
    ours, theirs = (Path(base, "results", "kills") for base in (directory, reference))
    names = [
        {
            path.relative_to(base).as_posix()
            for path in base.rglob("*")
            if path.is_file() and not path.name.startswith(".tmp-") and "logs" not in path.parts
        }
        for base in (ours, theirs)
    ]
    found = [f"{name}: only in one" for name in sorted(names[0] ^ names[1])]
    found += [f"{name}: {problem}" for name, problem in compared(ours, theirs) if problem]
    # what `compared` takes as given, since it needs a model; and the maps
    for name in sorted(names[0] & names[1]):
        if name.endswith((".nii.gz", ".safetensors")):
            same = _content(ours / name) == _content(theirs / name)
            found += [] if same else [f"{name}: differs"]
    return found


def _content(path):
    content = path.read_bytes()
    if path.suffix == ".gz":  # its header may hold a time
        with suppress(EOFError, OSError, zlib.error):  # a damaged one differs by its bytes
            return gzip.decompress(content)
    return content


def undisturbed(directory, *arguments):
    """Finish the study in ``directory``; seconds of an average job."""
    Path(directory).mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    code, output = run(directory, *arguments)
    assert code == 0, output[-8000:]
    return (time.monotonic() - began) / output.count("Finished jobid")


def kill_study(directory, reference, kills, seed, pace, arguments=(), say=print):
    """Kill the study ``kills`` times; finish it, and begin a new one when it ends before.

    Args:
        directory: for the studies; must not exist.
        reference: a finished study.
        pace: seconds of an average job.
        arguments: of every run, also of the reference's.

    Returns:
        ``kills``, ``of`` each kind, ``rounds``, ``runs``, ``jobs``; lists of ``differences``,
        ``damaged`` and ``tracebacks``; ``hangs``.
    """
    rng = random.Random(seed)
    done: Counter[str] = Counter()
    found: dict[str, list[str]] = {"differences": [], "damaged": [], "tracebacks": []}
    rounds = hangs = runs = spared = 0
    while not rounds or done.total() < kills:
        base = Path(directory, f"{rounds}")
        base.mkdir(parents=True)
        rounds += 1
        known: dict[Path, tuple[int, int]] = {}
        orphans, finished = [], False
        while not finished:
            runs += 1
            if any(base.glob(".snakemake/locks/*")):
                subprocess.run(command(base, "--unlock"), cwd=ROOT, capture_output=True, check=True)
            process = start(base, *arguments)
            spared += done.total() >= kills
            while process.poll() is None and done.total() < kills:
                kind = rng.choice(KINDS)
                # one in six dies before its first job
                early = rng.random() < 1 / 6 and kind != "job"
                if not early and not busy(process):
                    break
                time.sleep(rng.uniform(0, 4 * pace))
                if kind == "head" and process.poll() is None:
                    orphans += jobs(process)
                if kill(process, kind, rng):
                    done[kind] += 1
                    say(f"kill {done.total()}: {kind}", flush=True)
            try:
                finished = process.wait(timeout=LIMIT) == 0
            except subprocess.TimeoutExpired:
                kill(process, "all")
                hangs += 1
                say(f"hangs: {base}")
            found["damaged"] += damaged(base / "results", known)
            if spared > 2:  # a run without a kill finishes the study, or none ever will
                break
        # jobs whose Snakemake was killed may write late
        psutil.wait_procs(orphans, timeout=LIMIT)
        text = (base / "output.txt").read_text(encoding="utf-8")
        found["tracebacks"] += [f"{base}/output.txt"] * text.count("Traceback (most recent")
        found["differences"] += differences(base, reference)
    return {
        "kills": done.total(),
        "of": dict(done),
        "rounds": rounds,
        "runs": runs,
        "hangs": hangs,
        **found,
    }


def busy(process):
    """Wait for a job of a run; False if the run ends before, or hangs."""
    end = time.monotonic() + LIMIT
    while process.poll() is None and time.monotonic() < end:
        try:
            if jobs(process):
                return True
        except psutil.NoSuchProcess:
            break
        time.sleep(0.05)
    return False


if __name__ == "__main__":
    where, wanted, asked = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
    mean = undisturbed(where / "reference", *asked)
    print(f"{mean:.2f} s a job", flush=True)
    counts = kill_study(where / "killed", where / "reference", wanted, 1, mean, asked)
    print(json.dumps(counts, indent=2))
