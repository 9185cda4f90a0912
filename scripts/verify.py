"""Check a finished run: `python scripts/verify.py results/demo`, or `make verify RUN=demo`.

Compares data, weights, code and tables with the checksums in provenance.json; then makes again
what needs no model, beside the run, and compares. One line for each item; 1 if any differs.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from xaiclip.config.methods import methods
from xaiclip.files import write_json
from xaiclip.privacy import PRIVATE
from xaiclip.report.catalogue import tables
from xaiclip.workflow import paths
from xaiclip.workflow.paths import filled
from xaiclip.workflow.provenance import stage_hash
from xaiclip.workflow.verify import GIVEN, checked_sums, compared, study_of

ROOT = Path(__file__).parents[1]
RULES = (
    *("slices", "preprocess", "roi", "attribute", "maps"),
    *("evaluate_localizer", "evaluate_segmenter", "metrics", "skipped"),
)
#: Every table with its rule; the savings are made on demand.
TABLES = {"savings": "table_savings", **{name: one.rule for name, one in tables().items()}}


def same_code(provenance):
    """The code that is here against the code that made the run."""
    known = methods()
    used = {
        name: known[name] for name in provenance["config"]["explain"]["methods"] if name in known
    }
    for script, wanted in provenance["code"].items():
        differs = stage_hash(script, used) != wanted
        yield f"code {script}", "is another than the run's" if differs else None


def remade(folder, again, config):
    """Make ``again`` from what the run's models gave; words if that fails."""
    for name in GIVEN:
        source = folder / name
        if source.is_dir():
            shutil.copytree(source, again / name, copy_function=_link)
        elif source.exists():
            _link(source, again / name)
    overlay = again / PRIVATE / "config.json"
    write_json(overlay, {**config, "run": again.name}, private=True)
    there = [
        name
        for name in TABLES
        if (folder / filled(paths.below(paths.TABLE), name=name, kind="csv")).exists()
    ]
    targets = [filled(paths.TABLE, run=again.name, name=name, kind="csv") for name in there]
    command = [sys.executable, "-m", "snakemake", *targets, "--snakefile", str(ROOT / "Snakefile")]
    command += ["--configfile", str(overlay), "--cores", str(os.cpu_count()), "--nolock"]
    command += ["--rerun-triggers", "mtime", "--allowed-rules", *RULES, *TABLES.values()]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        found = re.findall(r"^.*(?:Error|Exception|ERROR).*$", done.stdout + done.stderr, re.M)
        return f"cannot be made again ({found[-1].strip() if found else 'see its logs'})"
    return None


def _link(source, target):
    os.makedirs(Path(target).parent, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def verify(folder):
    """What was checked, and what is wrong with it."""
    try:
        provenance = json.loads(
            (folder / paths.below(paths.PROVENANCE)).read_text(encoding="utf-8")
        )
        study = study_of(folder)
        yield from checked_sums(folder, provenance)
        yield from same_code(provenance)
    except (OSError, ValueError, KeyError) as error:
        words = f"cannot be read ({error}); finish the run with this version"
        yield filled(paths.PROVENANCE, run=folder.name), words
        return
    if not study:
        words = "cannot be made again: the folder 'private', with the configuration, is not here"
        yield "metrics and tables", words
        return
    again = folder.parent / f"verify-{folder.name}"
    try:
        again.mkdir()
    except FileExistsError:
        yield str(again), "is there, perhaps from a check that was cut off; remove it"
        return
    try:
        if problem := remade(folder, again, study["config"]):
            yield "metrics and tables", problem
        yield from compared(folder, again)
    finally:
        shutil.rmtree(again)


def main():
    if len(sys.argv) != 2:
        sys.exit("usage: python scripts/verify.py results/RUN")
    wrong = total = 0
    for item, problem in verify(Path(sys.argv[1])):
        print(f"differs  {item}: {problem}" if problem else f"ok       {item}", flush=True)
        wrong += problem is not None
        total += 1
    print(f"{wrong} of {total} differ")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
