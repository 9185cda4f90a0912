"""The whole study through a real SLURM: sbatch, accounting, fake GPUs, and jobs that go wrong.

Debian's packages are needed. `make test SLURM=1` runs the test with those that are installed,
`make test SLURM=install` installs them first (root), plain `make test` leaves the test out.
"""

import io
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

ROOT = Path(__file__).parents[1]
HERE = ROOT / "tests" / "slurm"
CLUSTER = HERE / "cluster.sh"
STUDY = ("--snakefile", ROOT / "Snakefile", "--configfile", HERE / "study.yaml")
THREADS = ("--max-threads", "2")  # sums in the same order as in the local run
PROFILE = (
    *("--workflow-profile", ROOT / "profiles" / "slurm"),
    *("--default-resources", "slurm_account=study"),
    *("--slurm-init-seconds-before-status-checks", "2"),
)
WISH = os.environ.get("TEST_SLURM", "1")


def shell(*parts):
    return subprocess.run([str(part) for part in parts], capture_output=True, text=True)


def command(directory, *arguments):
    parts = (sys.executable, "-m", "snakemake", "--directory", directory, *arguments)
    return [str(part) for part in parts]


def start(directory, *arguments):
    """Snakemake in the background; its output goes to ``directory``/output.txt."""
    directory.mkdir()
    with (directory / "output.txt").open("w") as output:
        return subprocess.Popen(
            command(directory, *arguments),
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"},
        )


def finish(process, directory):
    """Wait for the end; the output of a run that succeeded."""
    code = process.wait(timeout=1800)
    output = (directory / "output.txt").read_text()
    assert code == 0, output[-8000:]
    return output


def accounts(of):
    """What the accounting database knows of each job of a run, named by its comment."""
    run = of.split("SLURM run ID: ")[1].split()[0]
    fields = "JobIDRaw,State,Partition,Account,ReqMem,TimelimitRaw,AllocTRES,Comment,Start,End"
    done = shell("sacct", "-X", "-P", "-S", "now-1day", "--name", run, "-o", fields)
    assert done.returncode == 0, done.stderr
    jobs = pd.read_csv(io.StringIO(done.stdout), sep="|", dtype=str)
    jobs["Name"] = jobs.Comment.str.removeprefix("rule_").str.split("_wildcards").str[0]
    for name, pattern in {
        "cpus": r"cpu=(\d+)",
        "gpus": r"gres/gpu=(\d+)",
        "mem_mb": r"mem=(\d+)M",
    }.items():
        jobs[name] = jobs.AllocTRES.str.extract(pattern, expand=False).astype(float).fillna(0)
    return jobs.assign(runtime=jobs.TimelimitRaw.astype(int))


def cancel_once(comment, processes):
    """Cancel the first job of this name once it runs; its number, None if it never did."""
    while all(process.poll() is None for process in processes):
        for line in shell("squeue", "-h", "-t", "R", "-o", "%i %k").stdout.splitlines():
            number, _, name = line.partition(" ")
            if name == comment:
                time.sleep(2)
                assert shell("scancel", number).returncode == 0
                return number
        time.sleep(0.5)
    return None


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    if WISH == "0":
        pytest.skip("SLURM=0")
    cures = "`make test SLURM=install` installs them as root, `make test SLURM=0` goes without."
    if WISH == "install":
        done = shell(CLUSTER, "install")
        if done.returncode:
            pytest.fail(f"SLURM's packages cannot be installed: {done.stderr[-2000:]}\n{cures}")
    missing = shell(CLUSTER, "missing").stdout.split()
    if missing:
        pytest.fail(f"Debian packages are missing: {', '.join(missing)}. {cures}", pytrace=False)
    directory = tmp_path_factory.mktemp("cluster")
    try:
        done = shell(CLUSTER, "up", directory)
        if done.returncode:
            pytest.fail(f"SLURM does not start: {done.stderr}\n{cures}", pytrace=False)
        yield
    finally:
        shell(CLUSTER, "down", directory)


@pytest.fixture(scope="module")
def runs(cluster, tmp_path_factory):
    """The study on the cluster and on this machine, and the jobs that go wrong."""
    base = tmp_path_factory.mktemp("a cluster of runs")
    where = {name: base / name for name in ("faults", "study", "local")}
    faults = start(where["faults"], "--snakefile", HERE / "Snakefile", *PROFILE)
    study = start(where["study"], *STUDY, *PROFILE, *THREADS)
    try:
        cancelled = cancel_once("rule_cancelled", [faults, study])
        # models take half of the cores here
        local = start(where["local"], *STUDY, *THREADS, "--cores", "4")
        finish(local, where["local"])
        output = {
            "study": finish(study, where["study"]),
            "faults": finish(faults, where["faults"]),
        }
    finally:
        for process in (faults, study):  # their jobs end with the cluster
            process.kill()
    return {
        **where,
        "output": output,
        "cancelled": cancelled,
        "jobs": {name: accounts(text) for name, text in output.items()},
    }


def test_every_job_succeeds_with_what_its_rule_declares(runs, record_property):
    jobs = runs["jobs"]["study"].set_index("Name")
    record_property("slurm_jobs", len(jobs))
    record_property("slurm_failed", int((jobs.State != "COMPLETED").sum()))
    assert set(jobs.State) == {"COMPLETED"}
    assert set(jobs.Account) == {"study"}
    # CPUs (rules ask for 8, the test grants 2), GPUs, memory and minutes; a group's runtimes add up
    declared = {
        "train_localizer": (1, 2, 1, 4000, 240),
        "cost": (1, 2, 1, 6000, 30),
        "score": (6, 2, 1, 6000, 240),
        "data_phantom_preprocess_slices": (2, 1, 0, 2000, 10 + 60 + 30),
        "attributions_attribute": (6, 1, 0, 3000, 60),
        "maps_maps": (2, 1, 0, 2000, 60),
        "organs_evaluate_localizer_evaluate_segmenter_localize_roi_segment": (
            *(1, 2, 1, 6000),
            60 + 30 + 60 + 30,
        ),
    }
    assert set(jobs.index) == set(declared)
    for name, (count, *asked) in declared.items():
        rows = jobs.loc[[name], ["cpus", "gpus", "mem_mb", "runtime"]]
        assert rows.to_numpy().tolist() == [asked] * count, name


def test_gpu_jobs_land_on_the_gpu_partition(runs):
    jobs = runs["jobs"]["study"]
    assert set(jobs[jobs.gpus > 0].Partition) == {"gpu"}
    assert set(jobs[jobs.gpus == 0].Partition) == {"cpu"}


def test_two_gpu_jobs_at_a_time_each_with_its_own(runs):
    scores = runs["jobs"]["study"].query("Name == 'score'")
    start, end = pd.to_datetime(scores.Start), pd.to_datetime(scores.End)
    together = [((start <= moment) & (end > moment)).sum() for moment in start]
    assert max(together) == 2
    devices = {(runs["faults"] / f"gpu_{job}.txt").read_text().strip() for job in (0, 1)}
    assert devices == {"0", "1"}


def test_tables_are_those_of_a_local_run(runs):
    """Apart from times, to the last bit."""
    cluster, local = (runs[name] / "results" / "slurm" for name in ("study", "local"))
    for name in ("localizer", "segmenter", "explanations"):
        frames = [pd.read_parquet(run / f"metrics/{name}.parquet") for run in (cluster, local)]
        kept = [frame.loc[:, ~frame.columns.str.startswith("seconds_")] for frame in frames]
        assert len(kept[0]) > 0
        pd.testing.assert_frame_equal(*kept, check_exact=True)
    for name in ("table2", "segmenter", "table3", "table3_variants"):
        frames = [pd.read_csv(run / f"tables/{name}.csv") for run in (cluster, local)]
        kept = [frame[frame.unit != "s"].reset_index(drop=True) for frame in frames]
        assert len(kept[0]) > 0
        pd.testing.assert_frame_equal(*kept, check_exact=True)
    made = [{path.relative_to(run) for path in run.rglob("*.*")} for run in (cluster, local)]
    assert made[0] == made[1]
    assert (cluster / "skipped.tsv").read_text() == (local / "skipped.tsv").read_text()


def test_what_takes_seconds_is_not_submitted(runs):
    """Tables, figures and their like run where Snakemake runs."""
    submitted = " ".join(runs["jobs"]["study"].Name)
    for name in ("table", "figure", "metrics", "skipped", "provenance"):
        assert name not in submitted
    assert (runs["study"] / "results/slurm/provenance.json").exists()


@pytest.mark.parametrize(
    ("job", "states", "resource", "asked"),
    [
        ("cancelled", {"CANCELLED by 0"}, "mem_mb", [500, 1000]),
        ("hungry", {"OUT_OF_MEMORY", "FAILED"}, "mem_mb", [600, 1200]),
        ("slow", {"TIMEOUT"}, "runtime", [1, 6]),
    ],
)
def test_a_failed_job_is_submitted_again_and_asks_for_more(runs, job, states, resource, asked):
    tries = runs["jobs"]["faults"].query("Name == @job").sort_values("JobIDRaw", key=pd.to_numeric)
    assert tries[resource].tolist() == asked
    assert tries.State.iloc[0] in states
    assert tries.State.iloc[1] == "COMPLETED"
    assert (runs["faults"] / f"{job}.txt").read_text().strip() == str(asked[1])
    message = f"SLURM-job '{tries.JobIDRaw.iloc[0]}' failed, SLURM status is: '"
    status = runs["output"]["faults"].split(message)[1].split("'")[0]
    assert status == tries.State.iloc[0].split()[0]
    if job == "cancelled":
        assert tries.JobIDRaw.iloc[0] == runs["cancelled"]


def test_the_output_says_why_and_logs_are_kept(runs):
    output = runs["output"]["faults"]
    assert re.search("oom-?kill|exceeded memory limit", output)
    assert "DUE TO TIME LIMIT" in output
    for name in ("study", "faults"):
        logs = (runs[name] / ".snakemake" / "slurm_logs").rglob("*.log")
        assert {path.stem for path in logs} == set(runs["jobs"][name].JobIDRaw)


def test_a_workstation_finds_the_results_complete(runs):
    done = subprocess.run(
        command(runs["study"], *STUDY, "--cores", "1", "--dry-run"),
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert "Nothing to be done" in done.stdout + done.stderr
