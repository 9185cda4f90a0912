"""A made-up study: every file that the figures are drawn from, without a model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch.nn.functional import adaptive_avg_pool2d

from stored_maps import load_rois
from xaiclip.data.geometry import Geometry
from xaiclip.data.record import Slice, SliceName, save_slices
from xaiclip.errors import Skip
from xaiclip.explain import method
from xaiclip.explain.attribution import (
    Attribution,
    save_attributions,
    to_canonical_image,
    to_canonical_mask,
)
from xaiclip.explain.engine import ScoreTable
from xaiclip.explain.plan import Context, Plan
from xaiclip.explain.runner import attribute_slice
from xaiclip.explain.store import SliceScores, save_scores
from xaiclip.localizer.probabilities import save_probabilities
from xaiclip.masks.roi import RoiSettings, rois_of, save_rois
from xaiclip.masks.segmented import save_masks
from xaiclip.metrics.rows import explanation_rows
from xaiclip.metrics.schema import EXPLANATIONS, write_table
from xaiclip.organs import OUTSIDE, REST, SIX_CLASSES, organs_of
from xaiclip.preprocess import Letterbox, preprocess_slices, save_preprocessed
from xaiclip.report.sources import Settings, sources_of
from xaiclip.report.tables.data import write
from xaiclip.report.tables.shapley_units import COLUMNS, shapley_units

CLASSES = list(SIX_CLASSES)
ORGANS = organs_of(CLASSES)
BATCH = "test-0"
VALUES = ("soft_dice", "in_mask_probability", "hard_dice", "hard_iou")
FEW: Mapping[str, Mapping[str, Any]] = {
    "occlusion": {},
    "lime": {"superpixels": ["felzenszwalb", "slic"], "samples": 12, "min_samples": 6},
    "rise": {"masks": 12, "estimators": ["covariance", "paper"]},
}
COST = {
    "device": "cpu",
    "precision": "fp32",
    "decoded_organs": 5,
    "encode": {"ptflops": 20.0, "total": 26.0},
    "decode": {"ptflops": 1.0, "total": 1.2},
    "localizer": {"ptflops": 3.0, "total": 4.0},
}
PLACES = {"liver": (40, 30), "right kidney": (62, 38), "left kidney": (62, 92),
          "spleen": (40, 104), "pancreas": (48, 70)}  # fmt: skip


def drawn_slice(
    case: str, seed: int = 0, *, index: int = 7, labelled: bool = True, without: str = ""
) -> Slice:
    """Five discs in an ellipse: (96, 128) pixels of 3 × 2.5 mm."""
    rows, columns = np.mgrid[:96, :128]
    body = ((rows - 48) / 44) ** 2 + ((columns - 64) / 60) ** 2 < 1
    image, label = 90.0 * body, np.zeros((96, 128), np.uint8)
    for number, (organ, (row, column)) in enumerate(PLACES.items(), start=1):
        disc = np.hypot(rows - row, columns - column) < (17 if organ == "liver" else 9)
        if organ != without:
            label[disc], image[disc] = number, 130 + 12 * number
    image += np.random.default_rng(seed).normal(0, 6, image.shape) * body
    affine = np.diag([2.5, 3.0, 5.0, 1.0])
    grey = image.clip(0, 255).astype(np.uint8)
    geometry = Geometry(affine, (128, 96, 20))
    return Slice(case, index, "CT", grey, label if labelled else None, geometry)


def make_study(
    root: Path,
    slices: Sequence[Slice],
    *,
    truth: Sequence[Slice] | None = None,
    settings: Mapping[str, Mapping[str, Any]] = FEW,
    guidances: Sequence[str] = ("full", "roi"),
    skips: Sequence[Skip] = (),
) -> Path:
    """Write all files below ``root``; organs are where the labels of ``truth`` have them."""
    seen = {item.key: item.label for item in truth or slices}
    save_slices(root / f"slices/{BATCH}.npz", slices, skips)
    save_preprocessed(root / f"preprocessed/{BATCH}.npz", preprocess_slices(slices))
    maps, rois = {}, {}
    masks: dict[tuple[SliceName, str, str], NDArray[np.bool_]] = {}
    for item in slices:
        label = seen[item.key]
        assert label is not None
        box = Letterbox.fit(item.image.shape, 224)
        whole = box.apply(label, nearest=True)
        soft = np.stack([ndimage.gaussian_filter((whole == c) * 1.0, 3) for c in range(6)])
        soft = 0.97 * ndimage.shift(soft, (0, 2, 3), order=1, mode="nearest") + 0.005
        maps[item.key] = (soft / soft.sum(0)).astype(np.float16)
        rois[item.key], _ = rois_of(item, maps[item.key], box, CLASSES, RoiSettings())
        for index, organ in enumerate(ORGANS, start=1):
            mask = ndimage.binary_opening(label == index, iterations=2)
            if mask.any():
                masks[item, organ, "roi"] = mask
    localized = dict.fromkeys(maps, 0.03)
    save_probabilities(root / f"localization/text/{BATCH}.npz", maps, localized, CLASSES)
    save_rois(root / f"roi/{BATCH}.npz", rois)
    reason = "the unperturbed segmentation is empty"
    left_out = [
        Skip(item.case, "segment", reason, item.index, organ)
        for item in slices
        for organ in ORGANS
        if (item, organ, "roi") not in masks
    ]
    save_masks(root / f"segmentation/{BATCH}.npz", masks, left_out)
    regions, _ = load_rois(root / f"roi/{BATCH}.npz")
    rows: list[dict[str, Any]] = []
    for name in settings:
        for guidance in guidances:
            done, attributions = [], []
            for item in slices:
                mine = {
                    organ: masks[item, organ, "roi"]
                    for organ in ORGANS
                    if (item, organ, "roi") in masks
                    and regions[item.key][organ]["localizer"].mask.any()
                }
                one = scored(item, mine, name, guidance, settings[name], regions[item.key])
                found, seconds = attribute_slice(one) if one else ([], 0.0)
                done += [one] if one else []
                attributions += [(item.case, item.index, attribution) for attribution in found]
                rows += explanation_rows(
                    item,
                    one,
                    found,
                    [skip for skip in left_out if skip.case == item.case],
                    organs=ORGANS,
                    method=name,
                    guidance=guidance,
                    prompt="roi",
                    seed=0,
                    segmented=mine,
                    reference={
                        organ: None if item.label is None else to_canonical_mask(item.label == c)
                        for c, organ in enumerate(ORGANS, start=1)
                    },
                    seconds_aggregate=seconds,
                    seconds_roi=0.03,
                    cost=COST,
                )
            folder = f"{name}/{guidance}/{BATCH}.npz"
            save_scores(root / "scores" / folder, done, left_out)
            save_attributions(root / "attributions" / folder, attributions)
    write_table(root / "metrics/explanations.parquet", rows, EXPLANATIONS)
    write_units(root, {organ for _, organ, _ in masks}, guidances)
    for variant, gain in (("text", 1.0), ("no_text", 0.85)):
        write_history(root / f"localizer/{variant}/training.csv", gain)
    return root


def scored(
    item: Slice,
    masks: Mapping[str, np.ndarray],
    name: str,
    guidance: str,
    settings: Mapping[str, Any],
    rois: Mapping[str, Mapping[str, Any]],
) -> SliceScores | None:
    """Scores that fall with the share of the organ, and a little of its surroundings, hidden."""
    if not masks:
        return None
    organs = tuple(masks)
    canonical = np.stack([to_canonical_mask(mask) for mask in masks.values()])
    regions = np.stack([to_canonical_mask(rois[organ]["localizer"].mask) for organ in organs])
    context = Context(
        image=to_canonical_image(item.image),
        organs=organs,
        masks=canonical,
        rois=regions if guidance == "roi" else None,
        seed=3,
        settings=settings,
        explained=VALUES[:1],
    )
    plans = method(name).plans(context)
    return SliceScores(
        case=item.case,
        index=item.index,
        method=name,
        guidance=guidance,
        context=context,
        plans=plans,
        tables={key: _table(plan, canonical) for key, plan in plans.items()},
        seconds={"encode": 0.1, "total": 0.1},
    )


def _table(plan: Plan, masks: np.ndarray) -> ScoreTable:
    small = adaptive_avg_pool2d(torch.from_numpy(masks).float(), 64).numpy()
    near = np.stack([ndimage.gaussian_filter(mask, 6) for mask in small])
    near /= near.sum((1, 2), keepdims=True)
    inside = small / small.sum((1, 2), keepdims=True)
    keep = plan.keep(0, plan.n_forwards, 64).numpy()[:, 0]
    share = np.einsum("nhw,ohw->no", keep, 1.15 * inside - 0.15 * near)
    noise = np.random.default_rng(1).normal(0, 0.01, share.shape)
    dice = (0.3 + 0.68 * share + noise).clip(0, 1)
    scores = np.stack([dice, dice**1.2, dice, dice / (2 - dice)], axis=-1)
    n = plan.n_forwards
    seconds = {"perturb": 0.004 * n, "encode": 0.03 * n, "decode": 0.01 * n, "total": 0.045 * n}
    baseline = np.tile(np.array([0.98, 0.97, 1.0, 1.0], np.float32), (len(masks), 1))
    return ScoreTable(scores.astype(np.float32), baseline, VALUES, seconds, n)


def write_units(root: Path, explained: Iterable[str], guidances: Sequence[str]) -> None:
    """The table of units: each organ hangs on itself, and a little on all that is there."""
    paths = [root / f"attributions/shapley/{guidance}/{BATCH}.npz" for guidance in guidances]
    organs = [organ for organ in ORGANS if organ in explained]
    blank = np.zeros((512, 512), np.float32)
    for path in paths:
        maps = [
            Attribution(
                organ,
                "value",
                "soft_dice",
                blank,
                ("coalitions",),
                units={
                    unit: 0.3 if unit == organ else 0.02 * place - 0.05
                    for place, unit in enumerate((*organs, REST, OUTSIDE))
                },
            )
            for organ in organs
        ]
        save_attributions(path, [("a", 7, one) for one in maps])
    nothing = pd.DataFrame(columns=COLUMNS)
    table = shapley_units(
        paths, nothing, classes=CLASSES, settings={"regions": "prediction"}, resamples=100
    )
    write(table, root / "tables/shapley_units.csv", root / "tables/shapley_units.md")


def write_history(path: Path, gain: float = 1.0, epochs: int = 12) -> None:
    """A training log as the localizer writes it; the spleen is missing from the validation."""
    columns = ["epoch", "train_loss", "val_loss", "val_dice"]
    columns += [f"val_dice_{name}" for name in CLASSES] + ["selected"]
    lines = [",".join(columns)]
    for epoch in range(1, epochs + 1):
        loss = 1.6 * np.exp(-epoch / 5) + 0.3
        best = gain * 0.8 * (1 - np.exp(-epoch / 4))
        dice = ["" if name == "spleen" else f"{best - 0.04 * c}" for c, name in enumerate(CLASSES)]
        values = [epoch, loss, loss * 1.15, best, *dice, float(epoch == epochs - 1)]
        lines.append(",".join(map(str, values)))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


#: What a study's figures are given, by folder.
ONE_BATCH = ("slices", "preprocessed", "localization/text", "roi", "segmentation")
EXPLAINED = [f"{m}/{g}" for m in ("occlusion", "lime", "rise") for g in ("full", "roi")]
FOLDERS = [
    *ONE_BATCH,
    *(f"{kind}/{name}" for kind in ("scores", "attributions") for name in EXPLAINED),
]
ATTRIBUTIONS = {
    "figure03_lime_superpixels": ["lime/full"],
    "figure04_rise": ["rise/roi"],
    "figure05_occlusion": ["occlusion/full"],
    "figure06_selective_occlusion": ["occlusion/full", "occlusion/roi"],
    "figure07_occlusion_overview": ["occlusion/roi"],
    "figure10_occlusion_maps": ["occlusion/full", "occlusion/roi"],
    "figure12_lime_stages": ["lime/full", "lime/roi"],
    "figure13_rise_stages": ["rise/full", "rise/roi"],
}  # fmt: skip


def files_of(root: Path, name: str) -> dict[str, Path]:
    """What a figure is given: its own attributions and every other file."""
    own = ATTRIBUTIONS.get(name, [])
    paths = [
        root / folder / f"{BATCH}.npz"
        for folder in FOLDERS
        if not folder.startswith("attributions/") or folder.removeprefix("attributions/") in own
    ]
    paths += [root / f"localizer/{variant}/training.csv" for variant in ("text", "no_text")]
    paths += [root / "metrics/explanations.parquet", root / "tables/shapley_units.csv"]
    return sources_of(paths, root)


def settings_of(classes: Sequence[str] = CLASSES, **changes: Any) -> Settings:
    """What figures show, where nothing else is said."""
    return Settings(
        **{
            "classes": classes,
            "case": None,
            "organ": "liver",
            "prompt": "roi",
            "dpi": 150,
            **changes,
        }
    )
