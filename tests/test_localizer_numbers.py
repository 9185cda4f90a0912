"""The localizer's choices, each recomputed a second way: which map, which class, which epoch."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from scipy.ndimage import map_coordinates

from test_backbone import TOKENIZER, small_clip
from xaiclip.localizer import training
from xaiclip.localizer.backbone import Backbone
from xaiclip.localizer.model import (
    Localizer,
    LocalizerSettings,
    full_size,
    load_localizer,
    predict,
    save_localizer,
)
from xaiclip.localizer.training import TrainingSettings, augment, split_cases, train

#: Neither the alphabet's order nor its reverse.
CLASSES = ("background", "spleen", "liver", "right kidney")
SMALL = LocalizerSettings(context=4, width=32)


@pytest.fixture(scope="module")
def frozen() -> Backbone:
    return Backbone(small_clip(), TOKENIZER)


def noise(count: int, seed: int = 0) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (count, 28, 28), dtype=np.uint8)
    return np.stack([cv2.resize(one, (224, 224), interpolation=cv2.INTER_CUBIC) for one in coarse])


def upsampled(grid: np.ndarray, size: int) -> np.ndarray:
    """(…, g, g) bilinear to (…, size, size), half-pixel centres, edges repeated, by SciPy."""
    at = (np.arange(size) + 0.5) * grid.shape[-1] / size - 0.5
    where = np.meshgrid(at, at, indexing="ij")
    flat = grid.reshape(-1, *grid.shape[-2:])
    found = [map_coordinates(one, where, order=1, mode="nearest") for one in flat]
    return np.array(found).reshape(*grid.shape[:-2], size, size)


# ------------------------------------------------------------------------------------ the maps


@pytest.mark.parametrize("text", [True, False])
def test_what_the_map_maker_sees_and_what_is_added(frozen: Backbone, text: bool) -> None:
    """Unit tokens to unit variance, each block's cosines; the last block's cosines are added."""
    localizer = Localizer(frozen, CLASSES, LocalizerSettings(4, text=text, width=32)).eval()
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        localizer.sharpness.copy_(torch.tensor([2.0, 3.0, 5.0, 7.0]))
        for layer in localizer.adapter:
            layer.weight.add_(0.3 * torch.randn(layer.weight.shape, generator=rng))
            layer.bias.add_(torch.randn(layer.bias.shape, generator=rng))
    seen: list[torch.Tensor] = []

    class Nothing(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(x)
            return torch.zeros(len(x), 4, 32, 32)

    localizer.maps = Nothing()
    tokens = [torch.randn(2, 32, 4, 4, generator=rng) for _ in range(3)]
    with torch.no_grad():
        found = localizer.decode(tokens).numpy()
        names = localizer.prompts().numpy() if text else np.zeros((4, 24))
    units, cosines = [], []
    for layer, block in zip(localizer.adapter, tokens, strict=True):
        weight, bias = layer.weight.detach().numpy()[..., 0, 0], layer.bias.detach().numpy()
        adapted = np.tensordot(weight, block.numpy(), (1, 1)) + bias[:, None, None, None]
        adapted = adapted.swapaxes(0, 1)
        adapted /= np.sqrt((adapted**2).sum(1, keepdims=True))
        units.append(adapted * np.sqrt(24))
        cosines.append(np.tensordot(names, adapted, (1, 1)).swapaxes(0, 1))
    scaled = [c * s for c, s in zip(cosines, (2, 3, 5), strict=True)]
    np.testing.assert_allclose(seen[0], np.concatenate(units + scaled, 1), atol=1e-5)
    np.testing.assert_allclose(found, upsampled(cosines[-1] * 7, 32), atol=1e-4)
    assert (abs(found).max() > 0.1) == text


@pytest.mark.parametrize("mode", ["training", "prediction"])
@pytest.mark.parametrize("text", [True, False])
def test_text_acts_on_places_in_both_modes(frozen: Backbone, text: bool, mode: str) -> None:
    """Another prompt changes the maps differently at different places, or, without text, nothing.

    What was trained without text must not see it when it predicts.
    """
    images = noise(1)
    localizer = Localizer(frozen, CLASSES, LocalizerSettings(4, text=text, width=32))

    def maps() -> torch.Tensor:
        if mode == "prediction":
            return torch.from_numpy(predict(localizer, images))
        localizer.train()
        return localizer(torch.from_numpy(images)).detach()

    before = maps()
    with torch.no_grad():
        localizer.prompts.context.mul_(50)
    change = (maps() - before).flatten(2)
    if text:
        assert change.std(2).min() > 1e-3
    else:
        assert not change.any()


def test_the_mode_changes_no_number(frozen: Backbone) -> None:
    localizer = Localizer(frozen, CLASSES, LocalizerSettings(4, text=False, width=32))
    images = torch.from_numpy(noise(1))
    with torch.no_grad():
        assert torch.equal(localizer.train()(images), localizer.eval()(images))


def test_classes_keep_the_order_that_they_are_given_in(frozen: Backbone) -> None:
    """Channel k is class k: with real words as context, its prompt is open_clip's own text."""
    localizer = Localizer(frozen, CLASSES, SMALL)
    ids = TOKENIZER([f"a photo of the {name}" for name in CLASSES])
    with torch.no_grad():
        localizer.prompts.context.copy_(frozen.clip.token_embedding(ids)[:, 1:5])
        found = localizer.prompts()
        for k, name in enumerate(CLASSES):
            one = frozen.clip.encode_text(TOKENIZER([f"a photo of the {name}"]), normalize=True)
            torch.testing.assert_close(found[k], one[0], atol=1e-5, rtol=1e-5)
    assert localizer.classes == CLASSES


def test_logits_are_enlarged_bilinearly_about_pixel_centres() -> None:
    logits = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    np.testing.assert_allclose(full_size(logits), upsampled(logits.numpy(), 224), atol=1e-4)


def test_shifted_maps_come_back_to_their_place(frozen: Backbone) -> None:
    """A network that sees a patch's mean: the shifted grids mean over other patches.

    Recomputed pixel by pixel, with half a patch down and to the right (28 pixels of 56).
    """

    class Patches(Localizer):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            grid = F.avg_pool2d(images[:, None].float() / 255, 56)
            bright = F.interpolate(grid, scale_factor=56, mode="nearest")
            return torch.cat([0 * bright, 3 * bright, -2 * bright, 0 * bright], 1)

    images = noise(2, seed=3)
    images[0, 30:90, 120:210] = 255
    found = predict(Patches(frozen, CLASSES, SMALL), images)
    total, times = np.zeros((2, 4, 224, 224)), np.zeros((224, 224))
    for down in (0, 28):
        for right in (0, 28):
            moved = np.zeros((2, 224, 224))
            moved[:, down:, right:] = images[:, : 224 - down, : 224 - right]
            mean = moved.reshape(2, 4, 56, 4, 56).mean((2, 4)) / 255
            bright = mean.repeat(56, 1).repeat(56, 2)
            logits = np.stack([0 * bright, 3 * bright, -2 * bright, 0 * bright], 1)
            p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
            for row in range(0, 224 - down):
                total[:, :, row, : 224 - right] += p[:, :, row + down, right:]
            times[: 224 - down, : 224 - right] += 1
    np.testing.assert_allclose(found, total / times, atol=1e-5)


@pytest.mark.parametrize("options", [{"text": False}, {"class_specific": False}, {"context": 2}])
def test_a_saved_localizer_keeps_its_settings(
    frozen: Backbone, tmp_path: Path, options: dict[str, object]
) -> None:
    localizer = Localizer(frozen, CLASSES, LocalizerSettings(**({"width": 32} | options)), seed=4)
    save_localizer(tmp_path / "l.safetensors", localizer)
    loaded = load_localizer(tmp_path / "l.safetensors", frozen)
    assert loaded.settings == localizer.settings
    assert loaded.classes == CLASSES
    np.testing.assert_array_equal(predict(loaded, noise(1)), predict(localizer, noise(1)))


# ---------------------------------------------------------------------------------- the backbone


def test_images_are_resized_as_pillow_does_and_normalised() -> None:
    """Bicubic with antialiasing: a slice's fine grain must not fold into the tokens."""
    frozen = Backbone(small_clip(), TOKENIZER, (2,), mean=(0.2, 0.3, 0.4), std=(0.5, 0.6, 0.7))
    image = np.random.default_rng(0).integers(0, 256, (224, 224), dtype=np.uint8)
    image[50:140, 30:99] = 255
    grey = Image.fromarray(image.astype(np.float32) / 255)
    small = np.asarray(grey.resize((56, 56), Image.Resampling.BICUBIC)).clip(0, 1)
    channels = (small - np.array([0.2, 0.3, 0.4])[:, None, None]) / np.array([0.5, 0.6, 0.7])[
        :, None, None
    ]
    seen = []
    frozen.clip.visual.conv1.register_forward_hook(lambda m, x, out: seen.append(x[0]))
    frozen(torch.from_numpy(image)[None])
    np.testing.assert_allclose(seen[0][0], channels, atol=2e-3)


def test_the_projection_is_the_towers_own_direction() -> None:
    """Norm, then projection, as open_clip does with its last tokens; its norm's shift is zero."""
    clip = small_clip()
    torch.nn.init.normal_(clip.visual.ln_post.weight, 1, 0.5)
    torch.nn.init.zeros_(clip.visual.ln_post.bias)
    frozen = Backbone(clip, TOKENIZER)
    tokens = torch.randn(7, 32) * 3 + 1
    with torch.no_grad():
        wanted = F.normalize(clip.visual.ln_post(tokens) @ clip.visual.proj, dim=-1)
    found = F.normalize(tokens @ frozen.projection().T, dim=-1)
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


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
    monkeypatch.setattr(Localizer, "decode", lambda self, tokens: epochs(self, tokens))
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

        def decode(self, tokens: list[torch.Tensor]) -> torch.Tensor:
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
    options = TrainingSettings(epochs=3, batch_size=2, views=1, validation_fraction=0)
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
        (tokens,), labels = views.take(chosen, rng)
        for i, token, label in zip(chosen, tokens.flatten(), labels[:, 0, 0], strict=True):
            version = round(float(token)) - 10 * i
            assert int(label) == i + 50 * version
            seen.add(version)
    assert seen == {0, 1, 2}
    # what checks is the slice itself
    checks = training._Views(Means(), 10 * flat, flat.copy(), options, None)
    (tokens,), labels = checks.take(np.arange(5), None)
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
