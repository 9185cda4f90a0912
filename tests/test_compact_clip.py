"""The compact CLIP: its words, its pictures, and that its training learns and goes on."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from open_clip.tokenizer import SimpleTokenizer

from compact.clip import ClipSettings, images, model, train_clip, training, words
from compact.clip.images import coverage, draw_batch, example
from compact.clip.model import CONFIG, VOCABULARY, build, encode_patches, region_loss, to_inputs
from compact.clip.words import REGIONS, caption, write_vocabulary
from compact.pool import PoolSlice
from xaiclip.localizer.backbone import BackboneSettings, load_backbone
from xaiclip.preprocess import PreprocessSettings, preprocess


def piece(volume: int = 0, modality: str = "CT") -> PoolSlice:
    """A body with liver, spleen and kidneys as ellipses."""
    rng = np.random.default_rng(volume)
    y, x = np.mgrid[:120, :160]

    def ellipse(cx: float, cy: float, a: float, b: float) -> np.ndarray:
        return ((x - cx) / a) ** 2 + ((y - cy) / b) ** 2 < 1

    image = np.full((120, 160), -1000.0)
    label = np.zeros((120, 160), np.uint8)
    image[ellipse(80, 60, 75, 52)] = -90
    shapes = {1: (48, 50, 32, 26), 3: (125, 55, 13, 17), 2: (50, 90, 9, 9), 13: (110, 90, 9, 9)}
    for organ, shape in shapes.items():
        inside = ellipse(*(np.array(shape) + rng.normal(0, 1, 4)))
        image[inside], label[inside] = 40 + 25 * organ, organ
    image += rng.normal(0, 8, image.shape)
    if modality == "MR":
        image = np.clip(image + 1000, 0, None)
    return PoolSlice(
        image.astype(np.int16), label, modality, "portal-venous", f"{volume:03d}", (2.0, 2.0)
    )


def test_vocabulary_is_small_and_agrees_with_open_clip(tmp_path: Path) -> None:
    path = tmp_path / VOCABULARY
    size = write_vocabulary(path)
    assert size < 1500
    ours, full = SimpleTokenizer(bpe_path=str(path)), SimpleTokenizer()
    for text in [*REGIONS.values(), "axial ct slice with the upper left close view"]:
        pieces = [ours.decoder[i] for i in ours.encode(text)]
        assert pieces == [full.decoder[i] for i in full.encode(text)]
    assert len(ours.encode("x " * 8)) == 8
    assert ours.decode(ours.encode("a zebra, crème")) == "a zebra , crème "
    again = tmp_path / "again.gz"
    write_vocabulary(again)
    assert again.read_bytes() == path.read_bytes()


def test_captions_say_what_is_there() -> None:
    part = piece()
    visible = np.ones(len(REGIONS))
    rng = np.random.default_rng(0)
    texts = [caption(part.label, visible, rng, modality="CT", detail="late") for _ in range(200)]
    assert len(set(texts)) > 150
    joined = " | ".join(texts)
    for text in ("liver", "left kidney", "late ct", "spleen right", "no ", "large liver"):
        assert text in joined
    assert "mr" not in joined.replace("mri", "mr")
    for text in texts:
        for name in ("pancreas", "stomach", "aorta"):
            assert name not in text.split(" no ")[0].split(" without ")[0]
    empty = caption(np.zeros((9, 9), np.uint8), visible, rng, modality="MR", crop=(0.1, 0.9, 0.2))
    assert "lower left" in empty
    assert not any(name in empty for name in list(REGIONS.values())[1:])


@pytest.mark.parametrize(
    ("x", "y", "place"),
    [
        (0.1, 0.2, "upper left"),
        (0.9, 0.2, "upper right"),
        (0.1, 0.9, "lower left"),
        (0.5, 0.9, "lower"),
        (0.9, 0.5, "right"),
        (0.5, 0.5, "centre"),
        (1.0, 1.0, "lower right"),
    ],
)
def test_places_are_those_of_the_image_as_displayed(x: float, y: float, place: str) -> None:
    assert words._place(x, y) == place


def test_captions_tell_where_an_organ_and_a_crop_are() -> None:
    """Wide and low slices too: fractions of each side's own length."""
    label = np.zeros((60, 200), np.uint8)
    label[48:58, 5:40] = 3  # lower left
    rng = np.random.default_rng(0)
    visible = np.ones(len(REGIONS))
    texts = {caption(label, visible, rng, modality="CT") for _ in range(200)}
    places = [text for text in texts if "spleen lower left" in text]
    assert places
    for wrong in ("upper", "right", "left", "centre"):
        for place in (wrong, f"at the {wrong}", f"in the {wrong}"):
            assert not [text for text in texts if f"spleen {place}" in text]
    hidden = np.zeros(len(REGIONS))  # a sliver of an organ that lies elsewhere is not named
    label[:] = 0
    label[:2, :20] = 1
    assert not any("liver" in caption(label, hidden, rng, modality="CT") for _ in range(20))
    assert any("liver" in caption(label, visible, rng, modality="CT") for _ in range(20))


def test_a_crop_keeps_image_and_label_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """And says where it lies: centre x, centre y, width, in fractions of the slice."""
    monkeypatch.setattr(images, "_degrade", lambda image, rng: image)
    given = []
    monkeypatch.setattr(
        images, "caption", lambda label, visible, *a, crop, **k: given.append((visible, crop))
    )
    label = np.zeros((90, 200), np.uint8)
    label[40:60, 120:150] = 5
    label[10:30, 20:60] = 9
    grey = np.where(label == 5, 100, np.where(label == 9, 100, -160)).astype(np.int16)
    part = PoolSlice(grey, label, "CT", "", "v", (1.0, 1.0))
    seen = 0
    for seed in range(40):
        drawn = example(part, np.random.default_rng(seed), PreprocessSettings(clip=0, low=0))
        assert set(np.unique(drawn.label)) <= {0, 5, 9}  # never interpolated
        visible, (x, y, width) = given[-1]
        pixel = width * 200 / 224  # of the slice: the crop is wider than high, and centred
        for organ, row, column in ((5, 50, 135), (9, 20, 40)):
            mask = drawn.label == organ
            assert mask.any() == (visible[organ] > 0)
            if visible[organ] == 1:
                seen += 1
                at = np.argwhere(mask).mean(0) + 0.5 - 112
                assert at[0] * pixel + y * 90 == pytest.approx(row, abs=1.5)
                assert at[1] * pixel + x * 200 == pytest.approx(column, abs=1.5)
        # what is bright is what the label says
        inside = (drawn.label > 0).astype(np.uint8)
        near, wide = (cv2.dilate(inside, np.ones((n, n))) > 0 for n in (5, 9))
        core = cv2.erode(inside, np.ones((5, 5))) > 0
        if core.any():
            dark = np.percentile(drawn.image[wide & ~near], 99)
            assert drawn.image[core].min() > dark + 30
    assert seen > 20


def test_without_augmentation_it_is_the_localizers_own_input() -> None:
    part = piece(2)
    drawn = example(part, np.random.default_rng(0), PreprocessSettings(), augment=False)
    grey = np.clip((part.image.astype(float) + 160) / 400, 0, 1) * 255  # level 40, width 400
    wanted, box = preprocess(grey.astype(np.uint8))
    assert np.abs(drawn.image.astype(int) - wanted).max() <= 4
    np.testing.assert_array_equal(drawn.label, box.apply(part.label, nearest=True))


def test_held_out_volumes_are_on_one_side() -> None:
    pool = [piece(i // 3) for i in range(30)]
    learnt, held = training._split(pool, 0.2)
    assert {p.volume for p in held} == {"008", "009"}
    assert {p.volume for p in learnt} == {f"{i:03d}" for i in range(8)}
    assert len(learnt) + len(held) == 30


def test_inputs_are_normalised_as_the_config_says() -> None:
    x = to_inputs(np.full((1, 3, 3), 204, np.uint8))
    assert x.shape == (1, 3, 3, 3)
    torch.testing.assert_close(x, torch.full_like(x, (0.8 - 0.25) / 0.3))


@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_examples_look_like_the_localizers_input(modality: str) -> None:
    settings = PreprocessSettings()
    for seed in range(10):
        found = example(piece(1, modality), np.random.default_rng(seed), settings)
        assert found.image.shape == found.label.shape == (224, 224)
        assert found.image.dtype == found.label.dtype == np.uint8
        assert set(np.unique(found.label)) <= set(REGIONS)
    batch = draw_batch([piece(i) for i in range(3)], 16, np.random.default_rng(0), settings)
    assert len({e.caption for e in batch}) == len(batch) == 16


def test_coverage_counts_pixels() -> None:
    labels = np.zeros((2, 8, 8), np.uint8)
    labels[0, :4, 4:6] = 3  # above, on the right
    labels[1, 4:, :3] = 13  # below, on the left
    found = coverage(labels, 2)
    assert found.shape == (2, 4, len(REGIONS))
    assert found[0, :, 3].tolist() == [0, 0.5, 0, 0]
    assert found[1, :, 13].tolist() == [0, 0, 0.75, 0]
    assert found[0, :, 0].tolist() == [1, 0.5, 1, 1]
    assert torch.equal(found.sum(2), torch.ones(2, 4))


def test_patches_average_to_the_image_and_the_config_loads() -> None:
    torch.manual_seed(0)
    model = build(1000).eval()
    images = to_inputs(np.random.default_rng(0).integers(0, 256, (2, 224, 224), dtype=np.uint8))
    with torch.no_grad():
        tokens = encode_patches(model, images)
        assert torch.allclose(tokens.mean(1), model.encode_image(images), atol=1e-5)
        all_kept = torch.arange(256).expand(2, -1)
        assert torch.allclose(encode_patches(model, images, all_kept), tokens, atol=1e-6)
    weights = 2 * sum(v.numel() for v in model.state_dict().values())
    assert weights < 6.1e6


def test_region_loss_falls_with_the_right_names() -> None:
    names = torch.eye(len(REGIONS))
    share = torch.zeros(1, 4, len(REGIONS))
    share[0, 0, 1] = share[0, 1, 13] = share[0, 2:, 0] = 1
    right = torch.zeros(1, 4, len(REGIONS))
    right[0, 0, 1] = right[0, 1, 13] = right[0, 2:, 0] = 1
    scale = torch.tensor(20.0)
    good = region_loss(right, share, names, scale)
    bad = region_loss(right.flip(1), share, names, scale)
    assert good < 1e-3 < 5 < bad


def test_region_loss_weighs_a_region_with_the_root_of_its_area() -> None:
    names, tokens = torch.eye(len(REGIONS)), torch.zeros(1, 5, len(REGIONS))
    tokens[0, :, 0] = 1  # all patches are taken for background
    share = torch.zeros(1, 5, len(REGIONS))
    share[0, :4, 0] = share[0, 4, 11] = 1
    chances = (9 * tokens[0, 0]).log_softmax(0)
    right, wrong = -chances[0], -chances[11]
    loss = region_loss(tokens, share, names, torch.tensor(9.0))
    torch.testing.assert_close(loss, (2 * right + wrong) / 3)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> ClipSettings:
    """A smaller model and a pool in memory."""
    config = {
        "embed_dim": 32,
        "vision_cfg": CONFIG["model_cfg"]["vision_cfg"]
        | {"width": 32, "head_width": 16, "layers": 2, "patch_size": 28},
        "text_cfg": CONFIG["model_cfg"]["text_cfg"] | {"width": 32, "heads": 2, "layers": 1},
    }
    for module in (model, training):
        monkeypatch.setattr(module, "CONFIG", dict(CONFIG) | {"model_cfg": config})
    pool = [piece(i, ("CT", "MR")[i % 2]) for i in range(8)]
    monkeypatch.setattr(training, "load_pool", lambda folder: pool)
    return ClipSettings(
        minutes=120, seed=1, steps=30, batch=12, warmup=3, check_every=10, learning_rate=3e-3
    )


@pytest.mark.slow
def test_training_learns_and_its_files_load(tmp_path: Path, tiny: ClipSettings) -> None:
    weights = train_clip(tmp_path / "pool", tmp_path / "clip", tiny)
    with open(tmp_path / "clip" / "training_clip.csv") as stream:
        rows = list(csv.DictReader(stream))
    assert [int(row["step"]) for row in rows] == [10, 20, 30]
    assert float(rows[-1]["region_loss"]) < float(rows[0]["region_loss"])
    assert weights.stat().st_size < 400_000
    assert sorted(p.name for p in weights.parent.iterdir()) == [
        VOCABULARY, "clip.json", "clip.safetensors", "training_clip.csv",
    ]  # fmt: skip
    backbone = load_backbone(BackboneSettings(str(weights.parent)))
    assert backbone.grid == 8
    assert backbone.mean.flatten()[0] == CONFIG["preprocess_cfg"]["mean"][0]


@pytest.mark.slow
def test_training_goes_on_where_it_was(tmp_path: Path, tiny: ClipSettings, monkeypatch) -> None:
    """Killed after step 20 of 30 and called again, it ends with the same weights."""
    whole = train_clip(tmp_path / "pool", tmp_path / "whole", tiny)
    steps = 0
    original = training.draw_batch

    def draw(*args):
        nonlocal steps
        steps += 1
        if steps == 24:
            raise KeyboardInterrupt
        return original(*args)

    monkeypatch.setattr(training, "draw_batch", draw)
    with pytest.raises(KeyboardInterrupt):
        train_clip(tmp_path / "pool", tmp_path / "parts", tiny)
    assert (tmp_path / "parts" / "clip.checkpoint.pt").exists()
    parts = train_clip(tmp_path / "pool", tmp_path / "parts", tiny)
    assert parts.read_bytes() == whole.read_bytes()


@pytest.mark.slow
def test_time_ends_the_training(tmp_path: Path, tiny: ClipSettings) -> None:
    short = replace(tiny, steps=10**6, minutes=0.02)
    weights = train_clip(tmp_path / "pool", tmp_path / "clip", short)
    assert weights.exists()
