import time

import numpy as np
import pytest
import torch
from captum.attr import FeatureAblation

from explain_fakes import BOXES, ORGANS, PROMPTS, FakeSegmenter, LargestTensor, picture
from xaiclip.clock import PHASES
from xaiclip.explain.engine import BatchSize, fill_image, score
from xaiclip.explain.plan import SuperpixelPlan, WindowPlan
from xaiclip.explain.values import VALUES, soft_dice
from xaiclip.models.segmenters.base import Prompts, Segmenter
from xaiclip.targets import SegmenterScorer

MODEL = FakeSegmenter()
INPUTS = MODEL.prepare(picture())


def scorer(model=MODEL, values=("soft_dice",), inputs=INPUTS, prompts=PROMPTS):
    return SegmenterScorer(model, prompts, inputs, values)


def windows(count: int) -> WindowPlan:
    corner = np.random.default_rng(count).integers(0, 448, (count, 2))
    edges = np.concatenate([corner, corner + 64], 1).astype(np.int32)
    return WindowPlan(np.ones((count, 2), bool), count, edges)


def test_the_fake_is_a_segmenter():
    assert isinstance(MODEL, Segmenter)


def test_the_baseline_holds_both_organs():
    mask = scorer().mask
    assert (mask.mean((1, 2)) > 0.02).all()
    assert (mask.mean((1, 2)) < 0.5).all()
    canonical = scorer().masks
    assert canonical.shape == (2, 512, 512)
    assert np.allclose(canonical.mean((1, 2)), mask.mean((1, 2)), atol=0.03)


@pytest.mark.parametrize("batch_size", [2, 7, 16, 64])
def test_batches_change_nothing(batch_size):
    plan, values = windows(23), tuple(VALUES)
    one = score(plan, scorer(values=values), batch_size=1)
    many = score(plan, scorer(values=values), batch_size=batch_size)
    assert many.scores.shape == (23, 2, len(values))
    assert many.scores.dtype == np.float32
    np.testing.assert_allclose(many.scores, one.scores, atol=1e-5)


def test_all_organs_at_once_are_each_organ_alone():
    plan = windows(9)
    together = score(plan, scorer())
    for o in range(2):
        prompts = Prompts(ORGANS[o : o + 1], BOXES[o : o + 1])
        alone = score(plan, scorer(prompts=prompts))
        np.testing.assert_allclose(together.scores[:, o], alone.scores[:, 0], atol=1e-6)


def test_nothing_hidden_gives_the_baseline():
    plan = WindowPlan(np.ones((3, 2), bool), 3, np.zeros((3, 4), np.int32))
    table = score(plan, scorer(values=tuple(VALUES)))
    np.testing.assert_allclose(table.scores, table.baseline[None].repeat(3, 0), atol=1e-5)
    assert (table.of(["hard_dice", "hard_iou", "false_positive_area"]) == [1, 1, 0]).all()


def test_equals_captum_feature_ablation():
    """Superpixels taken away one at a time."""
    tiles = np.arange(512) // 128
    segments = (tiles[:, None] * 4 + tiles).astype(np.int32)
    plan = SuperpixelPlan(np.ones((16, 2), bool), 16, segments, ~np.eye(16, dtype=bool))
    table = score(plan, scorer())
    drop = table.baseline[:, 0] - table.scores[..., 0]
    mask = scorer().mask
    at = ((np.arange(128) + 0.5) * 4).astype(int)
    for o in range(2):

        def forward(x, o=o):
            probability = MODEL.decode(MODEL.encode(x), PROMPTS).sigmoid()
            return soft_dice(probability, mask)[:, o]

        features = torch.from_numpy(segments[np.ix_(at, at)].astype(np.int64))
        reference = FeatureAblation(forward).attribute(
            INPUTS[None],
            baselines=fill_image("mean", INPUTS).expand(3, 128, 128)[None],
            feature_mask=features[None, None],
        )
        ours = torch.from_numpy(drop[:, o])[features]
        assert (reference[0, 0] - ours).abs().max() <= 1e-5


@pytest.mark.parametrize("count", [1, 10])
def test_forwards_are_counted(count):
    model = FakeSegmenter()
    asked = scorer(model)
    assert (asked.n_forwards, model.encoded) == (1, 1)  # the unperturbed image
    table = score(windows(count), asked, batch_size=4)
    assert table.n_forwards == count
    assert asked.n_forwards == model.encoded == 1 + count
    assert asked.n_backwards == 0


@pytest.mark.slow
def test_fills():
    mean = fill_image("mean", INPUTS)
    torch.testing.assert_close(mean[:, 0, 0], INPUTS.mean((1, 2)))
    assert fill_image("zero", INPUTS) == 0
    blurred = fill_image("blur", INPUTS)
    assert blurred.shape == INPUTS.shape
    assert blurred.std() < INPUTS.std()
    tables = [score(windows(4), scorer(), fill=f) for f in ("mean", "zero", "blur")]
    assert not np.allclose(tables[0].scores, tables[1].scores)
    assert not np.allclose(tables[0].scores, tables[2].scores)
    with pytest.raises(ValueError, match="purple"):
        fill_image("purple", INPUTS)


@pytest.mark.parametrize("shape", [(128, 128), (64, 128), (160, 96)])
def test_blur_is_as_wide_as_the_longer_side_says(shape):
    point = torch.zeros(1, *shape)
    row, column = shape[0] // 2, shape[1] // 2
    point[0, row, column] = 1
    blurred = fill_image("blur", point)[0].double()
    assert blurred.sum().item() == pytest.approx(1, abs=1e-3)
    for axis, at in ((1, row), (0, column)):
        away = torch.arange(len(blurred.sum(axis))) - at
        spread = float((blurred.sum(axis) * away**2).sum()) ** 0.5
        assert spread == pytest.approx(max(shape) / 32, rel=0.03)


def test_values_are_told_apart_by_their_names():
    names = ("soft_dice", "hard_dice", "false_positive_area")
    found = score(windows(5), scorer(values=names))
    other = score(windows(5), scorer(values=names[::-1]))
    for some in (["false_positive_area"], ["hard_dice", "soft_dice"], [*names]):
        np.testing.assert_allclose(found.of(some), other.of(some), atol=1e-6)
        np.testing.assert_allclose(found.baseline_of(some), other.baseline_of(some), atol=1e-6)
        assert found.of(some).shape == (5, 2, len(some))
    assert (found.baseline_of(["false_positive_area"]) == 0).all()
    assert (found.baseline_of(["hard_dice"]) == 1).all()
    assert (found.baseline_of(["soft_dice"]) < 1).all()


class Cramped(FakeSegmenter):
    """Has memory for a few images only."""

    def __init__(self, limit: int, message: str = "CUDA out of memory.") -> None:
        super().__init__()
        self.limit, self.message = limit, message

    def encode(self, inputs):
        if len(inputs) > self.limit:
            raise RuntimeError(self.message)
        return super().encode(inputs)


def test_batch_is_halved_when_memory_runs_out():
    model, seen = Cramped(3), []
    progress = lambda *p: seen.append(p)  # noqa: E731
    table = score(windows(10), scorer(model), batch_size=16, progress=progress)
    expected = score(windows(10), scorer()).scores
    np.testing.assert_allclose(table.scores, expected, atol=1e-5)
    assert table.n_forwards == 10
    assert seen == [(2, 10), (4, 10), (6, 10), (8, 10), (10, 10)]


def test_batch_size_is_found_by_trial_and_kept():
    batch, model = BatchSize(1, growing=True), Cramped(5)
    wanted = score(windows(21), scorer()).scores
    seen = []
    table = score(
        windows(21),
        scorer(model),
        batch_size=batch,
        progress=lambda done, _: seen.append(done),
    )
    assert seen == [1, 3, 7, 11, 15, 19, 21]  # 1, 2, 4; 8 did not fit; 4 from then on
    assert (batch.value, batch.growing) == (4, False)
    np.testing.assert_allclose(table.scores, wanted, atol=1e-5)
    model.encoded = 0
    score(windows(8), scorer(model), batch_size=batch)
    assert model.encoded == 9


@pytest.mark.parametrize(
    ("setting", "device", "side", "value"),
    [
        (7, "cuda", 256, 7),
        ("auto", "cpu", 256, 8),
        ("auto", "cpu", 1024, 1),
        ("auto", "cpu", 64, 64),
    ]
    + [("auto", "cuda", 1024, 1), ("auto", "mps", 256, 1)],
)
def test_where_the_batch_size_begins(setting, device, side, value):
    batch = BatchSize.of(setting, device, side)
    assert batch.value == value
    assert batch.growing == (setting == "auto" and device != "cpu")
    assert BatchSize.of(batch, "cpu", 1) is batch


def test_an_input_of_the_slices_aspect():
    """Windows fall where they fall in the square."""

    class Wide(FakeSegmenter):
        def prepare(self, image):
            return super().prepare(image)[:, ::2]

        def encode(self, inputs):
            return super().encode(inputs.repeat_interleave(2, dim=-2))

    doubled = MODEL.prepare(picture())[:, ::2].repeat_interleave(2, dim=1)
    plan = WindowPlan(
        np.ones((2, 2), bool), 2, np.array([[0, 0, 256, 128], [128, 256, 512, 512]], np.int32)
    )
    square = score(plan, scorer(inputs=doubled), fill="zero")
    wide = score(plan, scorer(Wide(), inputs=Wide().prepare(picture())), fill="zero")
    np.testing.assert_allclose(wide.scores, square.scores, atol=1e-5)


def test_errors_that_halving_does_not_cure():
    for message, error, words in (
        ("CUDA out of memory.", MemoryError, "One perturbed image"),
        ("wrong weights", RuntimeError, "wrong weights"),
    ):
        model = Cramped(1, message)
        asked = scorer(model)
        model.limit = 0
        with pytest.raises(error, match=words):
            score(windows(4), asked)


def test_phases_explain_the_total(monkeypatch):
    """On a clock that goes on in the model and the plan alone."""
    now = [0.0]

    class Slow(FakeSegmenter):
        def encode(self, inputs):
            now[0] += len(inputs)
            return super().encode(inputs)

        def decode(self, embeddings, prompts):
            now[0] += len(embeddings) / 4
            return super().decode(embeddings, prompts)

    class Drawn(WindowPlan):
        def keep(self, start, stop, size, device="cpu"):
            now[0] += (stop - start) / 8
            return super().keep(start, stop, size, device)

    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    seconds = score(Drawn(**vars(windows(24))), scorer(Slow()), batch_size=5).seconds
    assert seconds == {"perturb": 3.0, "encode": 24.0, "decode": 6.0, "total": 33.0}
    assert set(seconds) == {*PHASES[:3], "total"}


def test_memory_does_not_grow_with_the_number_of_forwards():
    largest, asked = [], scorer()
    for count in (16, 160):
        with LargestTensor() as watch:
            score(windows(count), asked, batch_size=8)
        largest.append(watch.numel)
    assert largest[0] == largest[1]
