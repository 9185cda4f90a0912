"""Train the shipped localizer on the compact CLIP."""

from __future__ import annotations

import copy
import logging
import math
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from compact.learning import apart, average, learning_precision, write_log
from compact.localizer.checks import check
from compact.localizer.images import class_of, example, plain
from compact.pool import PoolSlice, load_pool
from xaiclip.device import autocast, choose_device
from xaiclip.files import atomic, write_json
from xaiclip.localizer.backbone import BackboneSettings, load_backbone
from xaiclip.localizer.model import Localizer, LocalizerSettings, save_localizer
from xaiclip.localizer.training import dice_ce
from xaiclip.organs import SIX_CLASSES

log = logging.getLogger(__name__)

MODEL = LocalizerSettings(image=True)
Batch = tuple[NDArray[np.uint8], NDArray[np.uint8]]
WEIGHTS, LOG = "localizer.safetensors", "training_localizer.csv"


@dataclass(frozen=True)
class LocalizerTraining:
    """How the shipped localizer is trained.

    The training ends with ``steps`` or ``minutes``, whichever comes first; the cosine fits the
    nearer end. Only a run that ends by its steps can be repeated exactly. ``held_out`` volumes are
    kept for the checks, which choose nothing; ``ema`` is the decay of the averaged weights, which
    are what is saved. A share ``mild`` of the slices is shown as a study shows them.
    """

    steps: int = 20_000
    minutes: float = 70.0
    batch: int = 8
    learning_rate: float = 2e-3
    weight_decay: float = 0.01
    warmup: int = 200
    ema: float = 0.998
    mild: float = 0.2
    held_out: int = 30
    check_every: int = 500
    precision: str = "auto"
    device: str = "auto"
    seed: int = 1


def _split(pieces: list[PoolSlice], held_out: int) -> tuple[list[PoolSlice], list[PoolSlice]]:
    """By volume: the last ones, CT and MR in the pool's own proportion, are kept apart."""
    volumes = sorted({p.volume for p in pieces})
    return apart(pieces, set(volumes[-min(held_out, len(volumes) // 4) :]))


class _Batches:
    """Batches of augmented slices by step; the next one is drawn while one is learned."""

    def __init__(self, pieces: list[PoolSlice], settings: LocalizerTraining) -> None:
        self.pieces, self.settings = pieces, settings
        self.table = class_of(SIX_CLASSES)
        self.executor = ThreadPoolExecutor(1)
        self.ahead: dict[int, Future[Batch]] = {}

    def draw(self, step: int) -> Batch:
        """Images and classes, (B, 224, 224) each; a function of seed and step."""
        rng = np.random.default_rng([self.settings.seed, step])
        drawn = []
        for i in rng.choice(len(self.pieces), self.settings.batch, replace=False):
            if rng.random() < self.settings.mild:
                drawn.append(plain(self.pieces[i], self.table))
            else:
                drawn.append(example(self.pieces[i], self.table, rng))
        return np.stack([d[0] for d in drawn]), np.stack([d[1] for d in drawn])

    def take(self, step: int) -> Batch:
        """The batch of a step; the next one is begun."""
        future = self.ahead.pop(step, None) or self.executor.submit(self.draw, step)
        self.ahead[step + 1] = self.executor.submit(self.draw, step + 1)
        return future.result()


def train_localizer(
    pool_folder: Path,
    clip_folder: Path,
    folder: Path,
    settings: LocalizerTraining = LocalizerTraining(),
) -> Path:
    """Train the localizer that is shipped; write it (fp16, averaged), its log and its settings.

    ``folder`` also gets a checkpoint from which a later call goes on. Every step draws from its
    own seed, so an interrupted run sees the same batches. ``clip_folder`` holds the compact CLIP,
    which the file will call ``compact``. Returns the path of the weights.
    """
    folder.mkdir(parents=True, exist_ok=True)
    cv2.setNumThreads(1)
    training, held_out = _split(load_pool(pool_folder), settings.held_out)
    batches = _Batches(training, settings)
    rng = np.random.default_rng([settings.seed, 1 << 20])
    checks = [held_out[i] for i in rng.choice(len(held_out), min(160, len(held_out)), False)]
    shown = [plain(piece, batches.table) for piece in checks]
    images, labels = (np.stack(part) for part in zip(*shown, strict=True))
    kinds = [piece.modality for piece in checks]
    device = choose_device(settings.device)
    precision = learning_precision(settings.precision, device)
    log.info("%d slices to learn, %d to check, %s", len(training), len(checks), precision)

    backbone = load_backbone(BackboneSettings(str(clip_folder)))
    backbone.name = "compact"
    model = Localizer(backbone, SIX_CLASSES, MODEL, settings.seed).to(device)
    ema = Localizer(backbone, SIX_CLASSES, MODEL, settings.seed).to(device)
    ema.load_state_dict(copy.deepcopy(model.trainable()), strict=False)
    ema.requires_grad_(False)
    own = list(model.trainable().values())
    optimizer = torch.optim.AdamW(
        [
            {
                "params": [p for p in own if p.ndim > 1],
                "weight_decay": settings.weight_decay,
            },
            {"params": [p for p in own if p.ndim <= 1], "weight_decay": 0.0},
        ],
        lr=settings.learning_rate,
    )
    checkpoint = folder / "localizer.checkpoint.pt"
    done, rows, spent = 0, [], 0.0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"], strict=False)
        ema.load_state_dict(state["ema"], strict=False)
        optimizer.load_state_dict(state["optimizer"])
        done, rows, spent = state["step"], state["rows"], state["seconds"]
        log.info("going on from step %d", done)

    began, total, seen = time.monotonic() - spent, 0.0, 0
    progress = max(done / settings.steps, spent / (60 * settings.minutes))
    while progress < 1:
        rate = 0.5 + 0.5 * math.cos(math.pi * progress)
        rate = max(min(rate, (done + 1) / settings.warmup), 0.005)
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * rate
        grey, target = (torch.from_numpy(part).to(device) for part in batches.take(done))
        tokens = backbone(grey)
        model.train()
        with autocast(device, precision):
            logits = model.decode(tokens, grey)
        loss = dice_ce(logits, target)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(own, 1.0)
        optimizer.step()
        done += 1
        decay = min(settings.ema, (1 + done) / (10 + done))
        average(ema.trainable().values(), model.trainable().values(), decay)
        total, seen = total + loss.item(), seen + 1
        seconds = time.monotonic() - began
        progress = max(done / settings.steps, seconds / (60 * settings.minutes))
        if done % settings.check_every == 0 or progress >= 1:
            row = {"step": done, "seconds": round(seconds, 1), "loss": round(total / seen, 4)}
            row |= check(ema, images, labels, kinds)
            rows.append(row)
            total, seen = 0.0, 0
            log.info("%s", " ".join(f"{k} {v}" for k, v in row.items()))
            _save(folder, ema, rows, settings)
            state = {
                "model": model.trainable(),
                "ema": ema.trainable(),
                "optimizer": optimizer.state_dict(),
                "step": done,
                "rows": rows,
                "seconds": seconds,
            }
            with atomic(checkpoint) as temporary:
                torch.save(state, temporary)
    batches.executor.shutdown(cancel_futures=True)
    return _save(folder, ema, rows, settings)


def _save(
    folder: Path, localizer: Localizer, rows: list[dict[str, float]], settings: LocalizerTraining
) -> Path:
    path = folder / WEIGHTS
    save_localizer(path, localizer, half=True)
    write_json(folder / "localizer.json", {"training": asdict(settings)})
    if rows:
        write_log(folder / LOG, rows)
    return path
