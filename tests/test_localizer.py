"""The localizer: its shapes, what trains, the loss, the training loop, saving."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.losses import DiceCELoss

from test_backbone import TOKENIZER, small_clip, write_folder
from xaiclip.errors import ConfigError
from xaiclip.localizer.backbone import Backbone, BackboneSettings, load_backbone
from xaiclip.localizer.model import (
    SHIFTS,
    Localizer,
    LocalizerSettings,
    load_localizer,
    predict,
    save_localizer,
)
from xaiclip.localizer.training import (
    TrainingSettings,
    augment,
    dice_ce,
    split_cases,
    train,
)

CLASSES = ("background", "liver", "left kidney")
SMALL = LocalizerSettings(context=4, width=32)


def backbone() -> Backbone:
    return Backbone(small_clip(), TOKENIZER)


def discs(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """A large grey disc on the left and a small bright one on the right, in noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:224, :224]
    images, labels = [], []
    for _ in range(count):
        dx, dy = rng.integers(-12, 13, 2)
        label = np.zeros((224, 224), np.uint8)
        label[(x - 70 - dx) ** 2 + (y - 100 - dy) ** 2 < 45**2] = 1
        label[(x - 165 - dx) ** 2 + (y - 120 + dy) ** 2 < 26**2] = 2
        image = np.choose(label, (30, 120, 220)) + rng.normal(0, 5, label.shape)
        images.append(np.clip(image, 0, 255).astype(np.uint8))
        labels.append(label)
    return np.stack(images), np.stack(labels), [f"case{i // 2}" for i in range(count)]


@pytest.mark.parametrize("text", [True, False])
def test_only_prompts_adapter_and_maps_train(text: bool) -> None:
    localizer = Localizer(backbone(), CLASSES, LocalizerSettings(4, text=text, width=32))
    images, _, _ = discs(2)
    logits = localizer(torch.from_numpy(images))
    assert logits.shape == (2, 3, 224, 224)
    logits.square().mean().backward()
    parts = {name.split(".")[0] for name in localizer.trainable()}
    assert parts == {"prompts", "adapter", "maps", "sharpness"}
    assert all(p.grad is None for p in localizer.backbone.parameters())
    assert (localizer.prompts.context.grad is not None) == text
    assert all(p.grad is not None for p in localizer.adapter.parameters())


def test_text_acts_on_places() -> None:
    """Another prompt changes the maps differently at different places: it is no mere bias."""
    images = torch.from_numpy(discs(1)[0])
    for text in (True, False):
        localizer = Localizer(backbone(), CLASSES, LocalizerSettings(4, text=text, width=32))
        with torch.no_grad():
            before = localizer(images)
            localizer.prompts.context.mul_(50)
            change = (localizer(images) - before).flatten(2)
        assert bool(change.std(2).max() > 1e-3) == text


def test_same_seed_same_weights_and_global_state_untouched() -> None:
    torch.manual_seed(5)
    wanted = torch.rand(1)
    torch.manual_seed(5)
    one, two, three = (Localizer(backbone(), CLASSES, SMALL, seed) for seed in (1, 1, 2))
    torch.manual_seed(5)
    Localizer(backbone_ := one.backbone, CLASSES, SMALL, 3)
    assert torch.equal(torch.rand(1), wanted)
    assert backbone_ is one.backbone
    same = [torch.equal(a, b) for a, b in zip(*map(_values, (one, two)), strict=True)]
    other = [torch.equal(a, b) for a, b in zip(*map(_values, (one, three)), strict=True)]
    assert all(same)
    assert not all(other)


def _values(localizer: Localizer) -> list[torch.Tensor]:
    return list(localizer.trainable().values())


def test_predict_gives_probabilities_whatever_the_batch() -> None:
    localizer = Localizer(backbone(), CLASSES, SMALL)
    images = discs(3)[0]
    found = predict(localizer, images)
    assert found.shape == (3, 3, 224, 224)
    assert found.dtype == np.float32
    assert np.allclose(found.sum(1), 1, atol=1e-5)
    assert np.allclose(found, predict(localizer, images, batch_size=1), atol=1e-5)


def test_predict_is_the_mean_over_positions_of_the_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    localizer = Localizer(backbone(), CLASSES, SMALL)
    images = discs(3)[0]
    # whatever does not hang on the position, the mean leaves as it is, at the borders too
    monkeypatch.setattr(
        localizer, "forward", lambda x: torch.stack([x.float() / 255, 0.0 * x, 0.0 * x], dim=1)
    )
    plain = localizer.forward(torch.from_numpy(images)).softmax(1).numpy()
    assert np.allclose(predict(localizer, images), plain, atol=1e-6)
    seen = []
    monkeypatch.setattr(
        localizer, "forward", lambda x: seen.append(x) or torch.zeros(len(x), 3, 224, 224)
    )
    predict(localizer, images)
    assert len(seen) == len(SHIFTS) == 4
    half = 224 // localizer.backbone.grid // 2
    assert torch.equal(seen[-1][:, half:, half:], torch.from_numpy(images)[:, :-half, :-half])


# ------------------------------------------------------------------------------------- the loss


@given(seed=st.integers(0, 1000), classes=st.integers(2, 6))
@settings(max_examples=20, deadline=None)
def test_loss_equals_monai_without_ignored_pixels(seed: int, classes: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, classes, 9, 7, generator=generator)
    labels = torch.randint(0, classes, (2, 9, 7), generator=generator)
    monai = DiceCELoss(softmax=True, to_onehot_y=True, batch=True, smooth_nr=1.0, smooth_dr=1.0)
    assert torch.allclose(dice_ce(logits, labels), monai(logits, labels[:, None]), atol=1e-5)


def test_loss_ignores_what_is_not_labelled() -> None:
    logits = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    labels = torch.randint(0, 3, (1, 8, 8), generator=torch.Generator().manual_seed(1))
    labels[:, 4:] = 255
    changed = logits.clone()
    changed[:, :, 4:] = 50.0
    assert torch.equal(dice_ce(logits, labels), dice_ce(changed, labels))
    assert torch.allclose(dice_ce(logits, labels), dice_ce(logits[:, :, :4], labels[:, :4]))
    assert torch.isfinite(dice_ce(logits, torch.full_like(labels, 255)))


def test_loss_of_a_perfect_map_is_nothing() -> None:
    labels = torch.zeros(1, 8, 8, dtype=torch.uint8)
    labels[:, 2:5] = 1  # class 2 is absent, and not predicted
    logits = 100.0 * torch.nn.functional.one_hot(labels.long(), 3).permute(0, 3, 1, 2)
    assert dice_ce(logits, labels) < 1e-3


# ---------------------------------------------------------------------------------- the training


@pytest.mark.parametrize(
    ("cases", "fraction", "held"),
    [(10, 0.2, 2), (10, 0.0, 0), (3, 0.01, 1), (2, 0.9, 1), (1, 0.5, 0)],
)
def test_split_is_by_case(cases: int, fraction: float, held: int) -> None:
    names = [f"c{i % cases}" for i in range(4 * cases)]
    out = split_cases(names, fraction, seed=1)
    assert len({n for n, o in zip(names, out, strict=True) if o}) == held
    assert not {n for n, o in zip(names, out, strict=True) if o} & {
        n for n, o in zip(names, out, strict=True) if not o
    }
    assert np.array_equal(out, split_cases(names, fraction, seed=1))


def test_augmentation_keeps_sides_and_labels() -> None:
    images, labels, _ = discs(1)
    for seed in range(10):
        image, label = augment(images[0], labels[0], np.random.default_rng(seed))
        assert image.dtype == label.dtype == np.uint8
        assert set(np.unique(label)) == {0, 1, 2}
        assert np.nonzero(label == 1)[1].mean() < np.nonzero(label == 2)[1].mean()
        # image and label moved together
        assert image[label == 2].mean() > image[label == 1].mean() > image[label == 0].mean()


@pytest.mark.slow
def test_training_learns_and_repeats(tmp_path: Path) -> None:
    images, labels, cases = discs(12)
    labels = labels.copy()
    labels[0, :40] = 255
    options = TrainingSettings(epochs=12, batch_size=4, views=2, learning_rate=3e-3)
    seen: list[dict[str, float]] = []
    write_folder(tmp_path)
    frozen = load_backbone(BackboneSettings(str(tmp_path)))
    localizer, rows = train(
        frozen, images, labels, cases, CLASSES, SMALL, options, progress=seen.append
    )
    assert len(seen) == len(rows) == 12
    assert rows[-1]["train_loss"] < 0.6 * rows[0]["train_loss"]
    best = [row for row in rows if row["selected"]]
    assert len(best) == 1
    assert best[0]["val_dice"] == max(row["val_dice"] for row in rows) > 0.6
    held = split_cases(cases, 0.2, 0)
    found = predict(localizer, images[held]).argmax(1)
    both = ((found == 1) & (labels[held] == 1)).sum()
    dice = 2 * both / ((found == 1).sum() + (labels[held] == 1).sum())
    assert dice == pytest.approx(best[0]["val_dice_liver"], abs=0.01)

    short = TrainingSettings(epochs=1, batch_size=4, views=2)
    runs = [train(frozen, images, labels, cases, CLASSES, SMALL, short)[1] for _ in range(2)]
    assert runs[0] == runs[1]
    # without the cache: the same tokens but for half precision
    slow = TrainingSettings(epochs=1, batch_size=4, views=2, cache_gib=0)
    uncached = train(frozen, images, labels, cases, CLASSES, SMALL, slow)[1]
    assert uncached[0]["train_loss"] == pytest.approx(runs[0][0]["train_loss"], rel=0.02)

    path = tmp_path / "localizer.safetensors"
    save_localizer(path, localizer)
    loaded = load_localizer(path)
    assert np.allclose(predict(loaded, images[:2]), predict(localizer, images[:2]), atol=1e-6)
    assert loaded.classes == CLASSES
    assert path.stat().st_size < 4 * sum(p.numel() for p in _values(localizer)) + 10_000
    # the backbone is named by the folder where it was; another one is refused
    other = Backbone(small_clip(), TOKENIZER)
    with pytest.raises(ConfigError, match="other weights"):
        load_localizer(path, other)


def test_training_without_validation_keeps_the_last_epoch() -> None:
    images, labels, cases = discs(2)
    options = TrainingSettings(epochs=2, validation_fraction=0.2, views=1)
    _, rows = train(backbone(), images, labels, cases, CLASSES, SMALL, options)  # one case
    assert [row["selected"] for row in rows] == [0.0, 1.0]
    assert "val_dice" not in rows[0]


@pytest.mark.parametrize(
    ("count", "top", "message"),
    [(0, 0, "No training slice"), (2, 3, "more classes")],
)
def test_training_refuses(count: int, top: int, message: str) -> None:
    images, labels, cases = discs(2)
    labels = labels.copy()
    labels[0, 0, 0] = top
    with pytest.raises(ConfigError, match=message):
        train(backbone(), images[:count], labels[:count], cases[:count], CLASSES)


def test_a_step_that_does_not_fit_says_what_to_change(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(logits: object, labels: object) -> None:
        raise RuntimeError("CUDA out of memory.")

    monkeypatch.setattr("xaiclip.localizer.training.dice_ce", full)
    images, labels, cases = discs(2)
    with pytest.raises(ConfigError, match=r"localizer\.batch_size"):
        train(backbone(), images, labels, cases, CLASSES, SMALL)


@pytest.mark.parametrize("content", [None, b"", b"text", b"\x08" + b"\0" * 7 + b"{}      "])
def test_not_a_localizer(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "localizer.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match="not a trained localizer"):
        load_localizer(path)


def test_a_localizer_of_another_architecture_is_refused(tmp_path: Path) -> None:
    frozen = backbone()
    localizer = Localizer(frozen, CLASSES, SMALL)
    localizer.sharpness = torch.nn.Parameter(torch.zeros(7))
    path = tmp_path / "localizer.safetensors"
    save_localizer(path, localizer)
    with pytest.raises(ConfigError, match="another version"):
        load_localizer(path, frozen)
