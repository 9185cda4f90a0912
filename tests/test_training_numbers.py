"""The localizer's training: image and label together, which slices, which epoch, which steps."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from test_backbone import TOKENIZER, small_clip
from test_localizer_numbers import CLASSES, SMALL, noise, upsampled
from xaiclip.localizer import training
from xaiclip.localizer.backbone import Backbone
from xaiclip.localizer.model import Localizer
from xaiclip.localizer.training import TrainingSettings, augment, split_cases, train


@pytest.fixture(scope="module")
def frozen() -> Backbone:
    return Backbone(small_clip(), TOKENIZER)


# ------------------------------------------------------------------------------------ augmentation


def test_image_and_label_move_together_to_the_pixel() -> None:
    """Ids far apart: interpolated between, they would be other ids."""
    label = np.zeros((224, 224), np.uint8)
    cv2.ellipse(label, (70, 90), (40, 18), 25, 0, 360, 9, -1)
    cv2.circle(label, (160, 140), 20, 4, -1)
    label[195:205, 30:190] = 255
    image = np.select([label == 9, label == 4, label == 255], [250, 130, 200], 40).astype(np.uint8)
    turned = set()
    for seed in range(12):
        moved, target = augment(image, label, np.random.default_rng(seed))
        assert set(np.unique(target)) <= {0, 4, 9, 255}
        for value in (9, 4):
            inside = cv2.erode((target == value).astype(np.uint8), np.ones((5, 5))) > 0
            around = cv2.dilate((target == value).astype(np.uint8), np.ones((7, 7))) > 0
            ring = around & ~(cv2.dilate((target == value).astype(np.uint8), np.ones((5, 5))) > 0)
            level = (np.median(moved[inside]) + np.median(moved[ring & (target == 0)])) / 2
            bright = cv2.GaussianBlur(moved, (0, 0), 1) > level
            found = np.argwhere(bright & around).mean(0)
            wanted = np.argwhere(target == value).mean(0)
            assert np.abs(found - wanted).max() < 0.6, (seed, value)
        (y9, x9), (y4, x4) = (np.argwhere(target == v).mean(0) for v in (9, 4))
        assert x9 < x4
        assert y9 < y4
        turned.add(round(float(np.arctan2(y4 - y9, x4 - x9)), 3))
    assert len(turned) == 12


def test_labels_shrink_to_the_pixel_in_the_middle() -> None:
    labels = torch.from_numpy(
        np.random.default_rng(0).choice([0, 4, 9, 255], (2, 224, 224)).astype(np.uint8)
    )
    found = training._shrink(labels, (32, 32))
    assert torch.equal(found, labels[:, 3::7, 3::7])  # 3 of 0…6: not the corner, and no mean
    assert set(training._shrink(labels, (64, 64)).unique().tolist()) == {0, 4, 9, 255}


# ------------------------------------------------------------------------------------ which epoch


def blocks(seed: int) -> np.ndarray:
    """A label map of three organs and a strip that nobody labelled; the last class is absent."""
    rng = np.random.default_rng(seed)
    label = np.zeros((224, 224), np.uint8)
    y, x = rng.integers(10, 40, 2)
    label[y : y + 60, x : x + 80] = 1
    label[y + 80 : y + 120, x + 20 : x + 90] = 2
    label[:, 200:] = 255
    return label


class Epochs:
    """Stands for `Localizer.decode`: known answers in the checks of four epochs.

    Organs are best in the second epoch; background, loss, the first organ and the pooled mean in
    others; the fourth is as good as the second, but comes later.
    """

    def __init__(self, truth: np.ndarray, batch: int) -> None:
        self.truth, self.batch, self.checked = truth, batch, 0
        self.weights: list[torch.Tensor] = []
        self.answers = [self.answer(epoch) for epoch in range(4)]

    def answer(self, epoch: int) -> np.ndarray:
        """Class of each pixel."""
        found = np.where(self.truth == 255, 0, self.truth)
        if epoch == 0:  # the first organ and the background whole, the second organ lost
            found = np.where(found == 2, 0, found)
        elif epoch in (1, 3):  # both organs nearly whole, much background taken for an organ
            rows = np.arange(224)[None, :, None]
            found = np.where((found > 0) & (rows % 10 == 0), 0, found)
            found[:, :, 130:200] = 3
            found[:, :, 215:] = 1  # where nobody labelled: does not count
        else:  # two thirds of the second organ
            rows = np.arange(224)[None, :, None]
            found = np.where((found == 2) & (rows % 3 == 0), 0, found)
        return found

    def __call__(self, localizer: Localizer, tokens: list[torch.Tensor]) -> torch.Tensor:
        if localizer.training:
            return localizer.sharpness.sum() * torch.ones(len(tokens[0]), 4, 32, 32).tril()
        epoch, part = divmod(self.checked, -(-len(self.truth) // self.batch))
        self.checked += 1
        if part == 0:
            self.weights.append(localizer.sharpness.detach().clone())
        rows = np.array_split(np.arange(len(self.truth)), -(-len(self.truth) // self.batch))[part]
        found = torch.from_numpy(self.answers[epoch][rows]).long()
        sure = (9.0, 40.0, 3.0, 40.0)[epoch]  # wrong and sure costs most in the loss
        return sure * F.one_hot(found, 4).permute(0, 3, 1, 2).float()


def test_the_epoch_is_chosen_by_the_organs_on_cases_that_do_not_train(
    frozen: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = [f"c{i // 2}" for i in range(10)]
    labels = np.stack([blocks(i) for i in range(10)])
    held = split_cases(cases, 0.4, 0)
    epochs = Epochs(labels[held], 3)
    monkeypatch.setattr(Localizer, "decode", lambda self, tokens, pixels: epochs(self, tokens))
    options = TrainingSettings(epochs=4, batch_size=3, views=1, validation_fraction=0.4)
    localizer, rows = train(frozen, noise(10), labels, cases, CLASSES, SMALL, options)

    known = labels[held] != 255
    for row, answer in zip(rows, epochs.answers, strict=True):
        dice = []
        for k in range(4):
            p, g = (answer == k) & known, (labels[held] == k) & known
            dice.append(2 * (p & g).sum() / (p.sum() + g.sum()) if g.any() else np.nan)
        assert [row[f"val_dice_{name}"] for name in CLASSES] == pytest.approx(dice, nan_ok=True)
        assert row["val_dice"] == pytest.approx(np.nanmean(dice[1:]))
    background = [row["val_dice_background"] for row in rows]
    assert [row["selected"] for row in rows] == [0, 1, 0, 0]
    # another criterion would have taken another one
    assert np.argmax(background) == 2
    assert np.argmin([row["val_loss"] for row in rows]) != 1
    assert np.argmax([2 * row["val_dice"] + row["val_dice_background"] for row in rows]) == 2
    assert rows[0]["val_dice_spleen"] >= rows[1]["val_dice_spleen"]
    assert torch.equal(localizer.sharpness.detach(), epochs.weights[1])
    assert not torch.equal(epochs.weights[1], epochs.weights[3])


def test_checks_are_made_at_the_size_of_the_labels() -> None:
    """Logits of 32 pixels are enlarged; the labels are not made smaller."""
    rng = np.random.default_rng(1)
    logits = torch.from_numpy(rng.normal(0, 1, (3, 4, 32, 32)).astype(np.float32))
    labels = rng.integers(0, 4, (3, 224, 224)).astype(np.uint8)

    class Known:
        def eval(self) -> None:
            pass

        def decode(self, tokens: list[torch.Tensor], pixels: torch.Tensor) -> torch.Tensor:
            return logits

    checks = training._Views(Means(), np.zeros_like(labels), labels, TrainingSettings(), None)
    row = training._validate(Known(), checks, CLASSES, 3)
    found = upsampled(logits.numpy(), 224).argmax(1)
    for k, name in enumerate(CLASSES):
        p, g = found == k, labels == k
        wanted = 2 * (p & g).sum() / (p.sum() + g.sum())
        assert row[f"val_dice_{name}"] == pytest.approx(wanted, abs=1e-4)


def test_training_steps_are_adams_and_anneal(
    frozen: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[torch.optim.Adam] = []

    class Spy(torch.optim.Adam):
        def __init__(self, *args: object, **kwargs: object) -> None:
            super().__init__(*args, **kwargs)
            made.append(self)
            self.rates: list[float] = []

        def step(self, closure: None = None) -> None:
            self.rates.append(self.param_groups[0]["lr"])
            return super().step(closure)

    monkeypatch.setattr(torch.optim, "Adam", Spy)
    labels = np.stack([blocks(i) for i in range(4)])
    options = TrainingSettings(
        epochs=3, batch_size=2, views=1, validation_fraction=0, learning_rate=1e-3
    )
    train(frozen, noise(4), labels, list("abcd"), CLASSES, SMALL, options)
    (adam,) = made
    assert adam.defaults["betas"] == (0.5, 0.999)
    cosine = 1e-5 + (1e-3 - 1e-5) * (1 + np.cos(np.pi * np.arange(6) / 6)) / 2
    np.testing.assert_allclose(adam.rates, cosine, rtol=1e-6)


class Means(torch.nn.Module):
    """A backbone whose tokens are the slice's mean."""

    blocks, width, grid = (1,), 1, 1

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(1))

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        return [images.float().mean((1, 2))[:, None, None, None]]


@pytest.mark.parametrize("cache", [0.0, 8.0])
def test_tokens_and_labels_of_a_view_belong_together(
    cache: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slice i is 10 i everywhere, its label i; its view v is v more, and the label 50 v."""
    number = iter(range(100))
    monkeypatch.setattr(
        training, "augment", lambda i, m, rng: (i + 1 + (v := next(number) // 5), m + 50 * (v + 1))
    )
    flat = np.broadcast_to(np.arange(5, dtype=np.uint8)[:, None, None], (5, 224, 224))
    options = TrainingSettings(views=3, cache_gib=cache)
    rng = np.random.default_rng(0)
    views = training._Views(Means(), 10 * flat, flat.copy(), options, rng)
    assert len(views) == 5
    seen = set()
    for _ in range(8):
        chosen = rng.permutation(5)[:4]
        (tokens,), pixels, labels = views.take(chosen, rng)
        assert torch.equal(pixels[:, 0, 0].float(), tokens.flatten())
        for i, token, label in zip(chosen, tokens.flatten(), labels[:, 0, 0], strict=True):
            version = round(float(token)) - 10 * i
            assert int(label) == i + 50 * version
            seen.add(version)
    assert seen == {0, 1, 2}
    # what checks is the slice itself
    checks = training._Views(Means(), 10 * flat, flat.copy(), options, None)
    (tokens,), pixels, labels = checks.take(np.arange(5), None)
    assert torch.equal(pixels[:, 0, 0].float(), tokens.flatten())
    assert tokens.flatten().tolist() == [0, 10, 20, 30, 40]
    assert labels[:, 0, 0].tolist() == [0, 1, 2, 3, 4]
    assert len(checks.images) == 5


def test_no_case_is_on_both_sides(frozen: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    class Spy(training._Views):
        def __init__(self, backbone, images, labels, settings, rng) -> None:
            made.append((images[:, 0, 0].tolist(), labels[:, 0, 0].tolist(), rng is None))
            super().__init__(backbone, images, labels, settings, rng)

    monkeypatch.setattr(training, "_Views", Spy)
    cases = [f"c{i // 2}" for i in range(8)]
    images = np.broadcast_to(np.arange(8, dtype=np.uint8)[:, None, None], (8, 224, 224)).copy()
    labels = images % 3
    options = TrainingSettings(epochs=1, batch_size=4, views=1, validation_fraction=0.25)
    train(frozen, images, labels, cases, CLASSES, SMALL, options)
    held = split_cases(cases, 0.25, 0)
    learnt, checked = made
    assert learnt == (np.flatnonzero(~held).tolist(), (np.flatnonzero(~held) % 3).tolist(), False)
    assert checked == (np.flatnonzero(held).tolist(), (np.flatnonzero(held) % 3).tolist(), True)
    assert not {i // 2 for i in learnt[0]} & {i // 2 for i in checked[0]}
