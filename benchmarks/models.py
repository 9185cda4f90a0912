"""The segmenters side by side on scans of your own: Dice, seconds, memory.

    PYTHONPATH=scripts python benchmarks/models.py samples.tsv \\
        --model compact --model litemedsam=auto --model medsam=medsam_vit_b.pth

Boxes come from the labels (what a model can do) and from the localizer (what a study does). Writes
dice.csv, speed.csv and models.md; `--docs docs/models.md` puts the last into that page. Models are
timed in turn, A B A B …, so that a machine that slows down slows all.
"""

from __future__ import annotations

import argparse
import logging
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from benchmark import Peak
from numpy.typing import NDArray
from page import markdown, page_with

from xaiclip import load_model
from xaiclip.arguments import reference_boxes
from xaiclip.data.record import Slice
from xaiclip.data.sheet import Case, read_sheet
from xaiclip.data.slices import take_slices
from xaiclip.errors import CaseError
from xaiclip.explain.engine import BatchSize
from xaiclip.files import atomic, write_text
from xaiclip.localizer.locating import Locator
from xaiclip.masks.roi import Roi
from xaiclip.metrics.overlap import dice
from xaiclip.models.segmenters.base import Prompts, Segmenter, networks_of
from xaiclip.models.segmenters.predict import segment_slice
from xaiclip.organs import FLARE22, SIX_CLASSES, organs_of

log = logging.getLogger("models")
Boxes = Mapping[str, NDArray[np.float32] | None]
ORGANS = organs_of(SIX_CLASSES)
#: Pixels of an organ's section below which its Dice says little; the section is left out.
LEAST = 50
#: Of a slice: the unperturbed image and 225 windows of occlusion.
FORWARDS = 226
READING: dict[str, Any] = {
    "window": {"level": 40, "width": 400},
    "percentiles": {"low": 0.5, "high": 99.5},
    "orientation": None,
    "implausible": "warn",
    "classes": list(SIX_CLASSES),
    "labels": dict(FLARE22),
    "policy": "all",
}
DICE = ["case", "model", "boxes", "slice", "organ", "dice"]
SPEED = [
    *("model", "parameters_m", "side", "batch", "encode_seconds", "decode_seconds"),
    *("slice_seconds", "peak_mb"),
]


@dataclass(frozen=True)
class Prompted:
    """A slice with its boxes by where they come from, and the localizer's masks."""

    item: Slice
    boxes: Mapping[str, Boxes]
    masks: Mapping[str, NDArray[np.bool_]]

    @property
    def organs(self) -> tuple[str, ...]:
        """Those of which enough is seen."""
        return tuple(organ for organ in ORGANS if self.reference(organ).sum() >= LEAST)

    def reference(self, organ: str) -> NDArray[np.bool_]:
        """Where the label has it."""
        assert self.item.label is not None
        return np.asarray(self.item.label == ORGANS.index(organ) + 1)


def evenly(items: Sequence[Any], count: int) -> list[Any]:
    """``count`` of the items, evenly spaced; all, if there are fewer or ``count`` is 0."""
    if not count or len(items) <= count:
        return list(items)
    at = (np.arange(count) + 0.5) * len(items) / count
    return [items[int(k)] for k in at]


def labelled(case: Case, count: int) -> list[Slice]:
    """Slices of a case that show enough of an organ.

    Raises:
        CaseError: it has no label, or none of its slices does.
    """
    if case.label is None:
        raise CaseError("it has no label to compare with.", case.image)
    taken = take_slices(case, READING).slices
    shown = [one for one in taken if Prompted(one, {}, {}).organs]
    if not shown:
        raise CaseError(f"no slice shows {LEAST} pixels of an organ.", case.label)
    return evenly(shown, count)


def prompted(item: Slice, locate: Callable[[Slice], Mapping[str, Roi]]) -> Prompted:
    """A slice with the boxes of its label and of the localizer."""
    found = locate(item)
    boxes = {
        "reference": reference_boxes(item, SIX_CLASSES),
        "localizer": {organ: roi.box for organ, roi in found.items()},
    }
    return Prompted(item, boxes, {organ: roi.mask for organ, roi in found.items()})


def scored(name: str, segmenter: Segmenter, slices: Iterable[Prompted]) -> Iterator[dict[str, Any]]:
    """Dice of each organ's section; 0 where there is no box for it."""
    for one in slices:
        for source, boxes in one.boxes.items():
            asked = {organ: boxes.get(organ) for organ in one.organs}
            masks = segment_slice(segmenter, one.item.image, asked)
            for organ in one.organs:
                hit = dice(masks[organ], one.reference(organ)) if organ in masks else 0.0
                yield _row(one, name, source, organ, hit)
        log.info("%s, %s/%d", name, one.item.case, one.item.index)


def located(slices: Iterable[Prompted]) -> Iterator[dict[str, Any]]:
    """The same of the localizer's own masks."""
    for one in slices:
        for organ in one.organs:
            mask = one.masks.get(organ)
            hit = 0.0 if mask is None else dice(mask, one.reference(organ))
            yield _row(one, "localizer alone", "", organ, hit)


def _row(one: Prompted, model: str, boxes: str, organ: str, value: float) -> dict[str, Any]:
    where = {"case": one.item.case, "slice": one.item.index, "organ": organ}
    return {**where, "model": model, "boxes": boxes, "dice": value}


def dice_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Mean Dice of an organ's sections by case, model and boxes; ``mean`` is that of the organs."""
    wide = rows.pivot_table(
        index=["case", "model", "boxes"], columns="organ", values="dice", sort=False
    )
    wide = wide.reindex(columns=[organ for organ in ORGANS if organ in wide.columns])
    wide["mean"] = wide.mean(axis=1)
    return wide.reset_index().rename_axis(columns=None)


def once(segmenter: Segmenter, one: Prompted) -> tuple[float, float, int]:
    """Seconds of an encode and of a decode for all organs, by image; and the batch."""
    boxes = {k: box for k, box in one.boxes["reference"].items() if box is not None}
    shape = (one.item.image.shape[0], one.item.image.shape[1])
    prompts = Prompts.from_pixels(list(boxes), np.stack(list(boxes.values())), shape)
    batch = BatchSize.of("auto", segmenter.device, segmenter.input_size).value
    images = segmenter.prepare(one.item.image).expand(batch, -1, -1, -1).contiguous()
    with torch.inference_mode():
        start = time.perf_counter()
        embeddings = segmenter.encode(images)
        middle = time.perf_counter()
        segmenter.decode(embeddings, prompts)
        end = time.perf_counter()
    return (middle - start) / batch, (end - middle) / batch, batch


def timed(segmenters: Mapping[str, Segmenter], one: Prompted, repeats: int) -> list[dict[str, Any]]:
    """What a slice takes, the models in turn; medians, without the first turn."""
    spent: dict[str, list[tuple[float, float, int]]] = {name: [] for name in segmenters}
    for turn in range(repeats + 1):
        for name, segmenter in segmenters.items():
            spent[name].append(once(segmenter, one))
            log.info("%s, turn %d: encode %.3f s, decode %.3f s", name, turn, *spent[name][-1][:2])
    rows = []
    for name, segmenter in segmenters.items():
        encode, decode, batch = np.median(spent[name][1:], axis=0)
        rows.append(
            {
                "model": name,
                "parameters_m": parameters(segmenter) / 1e6,
                "side": segmenter.input_size,
                "batch": int(batch),
                "encode_seconds": encode,
                "decode_seconds": decode,
                "slice_seconds": FORWARDS * (encode + decode),
            }
        )
    return rows


def parameters(segmenter: Segmenter) -> int:
    """Of all its networks."""
    return sum(p.numel() for one in networks_of(segmenter).values() for p in one.parameters())


def page(rows: pd.DataFrame, speed: pd.DataFrame, machine: str) -> str:
    """Both tables."""
    table = dice_table(rows)
    sections = [
        f"{one.slice.nunique()} slices of {case}" for case, one in rows.groupby("case", sort=False)
    ]
    table["case"] = table["case"].map(lambda name: f"`{name}`")
    digits = dict.fromkeys([*ORGANS, "mean"], 2)
    seconds = {"parameters_m": 1, "encode_seconds": 3, "decode_seconds": 3, "slice_seconds": 0}
    return "\n\n".join(
        [
            f"Mean Dice of the organs' sections ({', '.join(sections)}):",
            markdown(table, digits),
            f"{machine}; a slice is {FORWARDS} forwards (occlusion), {len(ORGANS)} organs:",
            markdown(speed, {**seconds, "peak_mb": 0}),
        ]
    )


def save(frame: pd.DataFrame, path: Path) -> None:
    """As CSV, whole or not at all."""
    with atomic(path) as temporary:
        frame.to_csv(temporary, index=False)


def _model(text: str) -> tuple[str, str | None]:
    name, _, weights = text.partition("=")
    return name, weights or None


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("sheet", type=Path, help="a sample sheet; cases with a label count")
    add("--model", action="append", type=_model, metavar="NAME[=WEIGHTS]", help="default: compact")
    add("--localizer", default="compact", help="compact, or a study's .safetensors")
    add("--slices", type=int, default=12, help="of a case, at most; 0 = all (%(default)s)")
    add("--repeats", type=int, default=5, help="timed turns (%(default)s)")
    add("--threads", type=int, default=torch.get_num_threads())
    add("--out", type=Path, default=Path("results/models"))
    add("--docs", type=Path, help="a page with a place for the numbers, to put them into")
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    torch.set_num_threads(given.threads)
    locator = Locator(given.localizer, "cpu")
    slices = [
        prompted(item, locator.rois)
        for case in read_sheet(given.sheet)
        if case.label is not None
        for item in labelled(case, given.slices)
    ]
    if not slices:
        raise SystemExit("models: no case of the sheet has a label to compare with.")
    segmenters: dict[str, Segmenter] = {}
    rows: list[dict[str, Any]] = []
    peaks: dict[str, float] = {}
    for name, weights in given.model or [("compact", None)]:
        with Peak() as peak:
            segmenters[name] = load_model(name, checkpoint=weights, device="cpu", precision="fp32")
            rows += scored(name, segmenters[name], slices[:1])
            once(segmenters[name], slices[0])  # a full batch
        peaks[name] = peak.megabytes
        rows += scored(name, segmenters[name], slices[1:])
    rows += located(slices)
    dices = pd.DataFrame(rows, columns=DICE)
    save(dices, given.out / "dice.csv")  # before what takes longest
    fullest = max(slices, key=lambda one: (len(one.organs), one.item.image.size))
    times = timed(segmenters, fullest, given.repeats)
    speed = pd.DataFrame([{**row, "peak_mb": peaks[row["model"]]} for row in times], columns=SPEED)
    save(speed, given.out / "speed.csv")
    cpu = torch.cpu.get_capabilities().get("cpu_name") or platform.processor()
    version = torch.__version__.split("+")[0]
    machine = (
        f"{cpu}, {given.threads} threads, PyTorch {version}, fp32, {time.strftime('%Y-%m-%d')}"
    )
    numbers = page(dices, speed, machine) + "\n"
    write_text(given.out / "models.md", numbers)
    print(numbers)
    if given.docs:
        write_text(given.docs, page_with(numbers, given.docs.read_text(encoding="utf-8")))


if __name__ == "__main__":
    main()
