"""A GPU against this machine's CPU: the same maps? How fast, in which precision, at which batch?

    PYTHONPATH=scripts python benchmarks/gpu.py [--weights litemedsam=auto] [--quick]

Writes equality.csv, speed.csv, about.json and summary.md; docs/gpu.md says what each column means.
Exit codes: 0, every map in float32 is the CPU's; 1, one is not; 2, there is no GPU, or no model.
`--device cpu` runs a little of the same code where there is none.
"""

from __future__ import annotations

import argparse
import json
import logging
import platform
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import torch
from benchmark import slice_of_phantom
from gpu_numbers import EQUALITY, SPEED, Row, batches, compared, rates, summary, within
from numpy.typing import NDArray
from torch import Tensor

from xaiclip import __version__, load_model
from xaiclip.arguments import settings_of
from xaiclip.device import PRECISIONS, choose_device, free_cache, out_of_memory
from xaiclip.errors import ConfigError
from xaiclip.explain.attribution import Attribution
from xaiclip.explain.engine import BatchSize
from xaiclip.explain.runner import Request, Run, attribute_slice, score_slice
from xaiclip.files import atomic, write_text
from xaiclip.metrics.cost import SegmenterCost, segmenter_cost
from xaiclip.models.segmenters import lite
from xaiclip.models.segmenters.base import Prompts, Segmenter
from xaiclip.models.segmenters.loading import BUILDERS
from xaiclip.models.segmenters.sam import SamSegmenter

log = logging.getLogger("gpu")
Boxes = Mapping[str, NDArray[np.floating[Any]]]

#: Exit code.
NO_GPU = 2
#: Of the method, where they are not the config's.
SETTINGS: dict[str, dict[str, Any]] = {
    "occlusion": {},
    "rise": {"masks": 400, "estimators": ["covariance"]},
    "lime": {"samples": 200, "superpixels": ["slic"]},
}
QUICK: dict[str, dict[str, Any]] = {
    "occlusion": {"window": 256, "stride": 256},
    "rise": {"masks": 8, "estimators": ["covariance"]},
    "lime": {"samples": 8, "min_samples": 8, "superpixels": ["slic"]},
}
# --- on the device -------------------------------------------------------------------------------


def precisions(device: torch.device) -> list[str]:
    """What it computes in. ``tf32``: float32 whose matrix products may be rounded to TF32."""
    if device.type != "cuda":
        return ["fp32", "bf16"]
    return ["fp32", "tf32", "fp16", *(["bf16"] if torch.cuda.is_bf16_supported() else [])]


@contextmanager
def rounding(precision: str) -> Iterator[None]:
    """Whether matrix products of float32 may be rounded."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def of_model(precision: str) -> str:
    """The precision in the library's words."""
    return "fp32" if precision == "tf32" else precision


def wait(device: torch.device) -> None:
    """Until all that is queued on the device is done."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def seconds_of(call: Callable[[], object], device: torch.device, least: float) -> float:
    """Seconds of a call: the median of five rounds, each of calls that are queued back to back.

    Two calls warm up (kernels are chosen, memory is taken); rounds last ``least`` seconds together.
    """
    for _ in range(2):
        call()
    wait(device)
    start = time.perf_counter()
    call()
    wait(device)
    calls = max(1, round(least / 5 / (time.perf_counter() - start)))
    rounds = []
    for _ in range(5):
        start = time.perf_counter()
        for _ in range(calls):
            call()
        wait(device)
        rounds.append((time.perf_counter() - start) / calls)
    return float(np.median(rounds))


def peak(device: torch.device, precision: str, side: int, least: float) -> float:
    """TFLOP/s of a product of two matrices (side, side): what this card reaches at its best."""
    dtype = PRECISIONS[of_model(precision)]
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    with rounding(precision):
        return 2 * side**3 / 1e12 / seconds_of(lambda: a @ b, device, least)


def start_memory(device: torch.device) -> None:
    """Forget the highest mark."""
    free_cache(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_mb(device: torch.device) -> float:
    """Memory that tensors took at most, weights included; unknown but on CUDA."""
    return torch.cuda.max_memory_allocated(device) / 1e6 if device.type == "cuda" else np.nan


@dataclass(frozen=True)
class Subject:
    """A model by its name; without weights its architecture, whose numbers mean nothing."""

    name: str
    weights: str | None
    published: bool

    @property
    def words(self) -> str:
        """What its weights are."""
        return "random" if not self.published else "shipped" if self.name == "compact" else "file"

    def load(self, device: torch.device | str, precision: str) -> Segmenter:
        if self.published:
            return load_model(
                self.name, checkpoint=self.weights, device=str(device), precision=precision
            )
        torch.manual_seed(0)
        how: dict[str, Any] = {"device": device, "precision": precision}
        if self.name != "litemedsam":
            return SamSegmenter(BUILDERS[self.name](), self.name, **how)
        sam = lite.build().eval()
        lite.fold_norms(sam.image_encoder)
        return SamSegmenter(sam, self.name, keep_aspect=True, encode=lite.encode_lite, **how)


def subjects(weights: Mapping[str, str], quick: bool) -> list[Subject]:
    """The compact model; LiteMedSAM, and MedSAM's ViT-B, with weights or with random ones; others.

    Raises:
        ConfigError: a name that is not known.
    """
    found = {"compact": Subject("compact", weights.get("compact"), True)}
    if not quick:
        found |= {name: Subject(name, None, False) for name in ("litemedsam", "medsam")}
    return list({**found, **{k: Subject(k, v, True) for k, v in weights.items()}}.values())


def maps_of(
    segmenter: Segmenter, image: NDArray[np.uint8], boxes: Boxes, method: str, given: Row
) -> tuple[list[Attribution], float, int, int]:
    """The maps of one slice; seconds, forwards, and the batch size that was found."""
    plan_settings, map_settings = settings_of(method, given)
    batch = BatchSize.of("auto", segmenter.device, segmenter.input_size)
    run = Run(method, plan_settings, ("soft_dice",), fill="mean", batch_size=batch, seed=1)
    scores, _ = score_slice(segmenter, Request("phantom", 0, image, boxes), run)
    if scores is None:
        return [], np.nan, 0, batch.value
    maps, seconds = attribute_slice(scores, map_settings)
    return maps, scores.seconds_total + seconds, 1 + scores.n_forwards, batch.value


def equality(
    subject: Subject,
    device: torch.device,
    image: NDArray[np.uint8],
    boxes: Boxes,
    settings: Mapping[str, Row],
) -> Iterator[Row]:
    """Maps of the device, in each precision, beside the CPU's in float32."""
    cpu = subject.load("cpu", "fp32")
    expected = {name: maps_of(cpu, image, boxes, name, given) for name, given in settings.items()}
    for precision in precisions(device):
        segmenter = subject.load(device, of_model(precision))
        with rounding(precision):
            for method, given in settings.items():
                maps_of(segmenter, image, boxes, method, given)  # warm up, and find the batch
                maps, seconds, forwards, batch = maps_of(segmenter, image, boxes, method, given)
                theirs, seconds_cpu, *_ = expected[method]
                log.info("%s, %s, %s: %.2f s", subject.name, method, precision, seconds)
                for row in compared(maps, theirs):
                    yield {
                        **{"model": subject.name, "method": method, "precision": precision},
                        **row,
                        "within": within(row, precision),
                        **{"forwards": forwards, "batch": batch},
                        **{"seconds_cpu": seconds_cpu, "seconds_device": seconds},
                    }


def speed(
    subject: Subject,
    device: torch.device,
    image: NDArray[np.uint8],
    boxes: Boxes,
    largest: int,
    peaks: Mapping[str, float],
    least: float,
) -> Iterator[Row]:
    """Encoder and decoder apart, by precision and batch, up to what fits."""
    shape = (image.shape[0], image.shape[1])
    prompts = Prompts.from_pixels(list(boxes), np.stack(list(boxes.values())), shape)
    cost: SegmenterCost | None = None
    for precision in precisions(device):
        segmenter = subject.load(device, of_model(precision))
        if cost is None:
            cost = segmenter_cost(segmenter, prompts)
        inputs = segmenter.prepare(image)
        for batch in batches(largest):
            start_memory(device)
            with rounding(precision):
                seconds = phases(segmenter, inputs, prompts, batch, least)
            if seconds is None:
                log.info("%s, %s: %d do not fit", subject.name, precision, batch)
                break
            row: Row = {
                **{"model": subject.name, "weights": subject.words, "precision": precision},
                **{"side": segmenter.input_size, "batch": batch, "organs": len(boxes)},
                # the decoder computes in float32 whatever the encoder does
                **rates(batch, seconds, cost, (peaks[precision], _decoders(peaks, precision))),
                "peak_mb": peak_mb(device),
            }
            log.info("%s, %s, batch %d: %.1f forwards/s", subject.name, precision, batch,
                     row["forwards_per_second"])  # fmt: skip
            yield row


def _decoders(peaks: Mapping[str, float], precision: str) -> float:
    return peaks["tf32" if precision == "tf32" else "fp32"]


@torch.inference_mode()
def phases(
    segmenter: Segmenter, inputs: Tensor, prompts: Prompts, batch: int, least: float
) -> tuple[float, float] | None:
    """Seconds of the encoder and of the decoder for a batch; None if it does not fit."""
    device = segmenter.device
    try:
        images = inputs.expand(batch, -1, -1, -1).contiguous()
        encode = seconds_of(lambda: segmenter.encode(images), device, least)
        embeddings = segmenter.encode(images)
        decode = seconds_of(lambda: segmenter.decode(embeddings, prompts), device, least)
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        return None
    return encode, decode


# --- files ---------------------------------------------------------------------------------------


def about(device: torch.device, peaks: Mapping[str, float]) -> Row:
    """What the numbers were measured on."""
    known: Row = {
        "xaiclip": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "date": time.strftime("%Y-%m-%d"),
        "device": str(device),
        "cpu": torch.cpu.get_capabilities().get("cpu_name") or platform.processor(),
        "cpu_threads": torch.get_num_threads(),
        "peak_tflops": dict(peaks),
    }
    if device.type == "cuda":
        card = torch.cuda.get_device_properties(device)
        known |= {
            "card": card.name,
            "card_memory_mb": round(card.total_memory / 1e6),
            "capability": f"{card.major}.{card.minor}",
            "cuda": torch.version.cuda or f"HIP {torch.version.hip}",
            "cudnn": torch.backends.cudnn.version(),
        }
    return known


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = made.add_argument
    add(
        "--device",
        default="auto",
        help="cuda, cuda:1, mps; cpu tries the code, --quick (%(default)s)",
    )
    add("--weights", action="append", type=_weights, default=[], metavar="MODEL=FILE",
        help="litemedsam=auto, medsam=FILE; without, their weights are random")  # fmt: skip
    add("--largest", type=int, default=256, help="largest batch (%(default)s)")
    add("--quick", action="store_true", help="a few forwards of the compact model")
    add("--out", type=Path, default=Path("results/gpu"))
    return made


def _weights(text: str) -> tuple[str, str]:
    name, equals, path = text.partition("=")
    if not (name and equals and path):
        raise argparse.ArgumentTypeError(f"{text!r}: give model=file")
    return name, path


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and write; the exit code."""
    given = parser().parse_args(arguments)
    try:
        device = choose_device(given.device)
        quick = given.quick or device.type == "cpu"
        chosen = subjects(dict(given.weights), quick)
        for subject in chosen:  # a wrong file is told before anything is measured
            if subject.published:
                subject.load("cpu", "fp32")
    except ConfigError as error:
        print(f"gpu: {error}", file=sys.stderr)
        return NO_GPU
    if device.type == "cpu" and given.device != "cpu":
        print("gpu: this machine has no GPU that PyTorch can use (CUDA or MPS): run it on one that "
              "has, or try the code with --device cpu.", file=sys.stderr)  # fmt: skip
        return NO_GPU
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    image, boxes = slice_of_phantom()
    side, least = (256, 0.0) if quick else (8192, 0.5)
    peaks = {name: peak(device, name, side, least) for name in precisions(device)}
    known = about(device, peaks)
    equal: list[Row] = []
    fast: list[Row] = []
    for subject in chosen:
        if subject.published:
            equal += equality(subject, device, image, boxes, QUICK if quick else SETTINGS)
        largest = 2 if quick else given.largest
        fast += speed(subject, device, image, boxes, largest, peaks, least)
        write(given.out, equal, fast, known)  # after each: nothing is lost
    print((given.out / "summary.md").read_text(encoding="utf-8"))
    return int(any(row["within"] is False for row in equal))


def write(out: Path, equal: list[Row], fast: list[Row], known: Row) -> None:
    """The four files."""
    frames = pd.DataFrame(equal, columns=EQUALITY), pd.DataFrame(fast, columns=SPEED)
    for name, frame in zip(("equality", "speed"), frames, strict=True):
        with atomic(out / f"{name}.csv") as path:
            frame.to_csv(path, index=False)
    write_text(out / "about.json", json.dumps(known, indent=2) + "\n")
    write_text(out / "summary.md", summary(*frames, cast(Mapping[str, Any], known)))


if __name__ == "__main__":
    sys.exit(main())
