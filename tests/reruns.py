"""Which rules a study would rerun: many dry runs of the workflow in one process.

    python tests/reruns.py DIRECTORY < requests.json > plans.json

The study in DIRECTORY is taken for finished: the files that it lacks are made, empty, and marked
as results of the configuration that comes first. Each further one gives a plan: rule → jobs. So
does each file that is replaced by another one for as long.
"""

import json
import os
import sys
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

from snakemake.api import SnakemakeApi
from snakemake.settings.enums import Quietness, RerunTrigger
from snakemake.settings.types import (
    ConfigSettings,
    DAGSettings,
    OutputSettings,
    ResourceSettings,
)

ROOT = Path(__file__).parents[1]
TRIGGERS = ("mtime", "params", "input", "software-env")  # those of profiles/default


def plan(directory, config, targets=(), root=ROOT, executor="dryrun"):
    """The workflow's graph, with what Snakemake would run of it.

    Returns:
        Job → number of them that would run; job → those that read its results. A job is named
        by its rule and by its method, table or split: ``score lime``, ``slices train``.
    """
    path = Path(directory) / "plan.json"
    path.write_text(json.dumps(config))
    with SnakemakeApi(OutputSettings(dryrun=True, quiet={Quietness.ALL})) as api:
        workflow = api.workflow(
            resource_settings=ResourceSettings(cores=1),
            config_settings=ConfigSettings(configfiles=[path]),
            snakefile=root / "Snakefile",
            workdir=Path(directory),
        )
        settings = DAGSettings(
            targets=frozenset(targets),
            rerun_triggers=RerunTrigger.parse_choices_set(TRIGGERS),
            forceall=executor == "touch",
        )
        workflow.dag(settings).execute_workflow(executor=executor)
        dag = workflow._workflow.dag
    jobs = [job for job in dag.jobs if job.rule.name != "all"]
    readers: dict[str, set[str]] = {_name(job): set() for job in jobs}
    for job in jobs:
        for source in dag.dependencies[job]:
            readers[_name(source)].add(_name(job))
    return (
        Counter(_name(job) for job in jobs if dag.needrun(job)),
        readers,
        [file for job in jobs for file in job.output],
    )


def _name(job):
    """The rule, and what tells its jobs apart where other jobs read one kind of them only."""
    words = [job.rule.name]
    known = job.wildcards_dict
    words += [known[key] for key in ("method", "name") if key in known]
    if any(known.get(key, "").startswith("train") for key in ("case", "batch")):
        words.append("train")
    return " ".join(words)


def pretend(directory, config, root=ROOT):
    """Make what a finished study would hold, empty, and mark it as made from ``config``."""
    for name in plan(directory, config, root=root)[2]:
        path = Path(directory, name)
        if name.is_directory:
            path.mkdir(parents=True, exist_ok=True)
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    plan(directory, config, root=root, executor="touch")


@contextmanager
def replaced(path):
    """Another file of the same size in its place, older than it and than all results."""
    before, times = path.read_bytes(), path.stat()
    path.write_bytes(before[:-2] + before[-2:].swapcase())
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns - 10**12))
    try:
        yield
    finally:
        path.write_bytes(before)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


@contextmanager
def removed(path):
    """Not there, and as before when it is back."""
    aside = path.with_name(f".{path.name}.aside")
    path.rename(aside)
    try:
        yield
    finally:
        aside.rename(path)


if __name__ == "__main__":
    directory, out = sys.argv[1], os.dup(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # Snakemake prints where it likes
    request = json.load(sys.stdin)
    root = Path(request.get("root", ROOT))
    if request.get("pretend", True):
        pretend(directory, request["configs"][0], root)
    plans = [plan(directory, config, root=root) for config in request["configs"]]
    for name in request.get("replaced", ()):
        with replaced(Path(directory, name)):
            plans.append(plan(directory, request["configs"][0], root=root))
    for name in request.get("removed", ()):
        with removed(Path(directory, name)):
            plans.append(plan(directory, request["configs"][0], root=root))
    answer = {
        "plans": [made for made, _, _ in plans],
        "readers": [
            {job: sorted(readers) for job, readers in graph.items()} for _, graph, _ in plans
        ],
    }
    os.write(out, json.dumps(answer).encode())
