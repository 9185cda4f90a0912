"""The long versions of short tests: kills, bad inputs, a real SLURM.

    python tests/soak.py results/soak/soak.json [--only kills bad_inputs slurm] [--kills 50]

`--only` runs a part and keeps what the file holds of the others. The exit status is 1 if anything
was not treated well.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from xml.etree import ElementTree

import kills
from bad_inputs import fuzz
from xaiclip.files import write_json

HERE = Path(__file__).parent


def run_kills(asked, out):
    """SIGKILL at random moments; what differs from an undisturbed study in the end."""
    with tempfile.TemporaryDirectory(prefix="soak-") as name:
        reference = Path(name, "reference")
        pace = kills.undisturbed(reference)
        found = kills.kill_study(Path(name, "killed"), reference, asked.kills, asked.seed, pace)
    return {**found, "pace_s": round(pace, 2), "seed": asked.seed}


def run_bad_inputs(asked, out):
    """Damaged headers, series, labels and sheets."""
    return fuzz(asked.bad_inputs, seed=asked.seed, keep=out.parent / "bad_inputs")


def run_slurm(asked, out):
    """The study through a real SLURM, or why not; as tests/test_slurm.py does it."""
    wish = os.environ.get("TEST_SLURM", "1")
    if wish == "0":
        return {"reason": "not asked for: make soak SLURM=1, or SLURM=install"}
    if wish != "install":
        shell = (HERE / "slurm" / "cluster.sh", "missing")
        missing = subprocess.run(shell, capture_output=True, text=True, check=True).stdout.split()
        if missing:
            return {"reason": f"Debian packages are missing: {', '.join(missing)}"}
    with tempfile.TemporaryDirectory(prefix="soak-") as name:
        report = Path(name, "slurm.xml")
        command = (sys.executable, "-m", "pytest", "-q", HERE / "test_slurm.py")
        done = subprocess.run([*command, f"--junitxml={report}"], cwd=HERE.parent, check=False)
        tree = ElementTree.parse(report)
    counts = {one.get("name"): int(one.get("value", "")) for one in tree.iter("property")}
    return {**counts, "status": done.returncode}


PARTS = {"kills": run_kills, "bad_inputs": run_bad_inputs, "slurm": run_slurm}


def summary(parts):
    """The figures of all parts together; None for those of parts that were never run."""
    of = {name: parts.get(name, {}) for name in PARTS}

    def total(key, *names):
        found = [of[name][key] for name in names if key in of[name]]
        return sum(one if isinstance(one, int) else len(one) for one in found) if found else None

    slurm = of["slurm"]
    return {
        "kills": of["kills"].get("kills"),
        "differences": total("differences", "kills"),
        "damaged": total("damaged", "kills"),
        "bad_inputs": of["bad_inputs"].get("bad_inputs"),
        "wrong": of["bad_inputs"].get("wrong"),
        "tracebacks": total("tracebacks", "kills", "bad_inputs"),
        "hangs": total("hangs", "kills", "bad_inputs"),
        "slurm_jobs": slurm.get("slurm_jobs"),
        "slurm_failed": slurm.get("slurm_failed"),
        "slurm_reason": slurm.get("reason", None if slurm else "not run yet"),
        "parts": parts,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--bad-inputs", type=int, default=570)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    parts = json.loads(asked.out.read_text())["parts"] if asked.out.exists() else {}
    for name in asked.only:
        parts[name] = PARTS[name](asked, asked.out)
        write_json(asked.out, summary(parts))
    figures = summary(parts)
    del figures["parts"]
    print(json.dumps(figures, indent=2))
    for name in asked.only:
        for key in ("differences", "damaged", "failures"):
            for line in parts[name].get(key, []):
                print(f"{name}, {key}: {line}")
    bad = [figures[k] for k in ("differences", "damaged", "wrong", "tracebacks", "hangs")]
    bad += [figures["slurm_failed"], parts.get("slurm", {}).get("status")]
    sys.exit(1 if any(bad) else 0)


if __name__ == "__main__":
    main()
