"""Explanations and their peers: seconds, forwards and memory, in one process on one slice.

    PYTHONPATH=scripts python benchmarks/benchmark.py [--quick] [--threads 2] [--repeats 3]

Writes benchmark.csv, phases.csv, benchmark.md (both as tables, with the machine) and benchmark.png.
Systems of a task run in turn, A B C A B C …; a ratio is the median of the ratios within a turn, so
that a machine that slows down slows both sides.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import logging
import platform
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import peers
import torch
from scipy.stats import spearmanr

from xaiclip.data import phantom
from xaiclip.data.slices import window_ct
from xaiclip.data.volumes import display
from xaiclip.files import atomic, write_text
from xaiclip.organs import FLARE22, SIX_CLASSES, organs_of
from xaiclip.roi import box_of
from xaiclip.segmenters.base import Prompts
from xaiclip.segmenters.compact import CONFIG, build
from xaiclip.segmenters.encoder import encode_images
from xaiclip.segmenters.loading import BUILDERS, load_segmenter
from xaiclip.segmenters.sam import SamSegmenter

log = logging.getLogger("benchmark")
COLUMNS = ["task", "system", "seconds", "ratio_to_ours", "ratio_to_floor", "forwards", "peak_mb"]
BEGIN, END = "<!-- numbers -->", "<!-- end of numbers -->"


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
) -> tuple[list[dict[str, object]], list[dict[str, object]]]:
    """Run the systems in turn; rows of benchmark.csv, and of phases.csv for ours."""
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
    return rows, ledger


def slice_of_phantom() -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The axial slice of a CT phantom that shows most of the organ it shows least; its boxes."""
    volume = phantom.generate(8, "CT")  # stored in canonical orientation, and shows all five
    organs = organs_of(SIX_CLASSES)
    ids = {name: i for i, name in FLARE22.items()}
    seen = np.stack([(volume.label == ids[organ]).sum((0, 1)) for organ in organs])
    index = int(seen.min(0).argmax())
    image = window_ct(display(volume.image[..., index]))
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


def encoder_rows(quick: bool, repeats: int) -> list[dict[str, object]]:
    """One image through SAM's ViT-B encoder at 1024 pixels, with random weights."""
    torch.manual_seed(0)
    if quick:
        sam, task = build({**CONFIG, "depth": 1}), "encoder of the compact model, 1 image"
    else:
        sam, task = BUILDERS["sam_vit_b"](), "SAM ViT-B encoder, 1024 px, random weights, 1 image"
    encoder = sam.image_encoder.eval().requires_grad_(False)
    images = torch.rand(1, 3, encoder.img_size, encoder.img_size)
    systems = {
        "ours": lambda _: encode_images(encoder, images),
        "segment_anything": lambda _: encoder(images),
    }
    took: dict[str, list[float]] = {name: [] for name in systems}
    peaks = dict.fromkeys(systems, 0.0)
    with torch.inference_mode():
        for _ in range(repeats):
            for name, system in systems.items():
                with Peak() as peak:
                    start = time.perf_counter()
                    system(None)
                    took[name].append(time.perf_counter() - start)
                peaks[name] = max(peaks[name], peak.megabytes)
                log.info("%s, %s: %.2f s", task, name, took[name][-1])
    return [
        {
            "task": task,
            "system": name,
            "seconds": float(np.median(took[name])),
            "ratio_to_ours": float(np.median(np.array(took[name]) / np.array(took["ours"]))),
            "ratio_to_floor": float("nan"),
            "forwards": 1,
            "peak_mb": peaks[name],
        }
        for name in systems
    ]


def precision_rows(
    benches: Mapping[str, peers.Bench], windows: dict[str, object], masks: int
) -> tuple[list[dict[str, object]], list[dict[str, object]]]:
    """Ours in bf16 against ours in fp32: what it gains, and what its rounding does to the maps."""
    systems = {
        "occlusion": peers.ours("occlusion", windows),
        f"RISE, {masks} masks": peers.ours("rise", {"masks": masks, "estimators": ["covariance"]}),
    }
    rows, ranks = [], []
    for method, system in systems.items():
        took, forwards, maps = {}, {}, {}
        for name, bench in benches.items():
            bench.encoded = 0
            start = time.perf_counter()
            maps[name] = system(bench)
            took[name], forwards[name] = time.perf_counter() - start, bench.encoded
            log.info("%s, %s: %.2f s", method, name, took[name])
        rows += [
            {
                "task": f"precision: {method}",
                "system": "ours" if name == "fp32" else f"ours, {name}",
                "seconds": took[name],
                "ratio_to_ours": took[name] / took["fp32"],
                "ratio_to_floor": float("nan"),
                "forwards": forwards[name],
                "peak_mb": float("nan"),
            }
            for name in benches
        ]
        for exact, rough in zip(maps["fp32"], maps["bf16"], strict=True):
            rank = spearmanr(exact.map, rough.map, axis=None, nan_policy="omit").statistic
            ranks.append({"method": method, "organ": exact.organ, "rank correlation": rank})
    return rows, ranks


def tasks(arguments: argparse.Namespace, ranks: list) -> Iterator[tuple[list, list]]:
    """Rows, task by task; what bf16 does to the maps is added to ``ranks``."""
    quick, repeats, cores = arguments.quick, arguments.repeats, arguments.threads
    image, boxes = slice_of_phantom()
    segmenter = load_segmenter({"model": "compact"}, "cpu", arguments.precision)
    assert isinstance(segmenter, SamSegmenter)
    parts, count = (2, 9) if quick else (8, 225)
    windows = {"window": 512 // parts, "stride": 256 // parts}
    occlude = {"floor": peers.floor(count + 1), "ours": peers.ours("occlusion", windows)}
    others = {"captum": peers.captum, "monai": peers.monai, "xaitk-saliency": peers.xaitk}
    five, one = (make_bench(segmenter, image, boxes, organs) for organs in (5, 1))
    five.parts = one.parts = parts
    yield compare(f"occlusion, 5 organs, {count} windows", five, {**occlude, **others}, repeats)
    yield compare(
        f"occlusion, 1 organ, {count} windows", one, {**occlude, "captum": peers.captum}, repeats
    )

    samples = 8 if quick else 500
    yield compare(
        f"LIME, 5 organs, {samples} samples",
        five,
        {
            "floor": peers.floor(samples),
            "ours": peers.ours("lime", {"variants": ["slic"], "samples": samples}),
            "lime": peers.lime_package(samples, together=False),
            "lime, all organs at once": peers.lime_package(samples, together=True),
        },
        min(repeats, 2),
    )
    masks = 8 if quick else 2000
    yield compare(
        f"RISE, 5 organs, {masks} masks",
        five,
        {
            "floor": peers.floor(masks + 1),
            "ours": peers.ours("rise", {"masks": masks}),
            "RISE's formula": peers.rise_formula(masks, together=False),
            "RISE's formula, all organs at once": peers.rise_formula(masks, together=True),
        },
        1,
    )

    def scaled(what: str, bench: peers.Bench, count: int) -> tuple[list, list]:
        systems = {"floor": peers.floor(count + 1), "ours": peers.ours("rise", {"masks": count})}
        rows, _ = compare(f"scaling: {what}", bench, systems, repeats)
        return rows, []

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
    benches = {"fp32": five, "bf16": five}
    for name in benches:
        at = load_segmenter({"model": "compact"}, "cpu", name)
        assert isinstance(at, SamSegmenter)
        benches[name] = make_bench(at, image, boxes, 5)
    rows, found = precision_rows(benches, windows, 4 * few)
    ranks += found
    yield rows, []
    yield encoder_rows(quick, min(repeats, 2)), []


def markdown(frame: pd.DataFrame, digits: Mapping[str, int]) -> str:
    """A table for docs/benchmarks.md."""
    lines = ["| " + " | ".join(frame.columns) + " |", "|" + " --- |" * len(frame.columns)]
    for row in frame.to_dict("records"):
        cells = [
            ("" if pd.isna(value) else f"{value:.{digits[name]}f}")
            if name in digits
            else str(value)
            for name, value in row.items()
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def machine(arguments: argparse.Namespace) -> str:
    """What the numbers were measured on."""
    cpu = torch.cpu.get_capabilities().get("cpu_name") or platform.processor()
    return (
        f"{cpu}, {arguments.threads} threads, PyTorch {torch.__version__.split('+')[0]}, "
        f"{arguments.precision}, Python {platform.python_version()}, {time.strftime('%Y-%m-%d')}"
    )


def plot(frame: pd.DataFrame, path: Path) -> None:
    """Seconds over the floor's, by task and system."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    shown = frame[~frame.task.str.startswith("scaling") & frame.ratio_to_floor.notna()]
    groups = list(shown.groupby("task", sort=False))
    figure, axes = plt.subplots(
        len(groups),
        1,
        figsize=(7, 0.6 + 0.36 * len(shown)),
        sharex=True,
        layout="constrained",
        height_ratios=[len(group) for _, group in groups],
        squeeze=False,
    )
    for axis, (task, group) in zip(axes[:, 0], groups, strict=True):
        colours = ["#0b6e99" if name == "ours" else "#b4b4b4" for name in group.system]
        bars = axis.barh(group.system, group.ratio_to_floor, color=colours)
        axis.bar_label(bars, fmt="%.2f", padding=3)
        axis.axvline(1, color="black", linewidth=0.8)
        axis.invert_yaxis()
        axis.set_title(task, loc="left", fontsize=10)
        axis.spines[["top", "right"]].set_visible(False)
    axes[-1, 0].set_xlabel("seconds, as a multiple of the bare forwards")
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a few forwards each: does all run?")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--out", type=Path, default=Path("results/benchmark"))
    parser.add_argument("--docs", type=Path, help="a page whose numbers are to be replaced")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.repeats = 1
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    torch.set_num_threads(arguments.threads)
    rows, phases, ranks = [], [], []
    for some, parts in tasks(arguments, ranks):
        rows += some
        phases += parts
        table, ledger = pd.DataFrame(rows, columns=COLUMNS), pd.DataFrame(phases)
        with atomic(arguments.out / "benchmark.csv") as path:  # after each task: nothing is lost
            table.to_csv(path, index=False)
        with atomic(arguments.out / "phases.csv") as path:
            ledger.to_csv(path, index=False)
    digits = {"seconds": 2, "ratio_to_ours": 2, "ratio_to_floor": 2, "peak_mb": 0}
    parts = [
        machine(arguments) + ":",
        markdown(table, digits),
        "Where the seconds of ours go:",
        markdown(ledger, {"seconds": 3, "share": 3}),
        "Maps in bf16 against fp32:",
        markdown(pd.DataFrame(ranks), {"rank correlation": 4}),
    ]
    text = "\n\n".join(parts) + "\n"
    write_text(arguments.out / "benchmark.md", text)
    if arguments.docs:
        before, rest = arguments.docs.read_text(encoding="utf-8").split(BEGIN)
        page = before + BEGIN + "\n\n" + text + "\n" + END + rest.split(END)[1]
        write_text(arguments.docs, page)
    with atomic(arguments.out / "benchmark.png") as path:
        plot(table, Path(path))


if __name__ == "__main__":
    main()
