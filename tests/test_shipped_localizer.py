"""The localizer that is shipped: what it learns from, its training, its file, what it finds."""

from __future__ import annotations

import csv
import importlib
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from compact import phantom, shipping
from compact.localizer import LocalizerTraining, checks, images, train_localizer, training
from compact.phantom.tissues import _PLAIN, intensities
from compact.pool import PoolSlice, add_volume, build_pool, load_pool
from test_backbone import TOKENIZER, small_clip
from xaiclip.data.slices import window_ct
from xaiclip.errors import ConfigError
from xaiclip.localizer import model
from xaiclip.localizer.backbone import Backbone
from xaiclip.localizer.locating import Locator
from xaiclip.localizer.model import Localizer, LocalizerSettings, load_localizer
from xaiclip.localizer.training import TrainingSettings, train
from xaiclip.organs import FLARE22, SIX_CLASSES
from xaiclip.preprocess import preprocess
from xaiclip.resources import shipped

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "resources" / "compact"
FEW = phantom.PhantomSettings(spacing=(2.4, 2.6), thickness=(14.0, 16.0), slices=(8, 8))
TABLE = images.class_of(SIX_CLASSES)
IDS = {organ: number for number, organ in FLARE22.items()}
CLASSES = ("background", "liver", "left kidney")
FINE = LocalizerSettings(context=2, width=32, image=True)


def pieces_of(seed: int, modality: str, folder: Path) -> list[PoolSlice]:
    drawn = phantom.generate(seed, modality, FEW)
    add_volume(folder, "x", drawn.image, drawn.label, drawn.affine, modality, "phase")
    return [piece for piece in load_pool(folder) if np.isin(piece.label, [1, 2, 3, 4, 13]).any()]


@pytest.fixture(scope="module")
def ct(tmp_path_factory: pytest.TempPathFactory) -> list[PoolSlice]:
    return pieces_of(9_100_000, "CT", tmp_path_factory.mktemp("ct"))


@pytest.fixture(scope="module")
def mr(tmp_path_factory: pytest.TempPathFactory) -> list[PoolSlice]:
    return pieces_of(9_100_001, "MR", tmp_path_factory.mktemp("mr"))


# What it learns from.


def test_wide_phantoms_are_a_share_and_keep_more_without_organs(tmp_path: Path) -> None:
    small = replace(FEW, slices=(6, 6))
    wide = replace(phantom.WIDE, spacing=(5, 6), thickness=(20.0, 24.0), slices=(22, 22))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(phantom, "WIDE", wide)
        build_pool(tmp_path, 4, mr_fraction=0.5, seed=3, settings=small, wide=0.5)
    pieces = load_pool(tmp_path)
    sizes: dict[str, list[bool]] = {}
    for piece in pieces:
        sizes.setdefault(piece.volume, []).append(bool(piece.label.any()))
    plain, odd = (list(sizes.values())[k::2] for k in (0, 1))
    assert all(len(own) <= 6 and own.count(False) <= 2 for own in plain)
    assert all(own.count(False) > 2 for own in odd)


def test_odd_tissues_depart_from_their_ranges_and_air_does_not() -> None:
    odd = phantom.PhantomSettings(odd=40.0)
    for modality in ("CT", "MR"):
        moved = 0.0
        for seed in range(4):
            usual, unit, _ = intensities(
                np.random.default_rng(seed), modality, phantom.PhantomSettings()
            )
            values, _, _ = intensities(np.random.default_rng(seed), modality, odd)
            if modality == "CT":
                assert all(values[name] == usual[name] for name in _PLAIN)
            assert min(values.values()) >= (-1000 if modality == "CT" else 0)
            moved += abs(values["liver"] - usual["liver"]) / unit
        assert moved > 0.5


def test_organs_lie_further_from_their_places_where_they_may() -> None:
    def spread(place: float) -> float:
        rng, settings = np.random.default_rng(0), phantom.PhantomSettings(place=place)
        made = importlib.import_module("compact.phantom.patient").Patient
        canvas = type("Canvas", (), {"drift": np.zeros(1)})()
        at = [made(canvas, rng, settings, {}, "CT").kidney_at[1] for _ in range(200)]
        return float(np.std(at, axis=0)[2])

    assert spread(2.0) == pytest.approx(2 * spread(1.0))
    assert spread(1.0) == pytest.approx(9, rel=0.2)


def test_a_plain_slice_is_what_a_study_brings(ct: list[PoolSlice]) -> None:
    piece = ct[len(ct) // 2]
    image, label = images.plain(piece, TABLE)
    wanted, letterbox = preprocess(window_ct(piece.image.astype(float), 40, 400))
    assert np.abs(image.astype(int) - wanted.astype(int)).mean() < 0.6  # rounding
    ids = letterbox.apply(piece.label, nearest=True)
    for organ in ("liver", "right kidney", "left kidney", "spleen", "pancreas"):
        assert np.array_equal(label == SIX_CLASSES.index(organ), ids == IDS[organ])
    assert not label[ids == IDS["stomach"]].any()


@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_variations_are_many_and_repeatable(
    modality: str, ct: list[PoolSlice], mr: list[PoolSlice]
) -> None:
    pieces = ct if modality == "CT" else mr
    piece = pieces[len(pieces) // 2]
    shown = [images.example(piece, TABLE, np.random.default_rng(seed)) for seed in range(24)]
    again = images.example(piece, TABLE, np.random.default_rng(3))
    assert all(np.array_equal(a, b) for a, b in zip(again, shown[3], strict=True))
    for image, label in shown:
        assert (image.shape, image.dtype, label.dtype) == ((224, 224), np.uint8, np.uint8)
        assert label.max() < len(SIX_CLASSES)
        assert image.max() > 150
    areas = [int((label > 0).sum()) for _, label in shown]
    assert max(areas) > 1.5 * min(areas)
    assert len({image.tobytes() for image, _ in shown}) == 24
    # never a flip: the liver stays at the left of the picture
    liver = [np.nonzero(label == 1)[1].mean() for _, label in shown if (label == 1).any()]
    rest = [np.nonzero(label == 3)[1].mean() for _, label in shown if (label == 3).any()]
    assert liver
    assert max(liver) < 150
    assert not rest or min(rest) > max(0, min(liver))


def test_some_slices_have_lost_what_lies_below_zero(ct: list[PoolSlice]) -> None:
    image = ct[0].image.astype(np.float32)
    lows = [float(images._lossy(image, np.random.default_rng(s)).min()) for s in range(60)]
    assert 3 <= lows.count(0.0) <= 25
    assert lows.count(float(image.min())) >= 25
    assert any(-250 <= low < 0 for low in lows)


def test_the_kidneys_change_alike(ct: list[PoolSlice]) -> None:
    """In most slices both get brighter or darker together, as with contrast medium."""
    piece = next(p for p in ct if {2, 13} <= set(np.unique(p.label)))
    right, left = [], []
    for seed in range(40):
        change = images._recoloured(piece, np.random.default_rng(seed)) - piece.image
        right.append(change[piece.label == 2].mean())
        left.append(change[piece.label == 13].mean())
    assert np.std(right) > 3
    assert np.corrcoef(right, left)[0, 1] > 0.6


# The image branch.


def test_only_with_the_setting_are_pixels_seen() -> None:
    """Where pixels change, the maps change, though the backbone says the same."""
    frozen = Backbone(small_clip(), TOKENIZER)
    grey = torch.full((1, 224, 224), 90, dtype=torch.uint8)
    other = grey.clone()
    other[:, 100:120, 40:60] = 200
    tokens = frozen(grey)
    for image in (True, False):
        localizer = Localizer(frozen, CLASSES, replace(FINE, image=image)).eval()
        with torch.no_grad():
            change = (localizer.decode(tokens, other) - localizer.decode(tokens, grey)).abs()
        assert change.shape[2] == (224 if image else 8 * frozen.grid)
        if not image:
            assert change.max() == 0
            continue
        near, far = change[..., 100:120, 40:60].mean(), change[..., 190:, 190:].mean()
        assert near > 3 * far


def test_every_part_of_the_image_branch_learns() -> None:
    frozen = Backbone(small_clip(), TOKENIZER)
    localizer = Localizer(frozen, CLASSES, FINE)
    images = torch.randint(0, 255, (2, 224, 224), dtype=torch.uint8)
    localizer(images).square().mean().backward()
    still = [k for k, p in localizer.trainable().items() if p.grad is None or not p.grad.any()]
    assert still == []


def test_the_workflows_training_feeds_the_pixels() -> None:
    """It finds a bright square of few pixels, which the random backbone hardly tells."""
    rng = np.random.default_rng(0)
    grey, label = np.full((8, 224, 224), 60, np.uint8), np.zeros((8, 224, 224), np.uint8)
    for i, (y, x) in enumerate(rng.integers(20, 180, (8, 2))):
        grey[i, y : y + 22, x : x + 22], label[i, y : y + 22, x : x + 22] = 220, 1
    options = TrainingSettings(epochs=10, batch_size=4, views=1, validation_fraction=0.25)
    cases = [f"case{i}" for i in range(8)]
    frozen = Backbone(small_clip(), TOKENIZER)
    _, rows = train(frozen, grey, label, cases, CLASSES[:2], FINE, options)
    assert max(row["val_dice"] for row in rows) > 0.8


def test_a_file_from_before_the_setting_still_loads(tmp_path: Path) -> None:
    frozen = Backbone(small_clip(), TOKENIZER)
    path = tmp_path / "localizer.safetensors"
    localizer = Localizer(frozen, CLASSES, LocalizerSettings(context=2, width=32))
    model.save_localizer(path, localizer)
    with safe_open(path, framework="pt") as stored:
        about = json.loads(stored.metadata()["localizer"])
    del about["settings"]["image"]
    save_file(load_file(path), path, metadata={"localizer": json.dumps(about)})
    again = load_localizer(path, frozen)
    assert not again.settings.image
    pixels = np.random.default_rng(0).integers(0, 255, (1, 224, 224), dtype=np.uint8)
    assert np.array_equal(model.predict(again, pixels), model.predict(localizer, pixels))


@pytest.mark.parametrize("half", [True, False])
def test_a_localizer_with_the_setting_is_saved_and_loaded(tmp_path: Path, half: bool) -> None:
    frozen = Backbone(small_clip(), TOKENIZER)
    localizer = Localizer(frozen, CLASSES, FINE)
    path = tmp_path / "localizer.safetensors"
    model.save_localizer(path, localizer, half=half)
    assert {t.dtype for t in load_file(path).values()} == {torch.half if half else torch.float}
    again = load_localizer(path, frozen)
    assert again.settings == FINE
    pixels = np.random.default_rng(0).integers(0, 255, (1, 224, 224), dtype=np.uint8)
    tolerance = 5e-3 if half else 1e-7
    assert np.allclose(
        model.predict(again, pixels), model.predict(localizer, pixels), atol=tolerance
    )


# Its training.


@pytest.mark.slow
def test_it_trains_stops_goes_on_and_tells(tmp_path: Path) -> None:
    build_pool(tmp_path / "pool", 8, mr_fraction=0.5, seed=5, settings=FEW, wide=0.0)
    options = LocalizerTraining(steps=2, batch=2, check_every=1, held_out=2, precision="fp32")
    made = [tmp_path / "pool", FOLDER]
    path = train_localizer(*made, tmp_path / "a", options)
    assert path == tmp_path / "a" / "localizer.safetensors"
    longer = replace(options, steps=3)
    train_localizer(*made, tmp_path / "a", longer)
    with open(tmp_path / "a" / training.LOG, newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["step"] for row in rows] == ["1", "2", "3"]
    assert all(0 <= float(row["dice_CT"]) <= 1 and 0 <= float(row["false"]) <= 1 for row in rows)
    loaded = load_localizer(path)
    assert loaded.backbone.name == "compact"
    assert loaded.classes == SIX_CLASSES
    assert path.stat().st_size < 6e6
    shipping.ship(tmp_path / "a", tmp_path)
    shipping.draw_curves(tmp_path)
    assert (tmp_path / shipping.CURVES).read_bytes()[:4] == b"\x89PNG"
    assert not (tmp_path / "localizer.checkpoint.pt").exists()


def test_volumes_that_check_are_not_learned_from(tmp_path: Path) -> None:
    build_pool(tmp_path, 4, mr_fraction=0.5, seed=5, settings=FEW)
    learn, held = training._split(load_pool(tmp_path), 1)
    assert {p.volume for p in held} == {"00000008_mr"}
    assert {p.volume for p in learn} == {"00000005_ct", "00000006_mr", "00000007_ct"}


def test_dice_by_hand() -> None:
    label = np.array([[1, 1, 0, 2]])
    found = np.array([[1, 0, 3, 2]])
    assert checks.organ_dice(found, label, 4)[:2] == pytest.approx([2 / 3, 1])
    assert np.isnan(checks.organ_dice(found, label, 4)[2])


def test_a_check_tells_modalities_apart_and_counts_false_organs() -> None:
    class Fixed(torch.nn.Module):
        classes = CLASSES

        def forward(self, grey: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.one_hot(grey.long(), 3).permute(0, 3, 1, 2).float()

    label = np.zeros((3, 20, 20), np.uint8)
    label[:, :10] = 1
    grey = label.copy()
    grey[1, 15:, :8] = 2  # 40 pixels of an organ that is not there
    row = checks.check(Fixed(), grey, label, ["CT", "MR", "MR"])  # type: ignore[arg-type]
    assert row["CT_liver"] == row["MR_liver"] == 1
    assert row["false"] == pytest.approx(1 / 3, abs=1e-4)


# What is shipped.


@pytest.fixture(scope="module")
def locator() -> Locator:
    return Locator("compact", "cpu")


def test_the_shipped_file(locator: Locator) -> None:
    assert (FOLDER / "localizer.safetensors").stat().st_size <= 6e6
    assert locator.localizer.settings == training.MODEL
    assert locator.classes == SIX_CLASSES
    assert (FOLDER / shipping.CURVES).is_file()
    with open(FOLDER / shipping.LOG, newline="") as stream:
        last = list(csv.DictReader(stream))[-1]
    assert float(last["dice_CT"]) > 0.7


def test_a_shipped_file_that_was_changed_is_refused(tmp_path: Path) -> None:
    for name in ("localizer.safetensors", "SHA256SUMS"):
        shutil.copy(FOLDER / name, tmp_path)
    path = tmp_path / "localizer.safetensors"
    load_localizer(path)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(ConfigError, match=r"(?i)checksum|sha-?256"):
        load_localizer(path)


def dice_of(localizer: Localizer, pieces: list[PoolSlice]) -> float:
    shown = [images.plain(piece, TABLE) for piece in pieces]
    found = model.predict(localizer, np.stack([image for image, _ in shown])).argmax(1)
    each = [checks.organ_dice(a, label, 6) for a, (_, label) in zip(found, shown, strict=True)]
    return float(np.nanmean(np.nanmean(each, axis=0)))


@pytest.mark.parametrize(("modality", "floor"), [("CT", 0.75), ("MR", 0.55)])
def test_it_finds_organs_in_phantoms_that_it_never_saw(
    modality: str, floor: float, locator: Locator, ct: list[PoolSlice], mr: list[PoolSlice]
) -> None:
    pieces = (ct if modality == "CT" else mr)[1:-1]
    assert dice_of(locator.localizer, pieces) > floor


def test_its_text_matters(locator: Locator, ct: list[PoolSlice]) -> None:
    """With all that comes from the text at zero, the same weights find less."""
    localizer, pieces = locator.localizer, ct[2:5]
    whole, own = dice_of(localizer, pieces), localizer.settings
    try:
        localizer.settings = replace(own, text=False)
        assert dice_of(localizer, pieces) < whole - 0.05
    finally:
        localizer.settings = own


def test_the_slice_that_is_shipped_is_drawn_again(tmp_path: Path) -> None:
    shipping.ship_example(tmp_path)
    for name in (shipping.EXAMPLE, shipping.EXAMPLE_LABEL):
        drawn, kept = (nib.nifti1.load(folder / name) for folder in (tmp_path, FOLDER))
        assert np.array_equal(np.asarray(drawn.dataobj), np.asarray(kept.dataobj))
        assert np.allclose(drawn.affine, kept.affine)


# benchmarks/localizer.py


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    yield importlib.import_module("localizer")
    sys.modules.pop("localizer")


def test_the_benchmark_by_hand(benchmark) -> None:  # type: ignore[no-untyped-def]
    from xaiclip.masks.roi import Roi, box_of

    mask = np.zeros((30, 40), bool)
    mask[5:15, 5:15], mask[25, 35] = True, True
    kept = benchmark.large_parts(Roi(mask, box_of(mask, 2)), 2, 0.02)
    assert kept.box.tolist() == [3, 3, 17, 17]
    assert kept.mask.sum() == 100
    assert benchmark.large_parts(kept, 2, 1.0) is kept
    assert benchmark.large_parts(Roi(mask, box_of(mask, 2)), 2, 0.01).mask.sum() == 101
    rows = [("map", "liver", 0.8), ("map", "liver", 0.6), ("map", "spleen", 0.1)]
    rows += [("false", "spleen", 1.0), ("false", "liver", 0.0), ("seconds", "", 2.0)]
    found = benchmark.summary(rows)
    assert found["map: mean"] == pytest.approx(0.4)
    assert (found["map: liver"], found["false"]) == (pytest.approx(0.7), 0.5)


def test_the_benchmark_looks_at_a_slice(benchmark, locator: Locator) -> None:  # type: ignore[no-untyped-def]
    from xaiclip.data.sheet import Case
    from xaiclip.models.segmenters.loading import load_segmenter

    paths = [shipped("compact", name) for name in (shipping.EXAMPLE, shipping.EXAMPLE_LABEL)]
    items = benchmark.labelled(Case("x", *paths, "CT", "test"))
    assert len(items) == 1
    rows = list(benchmark.look(locator, load_segmenter({"model": "compact"}, "cpu"), items[0], 1.0))
    value = {(what, organ): number for what, organ, number in rows}
    assert value["map", "liver"] > 0.8
    assert value["box", "liver"] > 0.8
    assert {what for what, _, _ in rows} <= {"map", "box", "island", "false", "seconds"}
    assert benchmark.below_zero(items[0]).image.min() == 102
    for change in (benchmark.narrow, benchmark.cropped, benchmark.shifted):
        other = change(items[0])
        assert other.image.shape == other.label.shape
        assert (other.label == 1).sum() == (items[0].label == 1).sum()
