"""The compact SAM: the same classes as MedSAM's, at 256 pixels, trained on the phantom.

It exists so that the demo and the tests explain a real promptable segmenter without a download.
It learns to fill boxes: five organs above all, but also the other structures of FLARE22 and
random blobs, so that the box rather than the organ's name says what is meant.
"""

from __future__ import annotations

import copy
import csv
import logging
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import save_file
from segment_anything.modeling import Sam
from torch import Tensor, nn

from compact.pool import MR_WHITE, PoolSlice, load_pool
from xaiclip.device import autocast, choose_device, choose_precision
from xaiclip.files import atomic, write_json
from xaiclip.models.segmenters.base import Prompts, to_mask
from xaiclip.models.segmenters.compact import CONFIG, build
from xaiclip.models.segmenters.decoder import box_masks, decode_pairs
from xaiclip.models.segmenters.sam import SamSegmenter
from xaiclip.organs import FLARE22, SIX_CLASSES, organs_of

log = logging.getLogger(__name__)

Float = NDArray[np.float32]
Grey = NDArray[Any]  # as OpenCV returns it

_IDS = {name: i for i, name in FLARE22.items()}
_MAIN = [_IDS[name] for name in organs_of(SIX_CLASSES)]


# -------------------------------------------------------------------------------------- examples


@dataclass(frozen=True)
class Example:
    """One image and P prompts.

    ``image`` is float32 (S, S) in 0…1; ``targets`` float32 (P, S/2, S/2), the share of each pixel
    that belongs to the organ; ``boxes`` float32 (P, 4), XYXY in pixels of the image.
    """

    image: Float
    targets: Float
    boxes: Float


def _grey(piece: PoolSlice, rng: np.random.Generator) -> Float:
    """Grey values in 0…1: a CT window, mostly about 40/400, or a range of MR values."""
    image = piece.image.astype(np.float32)
    if piece.modality == "CT":
        if rng.random() < 0.6:
            level, width = rng.normal(40, 12), 400 * np.exp(rng.normal(0, 0.12))
        else:
            level, width = rng.uniform(0, 100), rng.uniform(180, 800)
        low, gamma, inverted = level - width / 2, rng.normal(0, 0.12), 0.03
    else:
        low, width = 0.0, MR_WHITE * np.exp(rng.uniform(-0.4, 0.3))
        gamma, inverted = rng.normal(0, 0.35), 0.15
    grey = np.clip((image - low) / width, 0, 1) ** np.float32(np.exp(gamma))
    if rng.random() < inverted:
        grey = 1 - grey
    return grey.astype(np.float32)


def _coarser(grey: Grey, piece: PoolSlice, rng: np.random.Generator) -> Float:
    """Resample to 2–4.2 mm pixels where the slice is finer, blur, add noise."""
    height, width = grey.shape
    if rng.random() < 0.4:
        wanted = rng.uniform(2.0, 4.2)
        size = [
            max(32, round(n * min(mm / wanted, 1)))
            for n, mm in zip((width, height), piece.spacing[::-1], strict=True)
        ]
        grey = cv2.resize(grey, size, interpolation=cv2.INTER_AREA)
    if rng.random() < 0.3:
        grey = cv2.GaussianBlur(grey, (0, 0), rng.uniform(0.3, 1.0))
    if rng.random() < 0.5:
        grey = grey + rng.standard_normal(grey.shape, np.float32) * np.float32(rng.uniform(0, 0.07))
    if rng.random() < 0.15:  # an unsharp mask, as edge-enhancing kernels do
        soft = cv2.GaussianBlur(grey, (0, 0), rng.uniform(0.8, 2))
        grey = grey + np.float32(rng.uniform(0.2, 1)) * (grey - soft)
    return np.clip(grey, 0, 1)


def _view(shape: tuple[int, int], centre: Float, size: int, rng: np.random.Generator) -> Float:
    """Affine (3, 3) from fractions of the slice to pixels of the model's input."""
    zoom = math.exp(rng.uniform(-0.2, 0.35)) if rng.random() < 0.6 else 1.0
    aspect = math.exp(rng.normal(0, 0.07))
    angle = math.radians(rng.normal(0, 5))
    flip = np.where(rng.random(2) < (0.5, 0.03), -1.0, 1.0)
    # look at an organ the more, the closer the view
    look = np.clip(2 * (zoom - 1), 0, 0.8) * (centre - 0.5) + rng.normal(0, 0.04, 2)
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    linear = turn @ np.diag(flip * zoom * size * np.array([aspect, 1 / aspect]))
    out = np.eye(3, dtype=np.float32)
    out[:2, :2] = linear
    out[:2, 2] = size / 2 - linear @ (0.5 + look)
    return out


def _warp(image: NDArray[Any], view: Float, size: int, scale: float, mode: int) -> NDArray[Any]:
    """Resample through ``view``; pixel centres are at halves, OpenCV's at whole numbers."""
    height, width = image.shape
    full = np.diag([scale, scale, 1]) @ view @ np.diag([1 / width, 1 / height, 1])
    full[:2, 2] += full[:2, :2] @ (0.5, 0.5) - 0.5
    return cv2.warpAffine(image, full[:2], (size, size), flags=mode)


def _blob(size: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """A random smooth shape, 255 inside."""
    cells = int(rng.integers(3, 7))
    field = cv2.resize(
        rng.standard_normal((cells, cells), np.float32), (size, size), interpolation=cv2.INTER_CUBIC
    )
    y, x = np.mgrid[:size, :size].astype(np.float32) / size
    cx, cy = rng.uniform(0.15, 0.85, 2)
    a, b = np.exp(rng.uniform(math.log(0.04), math.log(0.3), 2))
    turn = rng.uniform(0, np.pi)
    u = (x - cx) * np.cos(turn) + (y - cy) * np.sin(turn)
    v = (y - cy) * np.cos(turn) - (x - cx) * np.sin(turn)
    inside = 1 - np.hypot(u / a, v / b) + np.float32(rng.uniform(0, 0.5)) * field > 0
    count, parts, stats, _ = cv2.connectedComponentsWithStats(inside.astype(np.uint8))
    if count < 2:
        return np.zeros((size, size), np.uint8)
    return (parts == 1 + stats[1:, cv2.CC_STAT_AREA].argmax()).astype(np.uint8) * np.uint8(255)


def _half(mask: NDArray[np.uint8]) -> Grey:
    side = mask.shape[0] // 2
    return cv2.resize(mask, (side, side), interpolation=cv2.INTER_AREA)


def _paint_blobs(grey: Float, prompts: int, rng: np.random.Generator) -> tuple[Float, list[Grey]]:
    """Lay blobs of new brightness and grain over the image; what is still seen of each."""
    size = grey.shape[0]
    seen: list[NDArray[np.uint8]] = []
    for _ in range(prompts):
        mask = _blob(size, rng)
        soft = cv2.GaussianBlur(mask, (0, 0), rng.uniform(0.6, 1.6)).astype(np.float32) / 255
        grain = cv2.resize(rng.standard_normal((size // 2, size // 2), np.float32), (size, size))
        under = float(grey[mask > 0].mean()) if mask.any() else 0.5
        step = rng.uniform(0.06, 0.4) * (1 if rng.random() < 0.5 else -1)
        value = np.clip(under + step, 0, 1) + grain * np.float32(rng.uniform(0, 0.06))
        grey = grey + soft * (value - grey)
        seen = [np.where(mask > 0, 0, other).astype(np.uint8) for other in seen] + [mask]
    return np.clip(grey, 0, 1).astype(np.float32), [_half(mask) for mask in seen]


def bounds(mask: NDArray[np.bool_]) -> Float:
    """XYXY edges of a mask that is not empty."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], np.float32)


def sloppy(box: Float, size: int, rng: np.random.Generator) -> Float:
    """A box as people and localizers draw it: near, too large by a margin, or far too large."""
    low, high = box[:2], box[2:]
    extent, kind = high - low, rng.random()
    if kind < 0.3:  # a margin in pixels of a coarse slice
        margin = np.full(4, rng.uniform(0, 0.05) * size)
    elif kind < 0.8:
        margin = rng.normal(0.02, 0.06, 4).clip(-0.14, 0.2) * np.tile(extent, 2)
        margin += rng.uniform(0, 0.02) * size
    else:
        margin = rng.uniform(-0.05, 0.45, 4) * np.tile(extent, 2) * rng.random(4)
    moved = np.concatenate([low - margin[:2], high + margin[2:]]).clip(0, size)
    if (moved[2:] - moved[:2] < 2).any():
        moved = np.concatenate([low - 1, high + 1])
    return moved.astype(np.float32)


def example(
    piece: PoolSlice,
    rng: np.random.Generator,
    *,
    size: int = 256,
    prompts: int = 5,
    blobs: float = 0.06,
) -> Example:
    """Draw a view of a slice with ``prompts`` boxes: organs, or now and then painted blobs."""
    present = np.unique(piece.label)
    present = present[present > 0]
    centre = np.full(2, 0.5, np.float32)
    if len(present):
        liked = [i for i in present if i in _MAIN] or list(present)
        ys, xs = np.nonzero(piece.label == rng.choice(liked))
        centre = np.array([xs.mean() / piece.label.shape[1], ys.mean() / piece.label.shape[0]])
    view = _view(piece.label.shape, centre, size, rng)
    grey = _coarser(_grey(piece, rng), piece, rng)
    mode = cv2.INTER_CUBIC if rng.random() < 0.7 else cv2.INTER_LINEAR
    image = np.clip(_warp(grey, view, size, 1, mode), 0, 1)
    masks: dict[int, NDArray[np.uint8]] = {}
    for i in present:
        mask = _warp(
            (piece.label == i).astype(np.uint8) * np.uint8(255),
            view,
            size // 2,
            0.5,
            cv2.INTER_LINEAR,
        )
        if np.count_nonzero(mask > 127) >= 8:
            masks[int(i)] = mask
    targets: list[Grey]
    if masks and rng.random() >= blobs:
        ids = np.array(list(masks))
        likes = np.where(np.isin(ids, _MAIN), 1.0, 0.15)
        order = rng.choice(ids, min(prompts, len(ids)), replace=False, p=likes / likes.sum())
        extra = rng.choice(ids, prompts - len(order), p=likes / likes.sum())
        targets = [masks[int(i)] for i in (*order, *extra)]
    else:
        targets = []
        while not targets:
            painted, found = _paint_blobs(image, prompts, rng)
            targets = [mask for mask in found if np.count_nonzero(mask > 127) >= 8]
        image = painted
        targets = (targets * prompts)[:prompts]
    boxes = np.stack([sloppy(2 * bounds(mask > 127), size, rng) for mask in targets])
    low, high = image.min(), image.max()
    image = (image - low) / max(high - low, 1e-3)
    return Example(image.astype(np.float32), (np.stack(targets) / 255).astype(np.float32), boxes)


def loss_of(logits: Tensor, targets: Tensor, boxes: Tensor) -> Tensor:
    """Dice + cross-entropy, each organ counting the same whatever its size.

    ``logits`` and ``targets`` are (B, P, h, w), ``boxes`` (B, P, 4) in pixels of logits. The
    cross-entropy is averaged inside the box and outside it apart: most of the image is outside.
    """
    probability = torch.sigmoid(logits)
    both = (probability * targets).sum((-2, -1))
    total = probability.sum((-2, -1)) + targets.sum((-2, -1))
    dice = 1 - (2 * both + 1) / (total + 1)
    entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    inside = box_masks(boxes.flatten(0, 1), logits.shape[-1], logits.shape[-1])
    inside = inside.view_as(entropy)
    mean_in = (entropy * inside).sum((-2, -1)) / inside.sum((-2, -1)).clamp(min=1)
    mean_out = (entropy * (1 - inside)).sum((-2, -1)) / (1 - inside).sum((-2, -1)).clamp(min=1)
    return (dice + mean_in + mean_out).mean()


# -------------------------------------------------------------------------------------- training


@dataclass(frozen=True)
class SamSettings:
    """How the compact SAM is trained.

    The training ends with ``steps`` or ``minutes``, whichever comes first; the cosine fits the
    nearer end. Only a run that ends by its steps can be repeated exactly. ``held_out`` volumes
    are kept for the checks; ``ema`` is the decay of the averaged weights, which are what is saved.
    ``precision`` auto is bf16 where the CPU computes it natively.
    """

    steps: int = 8000
    minutes: float = 120.0
    batch: int = 6
    prompts: int = 5
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    warmup: int = 100
    ema: float = 0.998
    held_out: int = 20
    check_every: int = 300
    precision: str = "auto"
    device: str = "auto"
    seed: int = 1


def _precision(settings: SamSettings, device: torch.device) -> str:
    if settings.precision != "auto" or device.type != "cpu":
        return choose_precision(device, settings.precision)
    return "bf16" if torch.ops.mkldnn._is_mkldnn_bf16_supported() else "fp32"


def evaluate(
    segmenter: SamSegmenter,
    pieces: Sequence[PoolSlice],
    *,
    box: str = "reference",
    seed: int = 0,
    organs: Sequence[str] = tuple(organs_of(SIX_CLASSES)),
) -> dict[str, float]:
    """Mean Dice of each organ over the slices that hold it, on the slices' own grid.

    ``box`` is ``reference`` (the mask's bounds plus 0–5 pixels, the same on all sides) or
    ``sloppy`` (each side also moved by up to 12 % of the box's size). CT is windowed 40/400.
    """
    rng = np.random.default_rng(seed)
    scores: dict[str, list[float]] = {name: [] for name in organs}
    for piece in pieces:
        truth = {n: piece.label == _IDS[n] for n in organs if (piece.label == _IDS[n]).any()}
        if not truth:
            continue
        low, high = (-160.0, 240.0) if piece.modality == "CT" else (0.0, float(MR_WHITE))
        grey = np.clip((piece.image - low) / (high - low), 0, 1) * 255
        boxes = []
        for mask in truth.values():
            tight = bounds(mask)
            extent = np.tile(tight[2:] - tight[:2], 2)
            margin = np.full(4, float(rng.integers(0, 6)))
            if box == "sloppy":
                margin = margin + rng.uniform(-0.12, 0.12, 4) * extent
            boxes.append(tight + margin * (-1, -1, 1, 1))
        prompts = Prompts.from_pixels(list(truth), boxes, piece.label.shape)
        inputs = segmenter.prepare(grey.astype(np.uint8))
        logits = segmenter.decode(segmenter.encode(inputs[None]), prompts)[0]
        found = to_mask(logits, piece.label.shape).cpu().numpy()
        for (name, mask), mine in zip(truth.items(), found, strict=True):
            scores[name].append(2 * float((mask & mine).sum()) / float(mask.sum() + mine.sum()))
    return {name: float(np.mean(s)) if s else math.nan for name, s in scores.items()}


def _split(pieces: Sequence[PoolSlice], held_out: int) -> tuple[list[PoolSlice], list[PoolSlice]]:
    """By volume, CT and MR in the pool's own proportion."""
    volumes = sorted({p.volume for p in pieces})
    count = min(held_out, len(volumes) // 4)
    last = {volumes[i] for i in np.linspace(0, len(volumes) - 1, count).round().astype(int)}
    return [p for p in pieces if p.volume not in last], [p for p in pieces if p.volume in last]


def _averaged(model: Sam, ema: Sam, decay: float) -> None:
    with torch.no_grad():
        for mean, now in zip(ema.parameters(), model.parameters(), strict=True):
            mean.lerp_(now, 1 - decay)


def _initialise(sam: Sam) -> None:
    """Small normal weights, as ViTs are trained from; segment_anything leaves torch's defaults."""
    for module in sam.image_encoder.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)
    assert sam.image_encoder.pos_embed is not None
    nn.init.trunc_normal_(sam.image_encoder.pos_embed, std=0.02)


def train_sam(
    pool_folder: Path,
    folder: Path,
    settings: SamSettings = SamSettings(),
    extra: Path | None = None,
) -> Path:
    """Train the compact SAM and write ``sam.json`` and ``sam.safetensors`` (fp16, averaged).

    ``folder`` also gets ``training_sam.csv`` and a checkpoint from which a later call goes on.
    ``extra`` is a second pool whose slices are only looked at in the checks, never learnt or
    selected from. Every step draws from its own seed, so an interrupted run sees the same
    batches. Returns the path of the weights.
    """
    folder.mkdir(parents=True, exist_ok=True)
    training, held_out = _split(load_pool(pool_folder), settings.held_out)
    rng = np.random.default_rng([settings.seed, 1 << 20])
    shown = [p for p in held_out if np.isin(p.label, _MAIN).any()]
    checks = [shown[i] for i in rng.choice(len(shown), min(64, len(shown)), replace=False)]
    extras = load_pool(extra) if extra else []
    device = choose_device(settings.device)
    precision = _precision(settings, device)
    log.info("%d slices to learn, %d to check, %s", len(training), len(checks), precision)

    torch.manual_seed(settings.seed)
    sam = build(CONFIG)
    _initialise(sam)
    sam.to(device)
    ema = copy.deepcopy(sam)
    decayed = [p for p in sam.parameters() if p.ndim > 1]
    others = [p for p in sam.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [
            {"params": decayed, "weight_decay": settings.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ],
        lr=settings.learning_rate,
        betas=(0.9, 0.98),
    )
    checkpoint = folder / "sam.checkpoint.pt"
    done, rows, spent = 0, [], 0.0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        sam.load_state_dict(state["model"])
        ema.load_state_dict(state["ema"])
        optimizer.load_state_dict(state["optimizer"])
        done, rows, spent = state["step"], state["rows"], state["seconds"]
        log.info("going on from step %d", done)

    began, total, seen = time.monotonic() - spent, 0.0, 0
    progress = max(done / settings.steps, spent / (60 * settings.minutes))
    while progress < 1:
        rate = 0.5 + 0.5 * math.cos(math.pi * progress)
        rate = min(rate, (done + 1) / settings.warmup)
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * max(rate, 0.01)
        rng = np.random.default_rng([settings.seed, done])
        picked = rng.choice(len(training), settings.batch, replace=False)
        drawn = [
            example(training[i], rng, size=CONFIG["image_size"], prompts=settings.prompts)
            for i in picked
        ]
        images = torch.from_numpy(np.stack([e.image for e in drawn])).to(device)
        targets = torch.from_numpy(np.stack([e.targets for e in drawn])).to(device)
        boxes = torch.from_numpy(np.stack([e.boxes for e in drawn])).to(device)
        with autocast(device, precision):
            tokens = sam.image_encoder(images[:, None].expand(-1, 3, -1, -1))
            logits = decode_pairs(sam, tokens, boxes, as_masks=True)
        loss = loss_of(logits, targets, boxes / 2)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(sam.parameters(), 1.0)
        optimizer.step()
        done += 1
        _averaged(sam, ema, min(settings.ema, (1 + done) / (10 + done)))
        total, seen = total + loss.item(), seen + 1
        seconds = time.monotonic() - began
        progress = max(done / settings.steps, seconds / (60 * settings.minutes))
        if done % settings.check_every == 0 or progress >= 1:
            row = {"step": done, "seconds": round(seconds, 1), "loss": round(total / seen, 4)}
            row |= _check(ema, checks, extras, device)
            rows.append(row)
            total, seen = 0.0, 0
            log.info("%s", " ".join(f"{k} {v}" for k, v in row.items()))
            _save(folder, ema, rows, settings)
            with atomic(checkpoint) as temporary:
                torch.save(
                    {
                        "model": sam.state_dict(),
                        "ema": ema.state_dict(),
                        "optimizer": optimizer.state_dict(),
                        "step": done,
                        "rows": rows,
                        "seconds": seconds,
                    },
                    temporary,
                )
    return _save(folder, ema, rows, settings)


def _check(
    ema: Sam, checks: Sequence[PoolSlice], extras: Sequence[PoolSlice], device: torch.device
) -> dict[str, float]:
    segmenter = SamSegmenter(copy.deepcopy(ema), "compact", device=device, box_masks=True)
    row = {}
    for box in ("reference", "sloppy"):
        scores = evaluate(segmenter, checks, box=box)
        row[f"dice_{box}"] = round(float(np.nanmean(list(scores.values()))), 4)
        if box == "reference":
            row |= {f"dice_{k.replace(' ', '_')}": round(v, 4) for k, v in scores.items()}
    for modality in sorted({p.modality for p in extras}):
        names = [n for n in organs_of(SIX_CLASSES) if n != "pancreas"]
        some = [p for p in extras if p.modality == modality]
        scores = evaluate(segmenter, some, organs=names)
        row[f"extra_{modality}"] = round(float(np.nanmean(list(scores.values()))), 4)
    return row


def _save(folder: Path, sam: Sam, rows: list[dict[str, float]], settings: SamSettings) -> Path:
    path = folder / "sam.safetensors"
    weights = {k: v.detach().cpu().half().contiguous() for k, v in sam.state_dict().items()}
    with atomic(path) as temporary:
        save_file(weights, temporary)
    write_json(folder / "sam.json", {"model": CONFIG, "training": asdict(settings)})
    if rows:
        with (
            atomic(folder / "training_sam.csv") as temporary,
            open(temporary, "w", newline="") as f,
        ):
            writer = csv.DictWriter(f, rows[-1])
            writer.writeheader()
            writer.writerows(rows)
    return path
