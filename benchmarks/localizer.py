"""How well a localizer finds organs: on phantoms that nothing was trained or chosen on, on scans.

    PYTHONPATH=scripts python benchmarks/localizer.py [--volumes 34] [--sheet samples.tsv …]
    PYTHONPATH=scripts python benchmarks/localizer.py --localizer FILE --ablation --varied

Prints a Markdown table, a row for each group of slices: Dice of each organ's map (its most probable
class), Dice of the compact SAM with the box of its ROI, the share of organs that are not there and
are found all the same, seconds per slice. Dice is the mean over the slices that hold the organ.
``--islands 1`` also tries boxes around the largest part of each ROI alone, 0.2 around all parts of
at least a fifth of its size. ``--ablation`` adds the
same weights with all that comes from the text at zero, ``--varied`` the same slices as others bring
them (see `VARIATIONS`).

Phantoms: 34 volumes of each modality from seeds that no pool and no study uses, with the default
settings, at a quarter, a half and three quarters of the labelled extent.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from compact import phantom
from xaiclip.config import default_config
from xaiclip.config.constraints import label_table
from xaiclip.data.record import Slice
from xaiclip.data.sheet import Case, read_sheet
from xaiclip.data.slices import take_slices
from xaiclip.localizer.locating import COMPACT, Locator
from xaiclip.localizer.model import predict_slice
from xaiclip.masks.roi import Roi, RoiSettings, body_mask, box_of, rois_of
from xaiclip.models.segmenters.base import Segmenter
from xaiclip.models.segmenters.loading import load_segmenter
from xaiclip.models.segmenters.predict import segment_slice
from xaiclip.organs import BACKGROUND
from xaiclip.preprocess import preprocess
from xaiclip.report.markdown import pipe_table

#: First seed of the phantoms that are looked at here alone.
SEED = 9_000_000
_FALSE = 20
Mask = NDArray[np.bool_]


def dice(a: Mask, b: Mask) -> float:
    """Of two masks of which one is not empty."""
    return 2 * float((a & b).sum()) / float(a.sum() + b.sum())


def settings() -> dict[str, object]:
    """How a study with the default configuration takes every slice of a scan."""
    config = default_config()
    return {
        "classes": config["classes"],
        "labels": label_table(config),
        **{key: config["data"][key] for key in ("window", "percentiles")},
        **{key: config["data"][key] for key in ("orientation", "implausible")},
        **{"policy": "all", "index": None, "every": 1},
    }


def labelled(case: Case) -> list[Slice]:
    """The slices of a scan that hold an organ."""
    taken = take_slices(case, settings())
    items = [item for item in taken.slices if item.label is not None and item.label.any()]
    if not items:
        raise SystemExit(f"{case.name}: no slice holds an organ, or it cannot be read.")
    return items


def phantoms(volumes: int, modality: str, seed: int = SEED) -> Iterator[Slice]:
    """Three slices of each of ``volumes`` phantoms."""
    with TemporaryDirectory() as folder:
        for number in range(volumes):
            image, label = Path(folder, "x.nii.gz"), Path(folder, "y.nii.gz")
            phantom.write(phantom.generate(seed + number, modality), image, label)
            case = Case(f"{modality}{number}", image, label, modality, "test")
            items = labelled(case)
            for share in (0.25, 0.5, 0.75):
                yield items[int(share * (len(items) - 1))]


def large_parts(roi: Roi, margin: float, share: float) -> Roi:
    """The parts of an ROI that have at least a share of the largest one's pixels, and their box."""
    from scipy import ndimage

    parts, count = ndimage.label(roi.mask)
    if count < 2:
        return roi
    sizes = np.bincount(parts.ravel())[1:]
    mask = np.isin(parts, 1 + np.flatnonzero(sizes >= share * sizes.max()))
    return Roi(mask, box_of(mask, margin))


def look(
    locator: Locator, segmenter: Segmenter, item: Slice, islands: float
) -> Iterator[tuple[str, str, float]]:
    """What was measured in a slice: (what, organ, value)."""
    assert item.label is not None
    began = time.perf_counter()
    image, letterbox = preprocess(item.image, locator.settings)
    maps = predict_slice(locator.localizer, image)
    yield "seconds", "", time.perf_counter() - began
    classes = locator.classes
    winners = letterbox.invert(maps.argmax(0).astype(np.uint8), nearest=True)
    rois, _ = rois_of(item, maps, letterbox, classes, RoiSettings())
    kinds = {"box": {organ: sources["localizer"] for organ, sources in rois.items()}}
    if islands:
        margin = RoiSettings().margin
        kinds["island"] = {
            organ: large_parts(roi, margin, islands) for organ, roi in kinds["box"].items()
        }
    for index, organ in enumerate(classes):
        truth, found = item.label == index, winners == index
        if organ != BACKGROUND and not truth.any():
            yield "false", organ, float(found.sum() >= _FALSE)
        elif organ != BACKGROUND:
            yield "map", organ, dice(found, truth)
    for kind, regions in kinds.items():
        boxes = {organ: roi.box for organ, roi in regions.items()}
        boxes = {organ: box for organ, box in boxes.items() if box is not None}
        masks = segment_slice(segmenter, item.image, boxes) if boxes else {}
        for index, organ in enumerate(classes):
            truth = item.label == index
            if organ != BACKGROUND and truth.any():
                yield kind, organ, dice(masks[organ], truth) if organ in masks else 0.0


def summary(rows: list[tuple[str, str, float]]) -> dict[str, float]:
    """Means by what was measured, and by organ."""
    table = pd.DataFrame(rows, columns=["what", "organ", "value"])
    out: dict[str, float] = {}
    for what in ("map", "box", "island"):
        means = table[table.what == what].groupby("organ", sort=False).value.mean()
        if len(means):
            out[f"{what}: mean"] = means.mean()
            out |= {f"{what}: {organ}": value for organ, value in means.items()}
    out["false"] = table[table.what == "false"].value.mean()
    out["seconds"] = table[table.what == "seconds"].value.median()
    return out


def below_zero(item: Slice) -> Slice:
    """A windowed CT slice (level 40, width 400) that has lost all below 0 HU: fat and air alike."""
    return replace(item, image=np.maximum(item.image, np.uint8(102)))


def narrow(item: Slice) -> Slice:
    """A window of half the width."""
    grey = (item.image.astype(np.float32) - 127.5) * 2 + 127.5
    return replace(item, image=np.clip(grey, 0, 255).astype(np.uint8))


def cropped(item: Slice) -> Slice:
    """A field of view that ends where the body does."""
    assert item.label is not None
    rows, columns = (np.flatnonzero(body_mask(item.image).any(axis)) for axis in (1, 0))
    cut = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
    return replace(item, image=item.image[cut], label=item.label[cut])


def shifted(item: Slice) -> Slice:
    """A body at the right and lower rim of a field of view that is half as large again."""
    assert item.label is not None
    pad = [(side // 2, 0) for side in item.image.shape]
    return replace(item, image=np.pad(item.image, pad), label=np.pad(item.label, pad))


VARIATIONS = {"HU ≥ 0": below_zero, "narrow": narrow, "cropped": cropped, "shifted": shifted}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--localizer", default=COMPACT, help="(%(default)s)")
    parser.add_argument("--volumes", type=int, default=34, help="of each modality (%(default)s)")
    parser.add_argument("--seed", type=int, default=SEED, help="of the first one (%(default)s)")
    parser.add_argument("--sheet", nargs="*", default=[], help="sample sheets of scans with labels")
    parser.add_argument("--ablation", action="store_true")
    parser.add_argument("--varied", action="store_true")
    parser.add_argument("--islands", type=float, default=0.0, metavar="SHARE")
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)

    groups = {
        f"phantom {kind}": list(phantoms(given.volumes, kind, given.seed))
        for kind in ("CT", "MR")
        if given.volumes
    }
    for sheet in given.sheet:
        for case in read_sheet(sheet):
            groups[case.name] = labelled(case)
    if given.varied:
        for (name, items), (how, change) in product(list(groups.items()), VARIATIONS.items()):
            if change is not below_zero or items[0].modality == "CT":
                groups[f"{name}, {how}"] = [change(item) for item in items]
    locator = Locator(given.localizer, "cpu")
    segmenter = load_segmenter({**default_config()["segmenter"], "model": "compact"}, "cpu", "fp32")
    rows = []
    for text in (True, False) if given.ablation else (True,):
        locator.localizer.settings = replace(locator.localizer.settings, text=text)
        for name, items in groups.items():
            found = [row for item in items for row in look(locator, segmenter, item, given.islands)]
            label = name if text else f"{name}, no text"
            rows.append({"slices of": label, "n": len(items), **summary(found)})
            print(label, rows[-1], flush=True)
    table = pd.DataFrame(rows).set_index("slices of").round(3)
    print(pipe_table(table.T.reset_index(names="")))


if __name__ == "__main__":
    main()
