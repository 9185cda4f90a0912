"""Train the compact CLIP, and check it without any training on the task."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from open_clip.loss import ClipLoss
from open_clip.model import CLIP
from open_clip.tokenizer import SimpleTokenizer
from safetensors.torch import save_file
from torch import Tensor

from compact.clip.images import Example, coverage, draw_batch, example
from compact.clip.model import CONFIG, VOCABULARY, build, encode_patches, region_loss, to_inputs
from compact.clip.words import REGION_PROMPTS, REGIONS, write_vocabulary
from compact.learning import apart, write_log
from compact.pool import PoolSlice, load_pool
from xaiclip.device import autocast, choose_device
from xaiclip.files import atomic, write_json
from xaiclip.preprocess import PreprocessSettings

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ClipSettings:
    """How the compact CLIP is trained.

    ``keep`` of the patches are shown in the first ``masked`` share of the steps (as in FLIP, to
    save time), all of them afterwards. ``region`` weighs the patch–name term. The training ends
    with ``steps`` or ``minutes``, whichever comes first, and the schedule (warm-up, cosine, all
    patches) fits the nearer end. Only a run that ends by its steps can be repeated exactly.
    """

    minutes: float
    seed: int
    steps: int = 3000
    batch: int = 40
    learning_rate: float = 1e-3
    weight_decay: float = 0.1
    warmup: int = 60
    keep: float = 0.5
    masked: float = 0.7
    region: float = 1.0
    held_out: float = 0.06
    check_every: int = 100
    device: str = "auto"


@torch.inference_mode()
def zero_shot(
    model: CLIP, tokenize: Callable[[list[str]], Tensor], examples: Sequence[Example]
) -> dict[str, float]:
    """Check without any training on the task.

    ``recall``: a patch is given to the region whose name is nearest; mean share of right patches
    over the regions (chance 1/14). ``retrieval``: share of images whose own caption is nearest.
    """
    model.eval()
    device = model.logit_scale.device
    images = np.stack([e.image for e in examples])
    prompts = tokenize([f"the {n}" for n in REGIONS.values()]).to(device)
    captions = tokenize([e.caption for e in examples]).to(device)
    with autocast(device, "bf16"):
        parts = [to_inputs(images[i : i + 32], device) for i in range(0, len(images), 32)]
        tokens = torch.cat([encode_patches(model, part) for part in parts])
        names = model.encode_text(prompts, normalize=True)
        texts = model.encode_text(captions, normalize=True)
    tokens, names, texts = tokens.float().cpu(), names.float().cpu(), texts.float().cpu()
    grid = math.isqrt(tokens.shape[1])
    share = coverage(np.stack([e.label for e in examples]), grid)
    found = (F.normalize(tokens, dim=-1) @ names.T).argmax(-1)
    recalls = []
    for c in range(len(REGIONS)):
        inside = share[..., c] >= 0.5
        if inside.any():
            recalls.append((found[inside] == c).float().mean())
    nearest = (F.normalize(tokens.mean(1), dim=-1) @ texts.T).argmax(-1)
    retrieval = (nearest == torch.arange(len(examples))).float().mean()
    model.train()
    return {"recall": float(torch.stack(recalls).mean()), "retrieval": float(retrieval)}


def train_clip(pool_folder: Path, folder: Path, settings: ClipSettings) -> Path:
    """Train the compact CLIP and write ``clip.json``, ``clip.safetensors`` (fp16), the vocabulary.

    ``folder`` also gets ``training_clip.csv`` and, until the training is done, a checkpoint from
    which a later call goes on. Every step draws from its own seed, so that an interrupted run
    sees the same batches as one that was not. Returns the path of the weights.
    """
    folder.mkdir(parents=True, exist_ok=True)
    vocab_size = write_vocabulary(folder / VOCABULARY)
    context = CONFIG["model_cfg"]["text_cfg"]["context_length"]
    tokenize = SimpleTokenizer(bpe_path=str(folder / VOCABULARY), context_length=context)
    preprocess = PreprocessSettings()
    training, held_out = _split(load_pool(pool_folder), settings.held_out)
    rng = np.random.default_rng([settings.seed, 1 << 20])
    chosen = rng.choice(len(held_out), min(96, len(held_out)), replace=False)
    checks = [example(held_out[i], rng, preprocess, augment=False) for i in chosen]

    device = choose_device(settings.device)
    torch.manual_seed(settings.seed)
    model = build(vocab_size).to(device)
    decayed = [p for p in model.parameters() if p.requires_grad and p.ndim > 1]
    others = [p for p in model.parameters() if p.requires_grad and p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [
            {"params": decayed, "weight_decay": settings.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ],
        lr=settings.learning_rate,
        betas=(0.9, 0.98),
        eps=1e-6,
    )
    checkpoint, start, spent = folder / "clip.checkpoint.pt", 0, 0.0
    rows: list[dict[str, float]] = []
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        start, rows = state["step"], state["rows"]
        spent = rows[-1]["seconds"]
        log.info("going on from step %d", start)

    contrast, patches = ClipLoss(), model.visual.grid_size[0] ** 2
    began, sums, done = time.monotonic() - spent, np.zeros(2), start
    progress = max(start / settings.steps, spent / (60 * settings.minutes))
    while progress < 1:
        step = done
        rng = np.random.default_rng([settings.seed, step])
        generator = torch.Generator().manual_seed(settings.seed + step)
        batch = draw_batch(training, settings.batch, rng, preprocess)
        images = to_inputs(np.stack([e.image for e in batch]), device)
        share = coverage(np.stack([e.label for e in batch]), model.visual.grid_size[0]).to(device)
        keep = None
        if progress < settings.masked:
            order = torch.rand(len(batch), patches, generator=generator).argsort(1)
            keep = order[:, : round(settings.keep * patches)].to(device)
            share = share.gather(1, keep[..., None].expand(-1, -1, share.shape[2]))
        names = [
            REGION_PROMPTS[int(rng.integers(len(REGION_PROMPTS)))].format(c=name)
            for name in REGIONS.values()
        ]
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * min(
                (step + 1) / settings.warmup, 0.02 + 0.49 * (1 + math.cos(math.pi * progress))
            )
        words = tokenize([e.caption for e in batch] + names).to(device)
        with autocast(device, "bf16"):
            tokens = encode_patches(model, images, keep)
            texts = model.encode_text(words, normalize=True)
        tokens, texts = tokens.float(), texts.float()
        scale = model.logit_scale.exp()
        pooled = F.normalize(tokens.mean(1), dim=-1)
        whole = contrast(pooled, texts[: len(batch)], scale)
        parts = region_loss(tokens, share, texts[len(batch) :], scale)
        optimizer.zero_grad()
        (whole + settings.region * parts).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))
        sums += whole.item(), parts.item()

        done = step + 1
        progress = max(done / settings.steps, (time.monotonic() - began) / (60 * settings.minutes))
        if done % settings.check_every == 0 or progress >= 1:
            count = done - (rows[-1]["step"] if rows else 0)
            row = {
                "step": done,
                "seconds": round(time.monotonic() - began, 1),
                "caption_loss": round(float(sums[0]) / count, 4),
                "region_loss": round(float(sums[1]) / count, 4),
                "logit_scale": round(float(scale.detach()), 3),
            }
            row |= {k: round(v, 4) for k, v in zero_shot(model, tokenize, checks).items()}
            rows.append(row)
            sums[:] = 0
            log.info("%s", row)
            write_log(folder / "training_clip.csv", rows)
            _export(model, vocab_size, folder)
            with atomic(checkpoint) as temporary:
                torch.save(
                    {
                        "model": model.state_dict(),
                        "optimizer": optimizer.state_dict(),
                        "step": done,
                        "rows": rows,
                    },
                    temporary,
                )
    checkpoint.unlink(missing_ok=True)
    return folder / "clip.safetensors"


def _split(pool: Sequence[PoolSlice], share: float) -> tuple[list[PoolSlice], list[PoolSlice]]:
    """Keep the last volumes for the checks: never slices of one volume on both sides."""
    volumes = sorted({piece.volume for piece in pool})
    last = set(volumes[-max(1, round(share * len(volumes))) :])
    return apart(pool, last)


def _export(model: CLIP, vocab_size: int, folder: Path) -> None:
    config = json.loads(json.dumps(CONFIG))
    config["model_cfg"]["text_cfg"]["vocab_size"] = vocab_size
    write_json(folder / "clip.json", config)
    with atomic(folder / "clip.safetensors") as temporary:
        weights = {k: v.cpu().half().contiguous() for k, v in model.state_dict().items()}
        save_file(weights, temporary)
