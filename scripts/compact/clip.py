"""The compact CLIP: a small open_clip model of the abdomen, trained on phantom slices.

It plays the part of a published CLIP in the demo: a frozen model that knows images and words.
Its training has two contrastive terms, both between images and text:

* whole crops against captions that name what a crop shows and where (CLIP's own loss), and
* patches against the name of the organ that fills them (as in RegionCLIP), which teaches the
  single tokens, on which a localizer is built, and not only their mean.

The captions come from the phantoms' labels; positions are those of the image as it is displayed.
"""

from __future__ import annotations

import csv
import gzip
import json
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from open_clip.loss import ClipLoss
from open_clip.model import CLIP
from open_clip.tokenizer import SimpleTokenizer, default_bpe
from safetensors.torch import save_file
from torch import Tensor

from compact.pool import PoolSlice, load_pool
from xaiclip.device import autocast, choose_device
from xaiclip.files import atomic, write_json
from xaiclip.organs import BACKGROUND, FLARE22
from xaiclip.preprocess import Letterbox, PreprocessSettings, enhance

log = logging.getLogger(__name__)

VOCABULARY = "bpe_abdomen.txt.gz"

#: ``clip.json``: the layout of open_clip's own ``open_clip_config.json``.
CONFIG: Mapping[str, Any] = {
    "model_cfg": {
        "embed_dim": 128,
        "vision_cfg": {
            "image_size": 224,
            "patch_size": 14,
            "width": 192,
            "head_width": 64,
            "layers": 6,
            "mlp_ratio": 3.0,
            "pool_type": "avg",
            "pos_embed_type": "sin_cos_2d",
        },
        "text_cfg": {
            "context_length": 48,
            "vocab_size": 0,  # known once the vocabulary is written
            "width": 128,
            "heads": 4,
            "layers": 2,
            "tokenizer_kwargs": {"bpe_path": VOCABULARY},
        },
    },
    "preprocess_cfg": {"mean": [0.25, 0.25, 0.25], "std": [0.3, 0.3, 0.3]},
}

#: Region classes: label id → name, background included.
REGIONS: Mapping[int, str] = {0: BACKGROUND, **FLARE22}

_ROWS = ("upper", "middle", "lower")
_COLUMNS = ("left", "centre", "right")
_HEADS = (
    "{m}", "{m} scan", "axial {m}", "axial {m} slice", "{m} image", "a {m} slice of the abdomen",
)  # fmt: skip
_EMPTY = ("no organ", "without any organ", "body wall", "background only", "muscle, bone and fat")
_REGION_PROMPTS = (
    "{c}", "{c}", "{c}", "the {c}", "{c} tissue", "a part of the {c}", "a scan of the {c}",
    "an axial slice showing the {c}", "a ct of the {c}", "an mr image of the {c}",
)  # fmt: skip
_CAPTION_WORDS = """ct mr mri non contrast arterial portal venous late phase suppressed enhanced no
without and with at in on the of image slice whole close view small large only"""
# general words, so that prompts of other studies are not spelled out letter by letter
_MORE_WORDS = """abdominal abnormal anatomy area body bone bowel brain bright cancer cell chest
colon computed dark disease fat fluid gas healthy heart hepatic human image inside intestine large
lesion lung magnetic mass medical muscle normal organ outside patient photo picture pelvis region
renal resonance rib shape side skin small spine stomach structure surface t1 t2 tissue tomography
tumour tumor vein vertebra vessel weighted x ray"""


# ---------------------------------------------------------------------------------------- words


def _domain_words() -> list[str]:
    sources = (*REGIONS.values(), *_HEADS, *_EMPTY, *_REGION_PROMPTS, *_ROWS, *_COLUMNS)
    text = " ".join([*sources, _CAPTION_WORDS, _MORE_WORDS])
    for mark in ("{m}", "{c}", ","):
        text = text.replace(mark, " ")
    return list(dict.fromkeys(text.split()))


def write_vocabulary(path: Path, general: int = 256) -> int:
    """Write a truncated byte-pair merges file and return the vocabulary's size.

    Kept are open_clip's first ``general`` merges and those that build the words of this domain,
    in their original order: so these words become the same single tokens as in open_clip's own
    tokenizer, and any other text is still encoded, in shorter pieces.
    """
    with gzip.open(default_bpe()) as stream:
        header, *lines = stream.read().decode("utf-8").split("\n")
    full = SimpleTokenizer()
    wanted = set(range(general))
    for word in _domain_words():
        pieces = [*word[:-1], word[-1] + "</w>"]
        while len(pieces) > 1:
            pairs = list(pairwise(pieces))
            rank, at = min((full.bpe_ranks.get(p, 1 << 30), i) for i, p in enumerate(pairs))
            if rank == 1 << 30:
                break
            wanted.add(rank)
            pieces[at : at + 2] = ["".join(pairs[at])]
    # no newline at the end: SimpleTokenizer would read an empty merge
    text = "\n".join([header, *(lines[i] for i in sorted(wanted))])
    with (
        atomic(path) as temporary,
        open(temporary, "wb") as raw,
        gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as stream,
    ):
        stream.write(text.encode())
    return int(SimpleTokenizer(bpe_path=str(path)).vocab_size)


def _place(x: float, y: float) -> str:
    """``upper left`` … ``centre`` for a point in fractions of width and height."""
    row, column = _ROWS[min(int(y * 3), 2)], _COLUMNS[min(int(x * 3), 2)]
    if row == "middle":
        return column
    return row if column == "centre" else f"{row} {column}"


def caption(
    label: NDArray[np.uint8],
    visible: NDArray[np.float64],
    rng: np.random.Generator,
    *,
    modality: str,
    detail: str = "",
    crop: tuple[float, float, float] | None = None,
) -> str:
    """Say in words what a crop shows.

    ``label`` holds FLARE22 ids on the crop, ``visible`` for each id the share of the organ's area
    in the slice that lies in the crop. ``detail`` is a contrast phase or MR weighting; ``random``
    says nothing. ``crop`` is centre x, centre y and width in fractions of the slice. An organ
    counts if it fills 0.1 % of the crop and 30 % of it is visible, or if it fills 2 %.
    """

    def maybe(p: float) -> bool:
        return bool(rng.random() < p)

    def pick(options: Sequence[str]) -> str:
        return options[int(rng.integers(len(options)))]

    name = pick(("mr", "mri")) if modality == "MR" else "ct"
    detail = detail.replace("-", " ").replace("random", "").strip()
    if detail and maybe(0.6):
        name = f"{detail} {name}"
    area = np.bincount(label.ravel(), minlength=len(visible)) / label.size
    shown = [i for i in REGIONS if i and (area[i] > 0.02 or (area[i] > 1e-3 and visible[i] > 0.3))]
    rng.shuffle(shown)
    parts = []
    for organ in shown[: int(rng.integers(2, 7))]:
        phrase = ("the " if maybe(0.2) else "") + REGIONS[organ]
        if maybe(0.15) and (area[organ] > 0.12 or area[organ] < 0.004):
            phrase = ("large " if area[organ] > 0.12 else "small ") + REGIONS[organ]
        if maybe(0.65):
            ys, xs = np.nonzero(label == organ)
            place = _place((xs.mean() + 0.5) / label.shape[1], (ys.mean() + 0.5) / label.shape[0])
            phrase += pick((" {p}", " at the {p}", " in the {p}")).format(p=place)
        parts.append(phrase)
    if not shown:
        parts.append(pick(_EMPTY))
    elif maybe(0.25):
        missing = [n for i, n in REGIONS.items() if i and area[i] == 0]
        if missing:
            parts.append(pick(("no ", "without ")) + pick(missing))
    if crop is not None and (maybe(0.5) or not shown):
        x, y, width = crop
        parts.append("whole slice" if width > 0.8 else f"close view {_place(x, y)}")
    head = pick(_HEADS).format(m=name)
    if maybe(0.15):
        return pick((", ", " and ")).join(parts)
    return head + pick((": ", ", ", " of ", " with ", " ")) + pick((", ", " and ")).join(parts)


# --------------------------------------------------------------------------------------- images


@dataclass(frozen=True)
class Example:
    """``image`` uint8 (224, 224); ``label`` FLARE22 ids on the same grid; ``caption``."""

    image: NDArray[np.uint8]
    label: NDArray[np.uint8]
    caption: str


def _window(piece: PoolSlice, rng: np.random.Generator, jitter: bool) -> NDArray[np.float32]:
    """To grey values 0…255: a CT window, or MR percentiles; varied when ``jitter``."""
    image = piece.image.astype(np.float32)
    if piece.modality == "CT":
        level, width = (rng.uniform(15, 75), rng.uniform(260, 520)) if jitter else (40.0, 400.0)
        low, high = level - width / 2, level + width / 2
    else:
        tissue = image[image > 0]
        top = rng.uniform(97, 99.8) if jitter else 99.5
        low, high = np.percentile(tissue, (0.5, top)) if tissue.size else (0.0, 1.0)
    grey = np.clip((image - low) / max(high - low, 1e-6), 0, 1)
    if jitter:
        grey = grey ** np.exp(rng.normal(0, 0.15 if piece.modality == "CT" else 0.3))
    return (grey * 255).astype(np.float32)


def example(
    piece: PoolSlice,
    rng: np.random.Generator,
    settings: PreprocessSettings,
    *,
    augment: bool = True,
) -> Example:
    """Draw a view of a slice: the whole of it or a crop, as the localizer would see it.

    Six of ten views are (almost) whole slices; eight of ten go through equations 1–8. Blur, noise
    and a coarser grid imitate other scanners.
    """
    image, view = _window(piece, rng, augment), piece.label
    crop = (0.5, 0.5, 1.0)
    if augment:
        height, width = view.shape
        scale = rng.uniform(0.8, 1.0) if rng.random() < 0.6 else rng.uniform(0.22, 0.75)
        h = int(height * scale * rng.uniform(0.9, 1.0))
        w = int(width * scale * rng.uniform(0.9, 1.0))
        y, x = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
        crop = ((x + w / 2) / width, (y + h / 2) / height, w / width)
        image = _degrade(image[y : y + h, x : x + w], rng)
        view = view[y : y + h, x : x + w]
    box = Letterbox.fit(view.shape, settings.size)
    grey = box.apply(np.clip(image, 0, 255).astype(np.uint8))
    if not augment or rng.random() < 0.8:
        grey = enhance(grey, settings)
    counts, total = (
        np.bincount(ids.ravel(), minlength=256)[: len(REGIONS)] for ids in (view, piece.label)
    )
    text = caption(
        view,
        counts / np.maximum(total, 1),
        rng,
        modality=piece.modality,
        detail=piece.detail,
        crop=crop,
    )
    return Example(grey, box.apply(view, nearest=True), text)


def _degrade(image: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    height, width = image.shape
    if rng.random() < 0.3:
        factor = rng.uniform(1.2, 2.5)
        size = (max(1, int(width / factor)), max(1, int(height / factor)))
        small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        image = np.asarray(cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR))
    if rng.random() < 0.25:
        image = np.asarray(cv2.GaussianBlur(image, (0, 0), rng.uniform(0.4, 1.4)))
    if rng.random() < 0.4:
        image = image + rng.standard_normal(image.shape, np.float32) * np.float32(
            rng.uniform(1, 14)
        )
    return image


def draw_batch(
    pool: Sequence[PoolSlice], size: int, rng: np.random.Generator, settings: PreprocessSettings
) -> list[Example]:
    """``size`` examples with different captions (equal ones would be false negatives)."""
    batch: dict[str, Example] = {}
    for _ in range(4 * size):
        drawn = example(pool[int(rng.integers(len(pool)))], rng, settings)
        batch.setdefault(drawn.caption, drawn)
        if len(batch) == size:
            break
    return list(batch.values())


def coverage(labels: NDArray[np.uint8], grid: int) -> Tensor:
    """Share of each patch that each region fills: (B, S, S) → float32 (B, grid², len(REGIONS))."""
    batch, size, _ = labels.shape
    patch = size // grid
    onehot = labels[..., None] == np.arange(len(REGIONS), dtype=np.uint8)
    cells = onehot.reshape(batch, grid, patch, grid, patch, -1).mean((2, 4), dtype=np.float32)
    return torch.from_numpy(cells.reshape(batch, grid * grid, -1))


# -------------------------------------------------------------------------------------- training


@dataclass(frozen=True)
class ClipSettings:
    """How the compact CLIP is trained.

    ``keep`` of the patches are shown in the first ``masked`` share of the steps (as in FLIP, to
    save time), all of them afterwards. ``region`` weighs the patch–name term. The training ends
    with ``steps`` or ``minutes``, whichever comes first, and the schedule (warm-up, cosine, all
    patches) fits the nearer end. Only a run that ends by its steps can be repeated exactly.
    """

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
    minutes: float = 120.0
    device: str = "auto"
    seed: int = 1


def encode_patches(model: CLIP, images: Tensor, keep: Tensor | None = None) -> Tensor:
    """Projected patch tokens (B, K, D) whose mean is ``model.encode_image(images)``.

    ``keep`` (B, K) are the patches to look at; None for all of them.
    """
    visual = model.visual
    x = visual._embeds(images)
    if keep is not None:
        patches = x[:, 1:].gather(1, keep[..., None].expand(-1, -1, x.shape[2]))
        x = torch.cat([x[:, :1], patches], 1)
    return visual.ln_post(visual.transformer(x))[:, 1:] @ visual.proj


def to_inputs(images: NDArray[np.uint8], device: torch.device | str = "cpu") -> Tensor:
    """uint8 (B, S, S) → normalised float32 (B, 3, S, S) on ``device``."""
    norm = CONFIG["preprocess_cfg"]
    x = (
        torch.from_numpy(images)
        .to(device)
        .float()
        .div(255)
        .sub(norm["mean"][0])
        .div(norm["std"][0])
    )
    return x[:, None].expand(-1, 3, -1, -1)


def region_loss(tokens: Tensor, share: Tensor, names: Tensor, scale: Tensor) -> Tensor:
    """Contrast every patch with the names of all regions: softmax cross-entropy.

    tokens (B, K, D), share (B, K, C) of each patch that a region fills, which is the target,
    names (C, D) unit vectors. A region weighs with the root of its area, so that small organs are
    learnt and large ones stay precise.
    """
    chances = (scale * F.normalize(tokens, dim=-1) @ names.T).log_softmax(-1)
    weight = share * share.sum((0, 1)).clamp(min=1).rsqrt()
    return -(weight * chances).sum() / weight.sum()


def build(vocab_size: int) -> CLIP:
    """The untrained model, float32."""
    model_cfg = json.loads(json.dumps(CONFIG["model_cfg"]))
    model_cfg["text_cfg"]["vocab_size"] = vocab_size
    return CLIP(**model_cfg)


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


def train_clip(pool_folder: Path, folder: Path, settings: ClipSettings = ClipSettings()) -> Path:
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
            _REGION_PROMPTS[int(rng.integers(len(_REGION_PROMPTS)))].format(c=name)
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
            _write_rows(folder / "training_clip.csv", rows)
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
    return [p for p in pool if p.volume not in last], [p for p in pool if p.volume in last]


def _export(model: CLIP, vocab_size: int, folder: Path) -> None:
    config = json.loads(json.dumps(CONFIG))
    config["model_cfg"]["text_cfg"]["vocab_size"] = vocab_size
    write_json(folder / "clip.json", config)
    with atomic(folder / "clip.safetensors") as temporary:
        weights = {k: v.cpu().half().contiguous() for k, v in model.state_dict().items()}
        save_file(weights, temporary)


def _write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    with atomic(path) as temporary, open(temporary, "w", newline="") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
