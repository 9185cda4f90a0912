"""What is explained: scores of a segmenter, gradients on demand, and a model of another kind."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from explain_fakes import BOXES, ORGANS, PROMPTS, FakeSegmenter, picture, run_of
from stored_maps import score_batch
from xaiclip.clock import Clock
from xaiclip.explain.runner import Request, attribute_slice, score_slice
from xaiclip.explain.values import VALUES
from xaiclip.metrics import maps as metrics_of_maps
from xaiclip.metrics.explanation import rank_correlation
from xaiclip.metrics.maps.explained import Explained
from xaiclip.models.segmenters.fixed import FixedClassSegmenter
from xaiclip.models.segmenters.loading import load_segmenter
from xaiclip.targets import Scorer, SegmenterScorer, scorer_type

SMOOTH = [name for name in VALUES if not name.startswith(("hard", "false"))]


def scorer(model=None, values=tuple(VALUES)):
    model = model or FakeSegmenter()
    return SegmenterScorer(model, PROMPTS, model.prepare(picture()), values)


def images(count, like):
    noise = torch.rand(count, *like.shape, generator=torch.Generator().manual_seed(1))
    return 0.9 * like + 0.1 * noise


def test_scores_are_values_of_the_probabilities_against_the_unperturbed_mask():
    mine, model = scorer(), FakeSegmenter()
    some = images(3, mine.inputs)
    probability = model.decode(model.encode(some), PROMPTS).sigmoid()
    mask = (model.decode(model.encode(mine.inputs[None]), PROMPTS)[0].sigmoid() > 0.5).float()
    found = mine(some)
    assert found.shape == (3, 2, len(VALUES))
    for v, name in enumerate(mine.values):
        torch.testing.assert_close(found[..., v], VALUES[name](probability, mask))
    torch.testing.assert_close(mine(mine.inputs[None])[0], mine.baseline)


def test_images_and_their_gradients_are_counted():
    mine = scorer(values=("soft_dice",))
    some = images(3, mine.inputs)
    assert (mine.n_forwards, mine.n_backwards) == (1, 0)
    mine(some)
    assert (mine.n_forwards, mine.n_backwards) == (4, 0)
    some.requires_grad_()
    found = mine(some)
    for organ in range(2):
        torch.autograd.grad(found[:, organ].sum(), some, retain_graph=True)
    assert (mine.n_forwards, mine.n_backwards) == (7, 6)
    with torch.inference_mode():
        assert not mine(some).requires_grad


def test_phases_are_told_to_the_clock():
    clock, mine = Clock(), scorer()
    mine(images(2, mine.inputs), clock)
    assert set(clock.seconds) == {"encode", "decode"}


def test_some_of_the_targets():
    mine, model = scorer(), FakeSegmenter()
    chosen = mine.select(np.array([False, True]))
    assert chosen.targets == ("spleen",)
    assert chosen.n_forwards == 0
    some = images(2, mine.inputs)
    torch.testing.assert_close(chosen(some), mine(some)[:, 1:])
    torch.testing.assert_close(chosen.baseline, mine.baseline[1:])
    assert np.array_equal(chosen.masks, mine.masks[1:])
    assert model.encoded == 0


def test_an_empty_segmentation_is_refused():
    box = torch.tensor([[0.0, 0.0, 0.01, 0.01]])  # too small a box for the model to see
    model = FakeSegmenter()
    prompts = type(PROMPTS)(ORGANS, torch.cat([BOXES[:1], box]))
    mine = SegmenterScorer(model, prompts, model.prepare(picture()))
    assert mine.refused() == {"spleen": "the unperturbed segmentation is empty"}


def network():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 8, 5, 2, 2), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Conv2d(8, 3, 3, 1, 1)
    )
    grey = torch.from_numpy(picture())[None, None].float() / 255
    with torch.no_grad():  # half of the image is each organ
        net[3].bias -= net.eval()(grey).flatten(2).median(2).values[0]
    return net


@pytest.mark.parametrize(
    "load",
    [
        lambda: load_segmenter({"model": "compact"}, "cpu", "fp32"),
        lambda: load_segmenter({"model": "compact", "attention": "stock"}, "cpu", "fp32"),
        lambda: FixedClassSegmenter(
            network(),
            {"liver": 1, "spleen": 2},
            size=64,
            orientation="ras",
            keep_aspect=True,
            output="sigmoid",
        ),
    ],
    ids=["compact", "stock encoder", "fixed classes"],
)
def test_gradients_are_the_slopes_of_the_scores(load):
    """Of every smooth value, by differences along one direction."""
    mine = scorer(load(), SMOOTH)
    assert mine.mask.flatten(1).any(1).all()
    some = images(1, mine.inputs).requires_grad_()
    coarse = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(2))
    along = nn.functional.interpolate(coarse, some.shape[-2:], mode="bilinear")
    found = mine(some)
    step = 3e-4  # ReLUs bend, and float32 rounds
    with torch.no_grad():
        slope = (mine(some + step * along) - mine(some - step * along)) / (2 * step)
    for o in range(2):
        for v in range(len(SMOOTH)):
            (gradient,) = torch.autograd.grad(found[0, o, v], some, retain_graph=True)
            expected = float(slope[0, o, v])
            assert float((gradient * along).sum()) == pytest.approx(expected, rel=0.05, abs=2e-3)
            assert gradient.abs().max() > 1e-6


def test_gradients_may_be_asked_after_scores_without():
    """What inference mode made is not in their way."""
    mine = scorer(load_segmenter({"model": "compact"}, "cpu", "fp32"))
    with torch.inference_mode():
        mine(images(2, mine.inputs))
        assert not mine.baseline.requires_grad
    some = images(1, mine.inputs).requires_grad_()
    (gradient,) = torch.autograd.grad(mine(some)[..., 0].sum(), some)
    assert gradient.isfinite().all()


def test_what_nothing_is_known_of():
    with pytest.raises(TypeError, match="no segmenter"):
        scorer_type(SimpleNamespace(device="cpu", input_size=8))


# -------------------------------------------------------------------- a model of another kind


class ClassifierScorer(Scorer):
    """Images → probability and logit of some of the classes."""

    def __init__(self, model, classes, inputs, values):
        super().__init__(list(classes), values, inputs)
        self.model, self.classes = model, classes
        with torch.no_grad():
            self._baseline = self(inputs[None])[0]

    def score(self, images, clock):
        with clock("encode"):
            logits = self.model.net(images)[:, list(self.classes.values())]
        answers = {"logit": logits, "probability": logits.sigmoid()}
        return torch.stack([answers[name] for name in self.values], dim=-1)

    @property
    def baseline(self):
        return self._baseline

    @property
    def masks(self):
        return np.zeros((len(self.targets), 512, 512), bool)

    def refused(self):
        return {}

    def select(self, chosen):
        kept = [name for name, one in zip(self.classes, chosen, strict=True) if one]
        classes = {name: self.classes[name] for name in kept}
        return type(self)(self.model, classes, self.inputs, self.values)

    @classmethod
    def of_slice(cls, model, image, prompts, values, clock=None):
        inputs = torch.from_numpy(image[None].astype(np.float32) / 255)
        return cls(model, prompts, inputs, values)


class Classifier:
    """Class k is there as far as its quarter of the image is bright."""

    scorer = ClassifierScorer
    device, input_size = torch.device("cpu"), 96

    def net(self, images):
        return 20 * (nn.functional.adaptive_avg_pool2d(images, 2).flatten(1) - 0.4)


QUARTERS = {"lower left": 2, "upper right": 1}
SETTINGS = {
    "occlusion": {"window": 128, "stride": 64},
    "rise": {"masks": 300, "estimators": ["covariance"]},
}


@pytest.mark.parametrize("name", list(SETTINGS))
def test_a_classifier_is_explained_without_a_segmenter(name):
    bright = np.full((96, 96), 200, np.uint8)
    run = run_of(name, SETTINGS[name], ("probability", "logit"), fill="zero", seed=3)
    (scores,), skips = score_batch(Classifier(), [Request("a", 0, bright, QUARTERS)], run)
    assert not skips
    (table,) = scores.tables.values()
    assert table.values == ("probability", "logit")
    assert scores.context.organs == tuple(QUARTERS)
    truth = {"lower left": np.s_[256:, :256], "upper right": np.s_[:256, 256:]}
    maps = [one for one in attribute_slice(scores)[0] if one.primary]
    assert [(one.organ, one.value) for one in maps] == [(q, "probability") for q in QUARTERS]
    for one in maps:
        mask = np.zeros((512, 512), bool)
        mask[truth[one.organ]] = True
        found = metrics_of_maps.columns(Explained(one, scores, mask))
        assert found["localization_dice_gt"] > 0.9
        assert np.isnan(found["localization_dice_pred"])
        assert rank_correlation(one.map, mask.astype(float)) > 0.7
        assert scores.cost(one)["n_forwards"] == 1 + table.n_forwards


def test_a_classifier_that_fails_is_refused():
    class Broken(Classifier):
        def net(self, images):
            raise RuntimeError("no weights")

    request = Request("a", 0, np.full((96, 96), 200, np.uint8), QUARTERS)
    with pytest.raises(ValueError, match="The model under 'rise' fails on a plain test image"):
        score_batch(Broken(), [request], run_of("rise", SETTINGS["rise"], ("logit",)))


def test_a_target_without_a_prompt_is_left_out():
    request = Request("a", 0, np.full((96, 96), 200, np.uint8), {**QUARTERS, "none": None})
    run = run_of("occlusion", SETTINGS["occlusion"], ("logit",))
    scores, skips = score_slice(Classifier(), request, run)
    assert scores.context.organs == tuple(QUARTERS)
    assert [skip.organ for skip in skips] == ["none"]
