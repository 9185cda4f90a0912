"""Explanations and their peers: seconds, forwards and memory, in one process on one slice.

    PYTHONPATH=scripts python benchmarks/benchmark.py [--quick] [--threads 2] [--repeats 3]

Writes benchmark.csv, phases.csv, ranks.csv, benchmark.md (all, with the machine), benchmark.png.
Systems of a task run in turn, A B C A B C …; a ratio is the median of the ratios within a turn, so
that a machine that slows down slows both sides.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import logging
import platform
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import peers
import torch
from page import markdown, page_with, plot
from scipy.stats import spearmanr

from compact import phantom
from xaiclip.data.geometry import display
from xaiclip.data.slices import window_ct
from xaiclip.files import atomic, write_text
from xaiclip.masks.roi import box_of
from xaiclip.models.segmenters.base import Prompts
from xaiclip.models.segmenters.compact import CONFIG, build
from xaiclip.models.segmenters.encoder import encode_images
from xaiclip.models.segmenters.loading import BUILDERS, load_segmenter
from xaiclip.models.segmenters.sam import SamSegmenter
from xaiclip.organs import FLARE22, SIX_CLASSES, organs_of

log = logging.getLogger("benchmark")
Rows = list[dict[str, object]]
#: Makes the rows of each file: `COLUMNS` has the names.
Task = Callable[[], dict[str, Rows]]
COLUMNS = {
    "benchmark": [
        *("task", "system", "seconds", "ratio_to_ours", "ratio_to_floor", "forwards", "peak_mb")
    ],
    "phases": ["task", "phase", "seconds", "share"],
    "ranks": ["task", "organ", "rank_correlation"],
}


class Peak:
    """The process's resident memory above that at the start, MB; read from the kernel at 100 Hz."""

    def __enter__(self) -> Peak:
        gc.collect()
        if sys.platform == "linux":  # hand freed memory back, or its reuse would not be seen
            ctypes.CDLL(None).malloc_trim(0)
        self.start, self.megabytes, self.stop = resident(), 0.0, threading.Event()
        self.thread = threading.Thread(target=self.watch, daemon=True)
        self.thread.start()
        return self

    def watch(self) -> None:
        while not self.stop.wait(0.01):
            self.megabytes = max(self.megabytes, resident() - self.start)

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self.thread.join()


def resident() -> float:
    """Resident memory of this process in MB; NaN where the kernel does not tell."""
    try:
        pages = Path("/proc/self/statm").read_text().split()[1]
    except OSError:
        return float("nan")
    return int(pages) * 4096 / 1e6


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def compare(
    task: str, bench: peers.Bench, systems: Mapping[str, peers.System], repeats: int
) -> dict[str, Rows]:
    """Run the systems in turn; the phases are those of ours."""
    seconds: dict[str, list[float]] = {name: [] for name in systems}
    forwards, peaks, phases = {}, dict.fromkeys(systems, 0.0), []
    with torch.inference_mode():
        bench.scores(bench.inputs.expand(bench.batch, -1, -1, -1))  # warm up
        for turn in range(repeats):
            for name, system in systems.items():
                bench.encoded = 0
                with Peak() as peak:
                    start = time.perf_counter()
                    system(bench)
                    took = time.perf_counter() - start
                seconds[name].append(took)
                forwards[name] = bench.encoded
                peaks[name] = max(peaks[name], peak.megabytes)
                if name == "ours":
                    phases.append(bench.seconds)
                log.info("%s, %s, turn %d: %.2f s", task, name, turn + 1, took)

    def ratio(name: str, to: str) -> float:
        if to not in seconds:
            return float("nan")
        return float(np.median(np.array(seconds[name]) / np.array(seconds[to])))

    rows = [
        {
            "task": task,
            "system": name,
            "seconds": float(np.median(seconds[name])),
            "ratio_to_ours": ratio(name, "ours"),
            "ratio_to_floor": ratio(name, "floor"),
            "forwards": forwards[name],
            "peak_mb": peaks[name],
        }
        for name in systems
    ]
    ledger = []
    if phases:
        middle = sorted(phases, key=lambda one: one["total"])[len(phases) // 2]
        known = {phase: s for phase, s in middle.items() if phase != "total"}
        known["not explained"] = middle["total"] - sum(known.values())
        ledger = [
            {"task": task, "phase": phase, "seconds": s, "share": s / middle["total"]}
            for phase, s in known.items()
        ]
    return {"benchmark": rows, "phases": ledger}


def slice_of_phantom() -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The axial slice of a CT phantom that shows most of the organ it shows least; its boxes."""
    volume = phantom.generate(8, "CT")  # stored in canonical orientation, and shows all five
    organs = organs_of(SIX_CLASSES)
    ids = {name: i for i, name in FLARE22.items()}
    seen = np.stack([(volume.label == ids[organ]).sum((0, 1)) for organ in organs])
    index = int(seen.min(0).argmax())
    image = window_ct(display(volume.image[..., index]), 40, 400)
    label = display(volume.label[..., index])
    boxes = {organ: box_of(label == ids[organ], 5) for organ in organs}
    return image, {organ: box for organ, box in boxes.items() if box is not None}


def make_bench(
    segmenter: SamSegmenter, image: np.ndarray, boxes: Mapping[str, np.ndarray], organs: int
) -> peers.Bench:
    some = dict(list(boxes.items())[:organs])
    prompts = Prompts.from_pixels(list(some), np.stack(list(some.values())), image.shape)
    bench = peers.Bench(segmenter, image, prompts)
    bench.mask[:, :2, :2] = 1  # with random weights a mask can be empty; the cost is the same
    return bench


def timed_rows(
    task: str, systems: Mapping[str, Callable[[], object]], images: int, repeats: int
) -> dict[str, Rows]:
    """Ways to do the same, in turn; the first call of each is not timed."""
    took: dict[str, list[float]] = {name: [] for name in systems}
    peaks = dict.fromkeys(systems, 0.0)
    with torch.inference_mode():
        for turn in range(repeats + 1):
            for name, system in systems.items():
                with Peak() as peak:
                    start = time.perf_counter()
                    system()
                    seconds = time.perf_counter() - start
                log.info("%s, %s, turn %d: %.2f s", task, name, turn, seconds)
                if turn:
                    took[name].append(seconds)
                    peaks[name] = max(peaks[name], peak.megabytes)
    rows = [
        {
            "task": task,
            "system": name,
            "seconds": float(np.median(took[name])),
            "ratio_to_ours": float(np.median(np.array(took[name]) / np.array(took["ours"]))),
            "ratio_to_floor": float("nan"),
            "forwards": images,
            "peak_mb": peaks[name],
        }
        for name in systems
    ]
    return {"benchmark": rows}


def vit_b(quick: bool, repeats: int) -> dict[str, Rows]:
    """One image through SAM's ViT-B encoder at 1024 pixels, with random weights."""
    torch.manual_seed(0)
    sam = build({**CONFIG, "depth": 1}) if quick else BUILDERS["sam_vit_b"]()
    encoder = sam.image_encoder.eval().requires_grad_(False)
    images = torch.rand(1, 3, encoder.img_size, encoder.img_size)
    systems = {
        "ours": lambda: encode_images(encoder, images),
        "segment_anything": lambda: encoder(images),
    }
    return timed_rows("encoder: SAM ViT-B, 1024 px, random weights", systems, 1, repeats)


def compact_encoder(segmenter: SamSegmenter, bench: peers.Bench) -> dict[str, Rows]:
    """A batch through the compact encoder, and what torch.compile would gain (it needs g++)."""
    encoder = segmenter.sam.image_encoder
    images = bench.inputs.expand(bench.batch, -1, -1, -1).contiguous()
    systems = {
        "ours": lambda: encode_images(encoder, images),
        "segment_anything": lambda: encoder(images),
    }
    if shutil.which("g++"):
        compiled = torch.compile(encode_images, dynamic=False)
        systems["ours, torch.compile"] = lambda: compiled(encoder, images)
    return timed_rows("encoder: compact", systems, bench.batch, 20)


def precision_rows(
    benches: Mapping[str, peers.Bench], method: str, system: peers.System, repeats: int
) -> dict[str, Rows]:
    """Ours in bf16 against ours in fp32: what it gains, and what its rounding does to the maps."""
    task = f"precision: {method}"
    maps: dict[str, Any] = {}

    def at(name: str) -> Callable[[], object]:
        def run() -> None:
            benches[name].encoded = 0
            maps[name] = system(benches[name])

        return run

    systems = {name if name == "ours" else f"ours, {name}": at(name) for name in benches}
    found = timed_rows(task, systems, 0, repeats)["benchmark"]
    for row in found:
        row["forwards"] = benches["ours"].encoded
    ranks: Rows = [
        {
            "task": task,
            "organ": exact.organ,
            "rank_correlation": spearmanr(
                exact.map, rough.map, axis=None, nan_policy="omit"
            ).statistic,
        }
        for exact, rough in zip(maps["ours"], maps["bf16"], strict=True)
    ]
    return {"benchmark": found, "ranks": ranks}


def tasks(arguments: argparse.Namespace) -> Iterator[tuple[str, Task]]:
    """Names, and what makes their rows."""
    quick, repeats, cores = arguments.quick, arguments.repeats, arguments.threads
    image, boxes = slice_of_phantom()
    segmenter = load_segmenter({"model": "compact"}, "cpu", arguments.precision)
    assert isinstance(segmenter, SamSegmenter)
    parts, count = (2, 9) if quick else (8, 225)
    windows = {"window": 512 // parts, "stride": 256 // parts}
    five, one = (make_bench(segmenter, image, boxes, organs) for organs in (5, 1))
    five.parts = one.parts = parts

    def compared(
        name: str, bench: peers.Bench, systems: Mapping[str, peers.System], repeats: int
    ) -> tuple[str, Task]:
        return name, lambda: compare(name, bench, systems, repeats)

    def scaled(what: str, bench: peers.Bench, count: int) -> tuple[str, Task]:
        systems = {"floor": peers.floor(count + 1), "ours": peers.ours("rise", {"masks": count})}
        name = f"scaling: {what}"
        return name, lambda: {"benchmark": compare(name, bench, systems, repeats)["benchmark"]}

    occlude = {"floor": peers.floor(count + 1), "ours": peers.ours("occlusion", windows)}
    others = {
        "captum": peers.captum(together=True),
        "captum, one run an organ": peers.captum(together=False),
        "monai": peers.monai,
        "xaitk-saliency": peers.xaitk,
    }
    yield compared(f"occlusion, 5 organs, {count} windows", five, {**occlude, **others}, repeats)
    # with one organ, a batched run is captum's best
    alone = {**occlude, "captum": peers.captum(together=False)}
    yield compared(f"occlusion, 1 organ, {count} windows", one, alone, repeats)
    samples = 8 if quick else 500
    lime = {
        "floor": peers.floor(samples),
        "ours": peers.ours("lime", {"superpixels": ["slic"], "samples": samples}),
        "lime": peers.lime_package(samples, together=True),
        "lime, one run an organ": peers.lime_package(samples, together=False),
    }
    yield compared(f"LIME, 5 organs, {samples} samples", five, lime, min(repeats, 2))
    masks = 8 if quick else 2000
    rise = {
        "floor": peers.floor(masks + 1),
        "ours": peers.ours("rise", {"masks": masks}),
        "RISE's formula": peers.rise_formula(masks, together=True),
        "RISE's formula, one run an organ": peers.rise_formula(masks, together=False),
    }
    yield compared(f"RISE, 5 organs, {masks} masks", five, rise, 1)

    few = 4 if quick else 64
    for count in (few, 2 * few, 4 * few):
        yield scaled(f"{count} masks", five, count)
    for organs in (1, 3, 5):
        yield scaled(f"{organs} organs", make_bench(segmenter, image, boxes, organs), few)
    for size in (128, 256, 512):
        torch.manual_seed(0)
        other = SamSegmenter(build({**CONFIG, "image_size": size}), "random", box_masks=True)
        yield scaled(f"{size} px, random weights", make_bench(other, image, boxes, 5), few)
    for count in sorted({1, cores}):
        with threads(count):
            yield scaled(f"{count} threads", five, few)

    benches = {"ours": five}
    half = load_segmenter({"model": "compact"}, "cpu", "bf16")
    assert isinstance(half, SamSegmenter)
    benches["bf16"] = make_bench(half, image, boxes, 5)
    covariance = {"masks": 4 * few, "estimators": ["covariance"]}
    for method, system in {
        "occlusion": peers.ours("occlusion", windows),
        f"RISE, {4 * few} masks": peers.ours("rise", covariance),
    }.items():
        yield f"precision: {method}", partial(precision_rows, benches, method, system, repeats)
    yield "encoder: compact", lambda: compact_encoder(segmenter, five)
    yield "encoder: SAM ViT-B", lambda: vit_b(quick, min(repeats, 2))


def machine(arguments: argparse.Namespace) -> str:
    """What the numbers were measured on."""
    cpu = torch.cpu.get_capabilities().get("cpu_name") or platform.processor()
    return (
        f"{cpu}, {arguments.threads} threads, PyTorch {torch.__version__.split('+')[0]}, "
        f"{arguments.precision}, Python {platform.python_version()}, {time.strftime('%Y-%m-%d')}"
    )


def merged(out: Path, name: str, found: Mapping[str, Rows], only: str | None) -> pd.DataFrame:
    """Rows of this run; with ``--only`` also what an earlier one left of other tasks."""
    frame = pd.DataFrame(found.get(name, []), columns=COLUMNS[name])
    path = out / f"{name}.csv"
    if only is None or not path.exists():
        return frame
    before = pd.read_csv(path)
    return pd.concat([before[~before.task.isin(frame.task)], frame])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a few forwards each: does all run?")
    parser.add_argument("--only", help="tasks with this in their name; other rows stay")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--out", type=Path, default=Path("results/benchmark"))
    parser.add_argument("--docs", type=Path, help="run nothing: put benchmark.md into this page")
    arguments = parser.parse_args()
    if arguments.docs:
        numbers = (arguments.out / "benchmark.md").read_text(encoding="utf-8")
        write_text(arguments.docs, page_with(numbers, arguments.docs.read_text(encoding="utf-8")))
        return
    arguments.repeats = 1 if arguments.quick else arguments.repeats
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    torch.set_num_threads(arguments.threads)
    found: dict[str, Rows] = {name: [] for name in COLUMNS}
    for name, run in tasks(arguments):
        if arguments.only and arguments.only not in name:
            continue
        for file, rows in run().items():
            found[file] += rows
        for file in COLUMNS:  # after each task: nothing is lost
            frame = merged(arguments.out, file, found, arguments.only)
            with atomic(arguments.out / f"{file}.csv") as path:
                frame.to_csv(path, index=False)
    table, ledger, ranks = (pd.read_csv(arguments.out / f"{file}.csv") for file in COLUMNS)
    digits = {"seconds": 2, "ratio_to_ours": 2, "ratio_to_floor": 2, "peak_mb": 0}
    parts = [
        machine(arguments) + ":",
        markdown(table, digits),
        "Where the seconds of ours go:",
        markdown(ledger, {"seconds": 3, "share": 3}),
        "Maps in bf16 against fp32:",
        markdown(ranks, {"rank_correlation": 4}),
    ]
    write_text(arguments.out / "benchmark.md", "\n\n".join(parts) + "\n")
    plot(table, arguments.out / "benchmark.png")


if __name__ == "__main__":
    main()
