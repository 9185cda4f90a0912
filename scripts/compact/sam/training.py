"""Train the compact SAM."""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from segment_anything.modeling import Sam
from torch import Tensor, nn

from compact.learning import apart, average, learning_precision, write_log
from compact.pool import PoolSlice, load_pool
from compact.sam.checks import check
from compact.sam.images import MAIN, example
from xaiclip.device import autocast, choose_device
from xaiclip.files import atomic, write_json
from xaiclip.models.segmenters.compact import CONFIG, build
from xaiclip.models.segmenters.decoder import box_masks, decode_pairs

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SamSettings:
    """How the compact SAM is trained.

    The training ends with ``steps`` or ``minutes``, whichever comes first; the cosine fits the
    nearer end. Only a run that ends by its steps can be repeated exactly. ``held_out`` volumes
    are kept for the checks; ``ema`` is the decay of the averaged weights, which are what is saved.
    ``precision`` auto is bf16 where the CPU computes it natively.
    """

    minutes: float
    seed: int
    steps: int = 8000
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


def _split(pieces: Sequence[PoolSlice], held_out: int) -> tuple[list[PoolSlice], list[PoolSlice]]:
    """By volume, CT and MR in the pool's own proportion."""
    volumes = sorted({p.volume for p in pieces})
    count = min(held_out, len(volumes) // 4)
    last = {volumes[i] for i in np.linspace(0, len(volumes) - 1, count).round().astype(int)}
    return apart(pieces, last)


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
    settings: SamSettings,
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
    shown = [p for p in held_out if np.isin(p.label, MAIN).any()]
    checks = [shown[i] for i in rng.choice(len(shown), min(64, len(shown)), replace=False)]
    extras = load_pool(extra) if extra else []
    device = choose_device(settings.device)
    precision = learning_precision(settings.precision, device)
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
        decay = min(settings.ema, (1 + done) / (10 + done))
        average(ema.parameters(), sam.parameters(), decay)
        total, seen = total + loss.item(), seen + 1
        seconds = time.monotonic() - began
        progress = max(done / settings.steps, seconds / (60 * settings.minutes))
        if done % settings.check_every == 0 or progress >= 1:
            row = {"step": done, "seconds": round(seconds, 1), "loss": round(total / seen, 4)}
            row |= check(ema, checks, extras, device)
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


def _save(folder: Path, sam: Sam, rows: list[dict[str, float]], settings: SamSettings) -> Path:
    path = folder / "sam.safetensors"
    weights = {k: v.detach().cpu().half().contiguous() for k, v in sam.state_dict().items()}
    with atomic(path) as temporary:
        save_file(weights, temporary)
    write_json(folder / "sam.json", {"model": CONFIG, "training": asdict(settings)})
    if rows:
        write_log(folder / "training_sam.csv", rows)
    return path
