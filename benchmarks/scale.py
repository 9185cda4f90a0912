"""How the workflow grows: 50, 1,000 and 10,000 cases, without a scan and without a model.

    PYTHONPATH=scripts python benchmarks/scale.py [--only dag jobs tables folder] [--run DEMO]

Writes results/scale/scale.csv, one measure per line. ``seconds`` are the clock's, ``cpu_seconds``
the processor's, which other work on the machine lengthens less; ``peak_mb`` is the memory of the
largest process. `--only` measures a part and keeps the other lines of the file.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from xaiclip.files import atomic
from xaiclip.metrics.schema import EXPLANATIONS

ROOT = Path(__file__).parents[1]
OUT = ROOT / "results" / "scale" / "scale.csv"
ORGANS = ("liver", "right kidney", "left kidney", "spleen", "pancreas")
VARIANTS = {
    "occlusion": ("window",),
    "lime": ("felzenszwalb", "slic", "quickshift", "multiscale"),
    "rise": ("covariance", "paper", "complement"),
}
VALUES = ("soft_dice", "in_mask_probability")
SIZES = {50: (10,), 1000: (10, 25, 100), 10000: (100,)}
JOBS = 200

Measure = dict[str, Any]


def timed(*command: Any, stdin: str = "") -> tuple[Measure, str]:
    """Run a command to its end: what it took with all that it started, and its output."""
    with tempfile.TemporaryFile("w+") as text, tempfile.TemporaryFile("w+") as source:
        source.write(stdin)
        source.seek(0)
        began = time.monotonic()
        process = subprocess.Popen(
            [str(part) for part in command], stdin=source, stdout=text, stderr=text, cwd=ROOT
        )
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.monotonic() - began
        text.seek(0)
        output = text.read()
    if status:
        sys.exit(f"{command[:4]} failed:\n{output[-3000:]}")
    return {
        "seconds": seconds,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "peak_mb": usage.ru_maxrss * 1024 / 1e6,
    }, output


def snakemake(directory: Path, *arguments: Any, snakefile: Path = ROOT / "Snakefile") -> Any:
    return timed(
        *(sys.executable, "-m", "snakemake", "--snakefile", snakefile, "--directory", directory),
        *("--cores", "2", *arguments),
    )


def dag(folder: Path) -> Iterator[Measure]:
    """A dry run of a study from a sample sheet, with all methods under both guidances."""
    for cases, batches in SIZES.items():
        directory = folder / f"{cases}"
        (directory / "scans").mkdir(parents=True)
        rows = ["case\timage\tlabel\tmodality\tsplit"]
        for number in range(cases):
            files = [f"scans/patient_{number:05d}{end}.nii.gz" for end in ("", "_seg")]
            for file in files:
                (directory / file).touch()
            rows.append("\t".join((f"patient_{number:05d}", *files, "CT", "test")))
        (directory / "samples.tsv").write_text("\n".join(rows) + "\n")
        (directory / "localizer.safetensors").touch()
        for size in batches:
            config = {
                "run": "scale",
                "data": {"source": "sheet", "sheet": str(directory / "samples.tsv")},
                "localizer": {"weights": str(directory / "localizer.safetensors")},
                "cases_per_job": size,
            }
            path = directory / "study.json"
            path.write_text(json.dumps(config))
            took, output = snakemake(
                directory, "--configfile", path, "--dry-run", "--quiet", "rules"
            )
            jobs = next(line.split()[1] for line in output.splitlines() if line.startswith("total"))
            yield {"part": "dry run", "cases": cases, "cases_per_job": size, "n": int(jobs), **took}


CHEAP = """
rule all:
    input: expand("made/{{number}}.txt", number=range({jobs}))
rule cheap:
    output: "made/{{number}}.txt"
    log: "logs/{{number}}.log"
    params: cfg=dict(settings=list(range(100)))
    script: "cheap.py"
"""


#: What the jobs of a batch import before they begin, and how many of its 25 jobs do so.
STARTS = {
    "localize": (1, "xaiclip.localizer.model, xaiclip.preprocess"),
    "score, segment": (7, "xaiclip.explain.runner, xaiclip.models.segmenters.loading"),
    "attribute": (6, "xaiclip.explain.runner, xaiclip.metrics.rows"),
    "others": (11, "pandas, nibabel, xaiclip.data.slices"),
}


def jobs(folder: Path) -> Iterator[Measure]:
    """Jobs that do nothing, and what a job of ours loads before it begins."""
    folder.mkdir()
    (folder / "cheap.py").write_text("open(snakemake.output[0], 'w').close()\n")
    (folder / "Snakefile").write_text(CHEAP.format(jobs=JOBS))
    run = ("--scheduler", "greedy", "--quiet", "all")
    for part, arguments in (("cheap jobs, dry run", ("--dry-run",)), ("cheap jobs", ())):
        took, _ = snakemake(folder, *run, *arguments, snakefile=folder / "Snakefile")
        yield {"part": part, "n": JOBS, **took}
    for kind, (_, modules) in STARTS.items():
        took, _ = timed(sys.executable, "-c", f"import {modules}")
        yield {"part": f"start: {kind}", "n": 1, **took}


def tables(folder: Path) -> Iterator[Measure]:
    """Metrics of simulated batches, as many rows as real ones; the tables made from them."""
    folder.mkdir()
    cases, size = 10000, 10
    rng = np.random.default_rng(0)
    count = 1 << (cases // size - 1).bit_length()
    batch = rng.integers(0, count, cases)
    paths = []
    for number in range(count):
        names = [f"patient_{case:05d}" for case in np.flatnonzero(batch == number)]
        for method, variants in VARIANTS.items():
            for guidance in ("full", "roi"):
                paths.append(str(folder / f"{method}_{guidance}_{number}.parquet"))
                pq.write_table(_part(rng, names, method, guidance, variants), paths[-1])
    yield {"part": "simulated parts", "cases": cases, "cases_per_job": size, "n": len(paths)}
    out = folder / "explanations.parquet"
    code = "import sys; from xaiclip.metrics import schema; schema.concat_tables("
    code += f"sys.stdin.read().split(), {str(out)!r}, schema.EXPLANATIONS)"
    took, _ = timed(sys.executable, "-c", code, stdin="\n".join(paths))
    rows = pq.read_metadata(out).num_rows
    yield {"part": "explanations.parquet", "cases": cases, "cases_per_job": size, "n": rows, **took}
    tables = "from xaiclip.report.tables"
    code = f"{tables}.data import read_rows; {tables}.explanations import COLUMNS; "
    code += f"rows = read_rows({str(out)!r}, COLUMNS); "
    for module, name in (("explanations", "table3"), ("variants", "table3_variants")):
        call = f"{tables}.{module} import {name}; {name}(rows, resamples=5000)"
        took, _ = timed(sys.executable, "-c", code + call)
        yield {"part": name, "cases": cases, "n": rows, **took}


def _part(
    rng: np.random.Generator, cases: list[str], method: str, guidance: str, variants: Any
) -> pa.Table:
    """Rows as `attribute` leaves them: sorted, one slice a case, one organ in twenty left out."""
    keys = [
        (case, organ, variant, value)
        for case in cases
        for organ in sorted(ORGANS)
        for variant in sorted(variants)
        for value in sorted(VALUES)
    ]
    n = len(keys)
    text: dict[str, Sequence[str | None]] = dict(
        zip(("case", "organ", "variant", "value"), zip(*keys, strict=True), strict=True)
    )
    text |= {"method": [method] * n, "guidance": [guidance] * n, "modality": ["CT"] * n}
    text |= {"roi_source": [None if guidance == "full" else "localizer"] * n}
    text |= {"device": ["cpu"] * n, "precision": ["fp32"] * n}
    left_out = np.repeat(rng.random(-(-n // (len(variants) * 2))) < 0.05, len(variants) * 2)[:n]
    text["skipped"] = [f"{method}: the ROI is empty" if bad else None for bad in left_out]
    columns = []
    for field in EXPLANATIONS:
        if field.name in text:
            columns.append(pa.array(text[field.name], field.type))
        elif field.name == "primary":
            first = [(key[2], key[3]) == (variants[0], VALUES[0]) for key in keys]
            columns.append(pa.array(first, field.type))
        elif pa.types.is_integer(field.type):
            columns.append(pa.array(rng.integers(0, 500, n), field.type))
        else:
            columns.append(pa.array(rng.random(n), field.type, mask=left_out))
    return pa.Table.from_arrays(columns, schema=EXPLANATIONS)


def folder(run: Path) -> Iterator[Measure]:
    """MB per test case of a finished run, and the seconds that its explanations took."""
    slices = run / "slices"
    cases = {
        name.split("/")[0]
        for path in slices.glob("test-*.npz")
        for name in np.load(path).files
        if name.endswith("/image")
    }
    for name in ("slices", "preprocessed", "localization", "roi", "segmentation", "scores",
                 "attributions", "maps", "metrics", "raw"):  # fmt: skip
        files = [path for path in (run / name).rglob("*") if path.is_file()]
        own = [path for path in files if "train" not in str(path.relative_to(run))]
        size = sum(path.stat().st_size for path in own) / 1e6
        yield {"part": f"folder {name}", "cases": len(cases), "mb_per_case": size / len(cases)}
    rows = pd.read_parquet(run / "metrics" / "explanations.parquet").dropna(subset="seconds_total")
    # seconds are the slice's, which its organs share
    slices_of = rows.groupby(["case", "slice", "method", "guidance", "roi_source"], dropna=False)
    seconds = slices_of["seconds_total"].max().sum()
    yield {"part": "explanations", "cases": len(cases), "seconds": seconds}


def overhead(frame: pd.DataFrame) -> Iterator[Measure]:
    """What the workflow adds to the explanations of 1,000 cases, for each size of a batch."""
    of: Any = frame.set_index("part")  # pandas' cells have no types
    needed = {"explanations", "cheap jobs", "dry run", *(f"start: {kind}" for kind in STARTS)}
    if not needed <= set(of.index):
        return
    compute = of.loc["explanations", "seconds"] / of.loc["explanations", "cases"]
    cheap = of.loc["cheap jobs", "cpu_seconds"] - of.loc["cheap jobs, dry run", "cpu_seconds"]
    row: Any
    for _, row in frame[(frame["part"] == "dry run") & (frame["cases"] == 1000)].iterrows():
        scheduling = row["cpu_seconds"] + row["n"] * cheap / JOBS
        starts = sum(
            count * of.loc[f"start: {kind}", "cpu_seconds"] for kind, (count, _) in STARTS.items()
        ) / sum(count for count, _ in STARTS.values())
        for part, seconds in (
            ("overhead of scheduling", scheduling),
            ("overhead with the start of jobs", scheduling + row["n"] * starts),
        ):
            share = seconds / (1000 * compute)
            keys = {key: row[key] for key in ("cases", "cases_per_job", "n")}
            yield {"part": part, **keys, "cpu_seconds": seconds, "share_of_compute": share}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parts = ("dag", "jobs", "tables", "folder")
    parser.add_argument("--only", nargs="+", choices=parts, default=parts)
    parser.add_argument("--run", type=Path, default=ROOT / "results" / "demo")
    asked = parser.parse_args()
    kept = pd.read_csv(OUT) if OUT.exists() else pd.DataFrame({"of": []})
    others = kept[~kept["of"].isin([*asked.only, "overhead"])]
    rows: list[dict[Any, Any]] = others.to_dict("records")
    with tempfile.TemporaryDirectory(prefix="scale-") as name:
        for part in asked.only:
            measure = {"dag": dag, "jobs": jobs, "tables": tables, "folder": folder}[part]
            argument = asked.run.resolve() if part == "folder" else Path(name, part)
            for row in measure(argument):
                rows.append({"of": part, **row})
                print(rows[-1], flush=True)
    rows += [{"of": "overhead", **row} for row in overhead(pd.DataFrame(rows))]
    with atomic(OUT) as temporary:
        pd.DataFrame(rows).to_csv(temporary, index=False, float_format="%.4g")
    print(OUT)


if __name__ == "__main__":
    main()
