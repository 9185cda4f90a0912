"""Training of the localizer on the cached tokens of the frozen backbone."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from xaiclip.device import in_batches, out_of_memory
from xaiclip.errors import ConfigError
from xaiclip.explain.settings import setting
from xaiclip.localizer.backbone import Backbone
from xaiclip.localizer.model import DEFAULTS as MODEL_DEFAULTS
from xaiclip.localizer.model import SIZE, Localizer, LocalizerSettings, full_size

log = logging.getLogger(__name__)

IGNORE = 255


@dataclass(frozen=True)
class TrainingSettings:
    """Adam with cosine decay on Dice + cross-entropy, at the resolution of the map maker's logits.

    ``cache_gib`` limits the memory for the tokens of all views; beyond it they are computed in each
    step.
    """

    epochs: int = setting(8, "Passes over the training slices.", minimum=1, maximum=100_000)
    batch_size: int = setting(8, "Slices in a training step.", minimum=1, maximum=4096)
    learning_rate: float = setting(0.002, "Adam's step size.", above=0, maximum=1)
    validation_fraction: float = setting(
        0.1,
        "Share of the training cases that selects the epoch; test cases are never used for it.",
        minimum=0,
        maximum=0.9,
    )
    views: int = setting(
        2,
        "Versions of each training slice: itself, and others changed in pose and grey values.",
        minimum=1,
        maximum=100,
    )
    cache_gib: float = 8.0
    seed: int = 0


DEFAULTS = TrainingSettings()


def dice_ce(logits: Tensor, labels: Tensor, eps: float = 1.0) -> Tensor:
    """Equation 9: 1 − macro Dice + mean cross-entropy, over the labelled pixels of a batch.

    The paper prints something else than its text. Equation 10 pools all classes into one ratio, in
    which large ones outweigh small ones, and has ε in the denominator alone; its text averages over
    classes, as this does. Equation 11 sums over the pixels, so its weight against Dice would grow
    with the image; this is the mean.

    Args:
        logits: (B, C, H, W).
        labels: integer (B, H, W), class indices; 255 = not labelled, such pixels do not count.
        eps: added once to numerator and denominator, so an absent class that is not predicted
            has Dice 1.
    """
    known = (labels != IGNORE)[:, None]
    # comparison, not one_hot: int64 maps and their permutation cost as much as the decoder's head
    classes = torch.arange(logits.shape[1], device=labels.device)
    g = (labels[:, None] == classes[:, None, None]).float()
    log_p = logits.float().log_softmax(1)
    p = log_p.exp() * known
    both, either = (p * g).sum((0, 2, 3)), p.sum((0, 2, 3)) + g.sum((0, 2, 3))
    dice = ((2 * both + eps) / (either + eps)).mean()
    return 1 - dice - (log_p * g).sum() / known.sum().clamp_min(1)


def augment(
    image: NDArray[np.uint8], label: NDArray[np.uint8], rng: np.random.Generator
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Light changes of pose and grey values; never a flip, which would swap the kidneys."""
    centre, scale = (SIZE / 2, SIZE / 2), float(np.exp(rng.uniform(-0.12, 0.12)))
    turn = np.array(cv2.getRotationMatrix2D(centre, rng.uniform(-10, 10), scale), dtype=np.float64)
    turn[:, 2] += rng.uniform(-12, 12, 2)
    moved = np.asarray(cv2.warpAffine(image, turn, (SIZE, SIZE), flags=cv2.INTER_LINEAR))
    target = np.asarray(cv2.warpAffine(label, turn, (SIZE, SIZE), flags=cv2.INTER_NEAREST))
    grey = (moved / 255.0) ** np.exp(rng.normal(0, 0.2)) * 255 * rng.uniform(0.85, 1.1)
    grey = grey + rng.standard_normal(grey.shape) * rng.uniform(0, 8) * (moved > 0)
    if rng.random() < 0.2:
        grey = np.asarray(cv2.GaussianBlur(grey, (0, 0), rng.uniform(0.4, 1.0)))
    return np.clip(grey, 0, 255).astype(np.uint8), target.astype(np.uint8)


def split_cases(cases: Sequence[str], fraction: float, seed: int) -> NDArray[np.bool_]:
    """True for the slices of the cases that validate; whole cases, at least one on each side."""
    names = sorted(set(cases))
    count = min(max(1, round(fraction * len(names))), len(names) - 1) if fraction > 0 else 0
    chosen = np.random.default_rng(seed).permutation(names)[:count]
    return np.isin(np.asarray(cases), chosen)


def train(
    backbone: Backbone,
    images: NDArray[np.uint8],
    labels: NDArray[np.uint8],
    cases: Sequence[str],
    classes: Sequence[str],
    localizer_settings: LocalizerSettings = MODEL_DEFAULTS,
    settings: TrainingSettings = DEFAULTS,
    progress: Callable[[dict[str, float]], None] | None = None,
) -> tuple[Localizer, list[dict[str, float]]]:
    """Train a localizer.

    Args:
        backbone: frozen.
        images: uint8 (N, 224, 224), preprocessed slices.
        labels: uint8 (N, 224, 224), class indices, 255 = not labelled.
        cases: name of the case of each slice: slices of one case stay on one side of the split.
        classes: class names, background first.
        localizer_settings, settings: see there.
        progress: called with each epoch's row.

    Returns:
        The localizer of the epoch with the best mean organ Dice on the validation cases (the last
        epoch if there are none), and one row per epoch: epoch, train_loss, val_loss, val_dice,
        ``val_dice_{class}``, selected (0 or 1). Without validation cases those are absent.

    Raises:
        ConfigError: no training slice, a label beyond the classes, or a step that memory does not
            hold.
    """
    if not len(images):
        raise ConfigError("No training slice is left: see skipped.tsv, or add training cases.")
    if labels[labels != IGNORE].max(initial=0) >= len(classes):
        raise ConfigError("The labels hold more classes than the config's list of classes.")
    rng = np.random.default_rng(settings.seed)
    validating = split_cases(cases, settings.validation_fraction, settings.seed)
    localizer = Localizer(backbone, classes, localizer_settings, settings.seed)
    device = next(iter(backbone.buffers())).device
    localizer.to(device)
    views = _Views(backbone, images[~validating], labels[~validating], settings, rng)
    checks = _Views(backbone, images[validating], labels[validating], settings, None)
    parameters = list(localizer.trainable().values())
    optimizer = torch.optim.Adam(parameters, settings.learning_rate, betas=(0.5, 0.999))
    per_epoch = -(-len(views) // settings.batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(
        optimizer, settings.epochs * per_epoch, settings.learning_rate * 0.01
    )
    best, best_epoch, best_weights = -1.0, 0, {}
    rows: list[dict[str, float]] = []
    for epoch in range(1, settings.epochs + 1):
        localizer.train()
        losses = []
        for chosen in np.array_split(rng.permutation(len(views)), per_epoch):
            tokens, pixels, target = views.take(chosen, rng)
            optimizer.zero_grad()
            try:
                logits = localizer.decode(tokens, pixels)
                loss = dice_ce(logits, _shrink(target, logits.shape[2:]))
                loss.backward()
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                # not halved here: Dice is over the batch, so the study would be another one
                raise ConfigError(
                    f"a training step of {len(chosen)} slices does not fit into the memory of "
                    f"{device}: set 'localizer.batch_size' lower."
                ) from error
            optimizer.step()
            schedule.step()
            losses.append(loss.item() * len(chosen))
        row = {"epoch": float(epoch), "train_loss": sum(losses) / len(views)}
        if len(checks):
            row |= _validate(localizer, checks, classes, settings.batch_size)
        rows.append(row)
        if row.get("val_dice", float(epoch)) > best:
            best, best_epoch = row.get("val_dice", float(epoch)), epoch
            best_weights = copy.deepcopy({k: p.data for k, p in localizer.trainable().items()})
        log.info("epoch %d: %s", epoch, {k: round(v, 4) for k, v in row.items()})
        if progress is not None:
            progress(row)
    localizer.load_state_dict(best_weights, strict=False)
    for row in rows:
        row["selected"] = float(row["epoch"] == best_epoch)
    return localizer.eval(), rows


def _shrink(labels: Tensor, size: Sequence[int]) -> Tensor:
    """Labels (B, H, W) at the nearest of fewer pixels."""
    return F.interpolate(labels[:, None], tuple(size), mode="nearest-exact")[:, 0]


@torch.inference_mode()
def _validate(
    localizer: Localizer, checks: _Views, classes: Sequence[str], batch_size: int
) -> dict[str, float]:
    """Loss, and Dice per class over all pixels of the validation slices (nan: class absent)."""
    localizer.eval()
    losses = []
    both = either = real = torch.zeros(len(classes))
    for chosen in np.array_split(np.arange(len(checks)), -(-len(checks) // batch_size)):
        tokens, pixels, target = checks.take(chosen, None)
        logits = full_size(localizer.decode(tokens, pixels))
        losses.append(dice_ce(logits, target).item() * len(chosen))
        known = (target != IGNORE)[:, None]
        p = F.one_hot(logits.argmax(1), len(classes)).permute(0, 3, 1, 2) * known
        g = F.one_hot(torch.where(known[:, 0], target, 0).long(), len(classes))
        g = g.permute(0, 3, 1, 2) * known
        both = both + (p * g).sum((0, 2, 3)).cpu()
        either = either + (p + g).sum((0, 2, 3)).cpu()
        real = real + g.sum((0, 2, 3)).cpu()
    dice = torch.where(real > 0, 2 * both / either, torch.nan).tolist()
    return {
        "val_loss": sum(losses) / len(checks),
        "val_dice": float(np.nanmean(dice[1:])) if np.isfinite(dice[1:]).any() else 0.0,
        **{f"val_dice_{name}": value for name, value in zip(classes, dice, strict=True)},
    }


class _Views:
    """Tokens and labels of slices, each in one or more versions."""

    def __init__(
        self,
        backbone: Backbone,
        images: NDArray[np.uint8],
        labels: NDArray[np.uint8],
        settings: TrainingSettings,
        rng: np.random.Generator | None,
    ) -> None:
        self.backbone = backbone
        self.count = len(images)
        self.versions = settings.views if rng is not None else 1
        self.device = next(iter(backbone.buffers())).device
        all_images, all_labels = [images], [labels]
        for _ in range(self.versions - 1):
            assert rng is not None
            pairs = [augment(i, m, rng) for i, m in zip(images, labels, strict=True)]
            all_images.append(np.stack([p[0] for p in pairs]))
            all_labels.append(np.stack([p[1] for p in pairs]))
        self.images = torch.from_numpy(np.concatenate(all_images))
        self.labels = torch.from_numpy(np.concatenate(all_labels))
        values = len(backbone.blocks) * backbone.width * backbone.grid**2
        self.tokens: list[Tensor] | None = None
        if 2 * values * len(self.images) <= settings.cache_gib * 2**30 and self.count:
            parts = in_batches(
                lambda part: [t.half().cpu() for t in backbone(part.to(self.device))],
                self.images,
                16,
            )
            self.tokens = [torch.cat(block) for block in zip(*parts, strict=True)]

    def __len__(self) -> int:
        return self.count

    def take(
        self, chosen: NDArray[np.intp], rng: np.random.Generator | None
    ) -> tuple[list[Tensor], Tensor, Tensor]:
        """Tokens, pixels and labels of the slices ``chosen``, in versions that ``rng`` draws."""
        at = torch.from_numpy(chosen)
        if rng is not None:
            at = at + self.count * torch.from_numpy(rng.integers(self.versions, size=len(at)))
        pixels = self.images[at].to(self.device)
        if self.tokens is None:
            tokens = self.backbone(pixels)
        else:
            tokens = [block[at].to(self.device).float() for block in self.tokens]
        return tokens, pixels, self.labels[at].to(self.device)
