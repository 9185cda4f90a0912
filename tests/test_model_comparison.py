"""The comparison of models: what is averaged over what, and what is timed."""

import importlib
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch

from explain_fakes import FakeSegmenter
from xaiclip.data.geometry import Geometry, oriented_affine
from xaiclip.data.record import Slice
from xaiclip.data.sheet import Case
from xaiclip.errors import CaseError
from xaiclip.masks.roi import Roi, box_of

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def models(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield importlib.import_module("models")
    for name in ("models", "benchmark", "page", "peers"):
        sys.modules.pop(name)


def item(index: int = 3) -> Slice:
    """Spleen (class 4), liver (1) and a speck of pancreas (5), not in alphabetical order."""
    label = np.zeros((61, 47), np.uint8)
    label[10:30, 5:20] = 4
    label[35:55, 22:40] = 1
    label[2:5, 40:44] = 5
    image = np.where(label > 0, 180, 60).astype(np.uint8)
    geometry = Geometry(oriented_affine("LPS", (1, 2, 3)), (47, 61, 9), measured=True)
    return Slice("one", index, "CT", image, label, geometry)


def rois(one: Slice) -> dict[str, Roi]:
    """A localizer that sees half of the spleen, and no liver."""
    mask = (one.label == 4) & (np.arange(47) < 12)
    nothing = np.zeros_like(mask)
    return {"spleen": Roi(mask, box_of(mask)), "liver": Roi(nothing, None)}


class Filling(FakeSegmenter):
    """Segments each box, and remembers what it was asked."""

    name = "filling"

    def __init__(self):
        super().__init__()
        self.calls = []

    def encode(self, inputs):
        self.calls.append(("encode", len(inputs)))
        return super().encode(inputs)

    def decode(self, embeddings, prompts):
        self.calls.append(("decode", len(prompts.organs)))
        logits = super().decode(embeddings, prompts)
        at = [(np.arange(n) + 0.5) / n for n in logits.shape[-2:]]
        for o, (x0, y0, x1, y1) in enumerate(prompts.boxes.numpy()):
            inside = (at[0] > y0)[:, None] & (at[0] < y1)[:, None]
            inside = inside & (at[1] > x0) & (at[1] < x1)
            logits[:, o] = 9.0
            logits[:, o][:, ~torch.from_numpy(inside)] = -9.0
        return logits


def test_evenly_spaced(models):
    assert models.evenly(range(10), 0) == models.evenly(range(10), 10) == list(range(10))
    assert models.evenly(range(10), 2) == [2, 7]
    assert models.evenly(range(9), 3) == [1, 4, 7]
    assert models.evenly(range(3), 5) == [0, 1, 2]


def test_an_organ_without_a_box_counts_as_missed(models):
    one = models.prompted(item(), rois)
    assert one.organs == ("liver", "spleen")  # of the pancreas there is too little
    rows = {(row["boxes"], row["organ"]): row for row in models.scored("f", Filling(), [one])}
    assert len(rows) == 4
    assert rows["localizer", "liver"]["dice"] == 0
    # the reference's box has a margin of 5 pixels: 20 × 15 of 30 × 25
    assert rows["reference", "spleen"]["dice"] == pytest.approx(2 * 300 / (300 + 30 * 25), abs=0.1)
    assert rows["localizer", "spleen"]["dice"] == pytest.approx(2 * 140 / (140 + 300), abs=0.1)
    alone = {row["organ"]: row["dice"] for row in models.located([one])}
    assert alone == {"liver": 0, "spleen": pytest.approx(2 * 140 / (140 + 300))}


def test_sections_are_averaged_by_organ_and_organs_alike(models):
    rows = [
        {"case": case, "model": "m", "boxes": "reference", "slice": k, "organ": organ, "dice": hit}
        for case, k, organ, hit in [
            ("b", 1, "spleen", 0.4),
            ("b", 1, "liver", 0.9),
            ("b", 2, "liver", 0.7),
            ("a", 5, "liver", 0.1),
        ]
    ]
    table = models.dice_table(pd.DataFrame(rows))
    assert list(table.columns) == ["case", "model", "boxes", "liver", "spleen", "mean"]
    assert list(table["case"]) == ["b", "a"]
    assert table.liver.tolist() == pytest.approx([0.8, 0.1])
    assert table["mean"].tolist() == pytest.approx([0.6, 0.1])
    speed = pd.DataFrame([dict.fromkeys(models.SPEED, 1)])
    text = models.page(pd.DataFrame(rows), speed, "a machine")
    assert "2 slices of b, 1 slices of a" in text
    assert "| `b` | m | reference | 0.80 | 0.40 | 0.60 |" in text
    assert "| `a` | m | reference | 0.10 |  | 0.10 |" in text


def test_models_are_timed_in_turn(models, monkeypatch):
    """On a clock that goes on in them alone; the first turn is slow, and does not count."""
    now, order = [0.0], []

    class Slow(Filling):
        def __init__(self, name, seconds):
            super().__init__()
            self.name, self.seconds, self.input_size = name, seconds, 256

        def encode(self, inputs):
            order.append(self.name)
            first = order.count(self.name) == 1
            now[0] += 100 if first else self.seconds * len(inputs)
            return super().encode(inputs)

        def decode(self, embeddings, prompts):
            now[0] += self.seconds / 4 * len(embeddings)
            return super().decode(embeddings, prompts)

    monkeypatch.setattr(models.time, "perf_counter", lambda: now[0])
    segmenters = {"a": Slow("a", 0.5), "b": Slow("b", 2.0)}
    rows = models.timed(segmenters, models.prompted(item(), rois), 1)
    assert order == ["a", "b"] * 2
    for row, seconds in zip(rows, (0.5, 2.0), strict=True):
        assert row["batch"] == 8
        assert row["encode_seconds"] == pytest.approx(seconds)
        assert row["decode_seconds"] == pytest.approx(seconds / 4)
        assert row["slice_seconds"] == pytest.approx(226 * 1.25 * seconds)
        assert row["parameters_m"] == pytest.approx(
            sum(p.numel() for p in segmenters["a"].net.parameters()) / 1e6
        )
    assert segmenters["a"].calls[:2] == [("encode", 8), ("decode", 3)]


def test_slices_that_show_enough(models, tmp_path):
    volume = np.zeros((20, 18, 7), np.int16)
    volume[4:14, 4:14, 2:6] = 60
    label = np.zeros(volume.shape, np.uint8)
    label[4:14, 4:14, 3:6] = 3  # FLARE22's spleen, 100 pixels
    label[4:6, 4:6, 2] = 1  # a speck of liver
    affine = np.diag([1.5, 2, 4, 1])
    for name, array in (("image", volume - 60), ("label", label)):
        nib.save(nib.Nifti1Image(array, affine), tmp_path / f"{name}.nii.gz")
    case = Case("c", tmp_path / "image.nii.gz", tmp_path / "label.nii.gz", "CT", "test")
    assert [one.index for one in models.labelled(case, 0)] == [3, 4, 5]
    assert [one.index for one in models.labelled(case, 1)] == [4]
    nothing = Case("c", tmp_path / "image.nii.gz", None, "CT", "test")
    with pytest.raises(CaseError, match="no label"):
        models.labelled(nothing, 1)
    nib.save(nib.Nifti1Image(label * 0 + 11, affine), tmp_path / "label.nii.gz")
    with pytest.raises(CaseError, match="50 pixels"):
        models.labelled(case, 1)


def test_the_page_has_a_place_for_the_numbers(models):
    page = (BENCHMARKS.parent / "docs" / "models.md").read_text(encoding="utf-8")
    assert "the numbers" in models.page_with("the numbers\n", page)
