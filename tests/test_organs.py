"""Three organs in an order other than the alphabet's: each keeps its own box, ROI, scores and map.

What all of them give together is compared with what each gives alone.
"""

import sys
import time
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from explain_fakes import FakeSegmenter, picture, run_of
from xaiclip.explain import engine, lime, occlusion
from xaiclip.explain.attribution import to_canonical_mask
from xaiclip.explain.plan import WindowPlan
from xaiclip.explain.runner import Request, attribute_slice, score_slice
from xaiclip.explain.store import load_scores, save_frame, save_scores, score_frame
from xaiclip.models.segmenters.base import Prompts
from xaiclip.targets import SegmenterScorer

SHAPE = (160, 140)
MODEL = FakeSegmenter()
#: Boxes as fractions of width and height.
BOXES = {
    "spleen": (0.15, 0.2, 0.5, 0.7),
    "liver": (0.5, 0.45, 0.95, 0.8),
    "pancreas": (0.3, 0.05, 0.85, 0.3),
}
ORGANS = tuple(BOXES)
LAST = ORGANS[-1]
VALUES = ("soft_dice", "in_mask_probability", "hard_dice", "hard_iou")
SETTINGS = {
    "occlusion": {"window": 128, "stride": 64},
    "lime": {"superpixels": ["slic", "felzenszwalb"], "samples": 20, "min_samples": 5},
    "rise": {"masks": 20, "estimators": ["covariance", "paper", "control_variate"]},
}


def pixels(organ):
    return np.array(BOXES[organ]) * np.array([SHAPE[1], SHAPE[0]] * 2)


def roi(organ, shrink=6):
    x0, y0, x1, y1 = pixels(organ).astype(int)
    mask = np.zeros(SHAPE, bool)
    mask[y0 + shrink : y1 - shrink, x0 + shrink : x1 - shrink] = True
    return mask


ROIS = {organ: roi(organ) for organ in reversed(ORGANS)}  # looked up, not taken in order


def target(organs=ORGANS, guided=False, **changes):
    known = {
        "case": "a",
        "index": 4,
        "image": picture(shape=SHAPE),
        "prompts": {organ: pixels(organ) for organ in organs},
        "rois": ROIS if guided else None,
        "guidance": "roi" if guided else "full",
    }
    return Request(**{**known, **changes})


def run(name):
    return run_of(name, SETTINGS[name], VALUES, seed=11)


def maps(scores):
    return {(one.organ, one.variant, one.value): one for one in attribute_slice(scores)[0]}


@pytest.mark.parametrize(
    ("name", "guided"),
    [("occlusion", False), ("occlusion", True), ("lime", False), ("rise", False)],
)
def test_together_is_each_alone(name, guided):
    """Masks, scores, maps, errors and costs. (Guided LIME and RISE hide the union of all ROIs.)"""
    together, skips = score_slice(MODEL, target(guided=guided), run(name))
    assert not skips
    assert together.context.organs == ORGANS
    found = maps(together)
    for o, organ in enumerate(ORGANS):
        alone, _ = score_slice(MODEL, target([organ], guided), run(name))
        assert np.array_equal(together.context.masks[o], alone.context.masks[0])
        expected = maps(alone)
        assert len(expected) == len(found) / 3
        for key, one in expected.items():
            np.testing.assert_allclose(found[key].map, one.map, atol=2e-5)
            assert found[key].details == pytest.approx(one.details, abs=1e-3)
            assert found[key].primary == one.primary
            if one.error is not None:
                np.testing.assert_allclose(found[key].error, one.error, atol=2e-5)
            np.testing.assert_allclose(
                together.member_scores(found[key], "hard_iou"),
                alone.member_scores(one, "hard_iou"),
                atol=1e-5,
            )
            mine, its = together.cost(found[key]), alone.cost(one)
            for column in ("n_patch", "rho", "n_forwards_full"):
                assert mine[column] == its[column]
            assert (mine["shared_by"], its["shared_by"]) == (3, 1)
    # nothing above is equal because all organs are alike
    _, *kind = next(iter(found))
    first, last = (found[organ, *kind] for organ in (ORGANS[0], LAST))
    assert not np.allclose(first.map, last.map, atol=1e-3, equal_nan=True)


@pytest.mark.parametrize("name", list(SETTINGS))
def test_an_organs_map_is_defined_in_its_own_roi(name):
    scores, _ = score_slice(MODEL, target(guided=True), run(name))
    for (organ, variant, _), one in maps(scores).items():
        own = to_canonical_mask(ROIS[organ])
        assert np.array_equal(scores.context.rois[ORGANS.index(organ)], own)
        defined = np.isfinite(one.map)
        if variant in ("paper", "window"):  # everywhere; and under windows that meet the ROI
            assert defined[own].all()
        else:
            assert np.array_equal(defined, own)
    if name == "occlusion":
        for o, organ in enumerate(ORGANS):
            own, plan = to_canonical_mask(ROIS[organ]), scores.plans["windows"]
            meets = [own[y0:y1, x0:x1].any() for x0, y0, x1, y1 in plan.windows]
            assert plan.members[:, o].tolist() == meets


def test_the_runner_scores_what_the_engine_scores():
    """The same plan, with prompts and fill written out."""
    chosen = replace(run("rise"), fill="blur")
    scores, _ = score_slice(MODEL, target(), chosen)
    boxes = torch.tensor([BOXES[organ] for organ in ORGANS])
    inputs = MODEL.prepare(picture(shape=SHAPE))
    scorer = SegmenterScorer(MODEL, Prompts(ORGANS, boxes), inputs, VALUES)
    expected = engine.score(scores.plans["masks"], scorer, "blur")
    np.testing.assert_allclose(scores.tables["masks"].scores, expected.scores, atol=1e-5)
    np.testing.assert_allclose(scores.tables["masks"].baseline, expected.baseline, atol=1e-5)


@pytest.mark.parametrize("lost", ORGANS)
def test_whichever_organ_is_left_out_the_others_keep_theirs(lost):
    """No box, an empty segmentation, or no perturbation: the rest as if it had never been asked."""
    others = [organ for organ in ORGANS if organ != lost]
    expected, _ = score_slice(MODEL, target(others, guided=True), run("occlusion"))
    boxes = {organ: pixels(organ) for organ in ORGANS}
    speck = np.array([0.0, 0.0, 2.0, 2.0])  # too small a box for the model to see
    strict = run_of("occlusion", {**SETTINGS["occlusion"], "min_overlap": 0.05}, VALUES, seed=11)
    corner = np.zeros(SHAPE, bool)
    corner[:3, :3] = True
    for changes, chosen in (
        ({"prompts": {**boxes, lost: None}}, run("occlusion")),
        ({"prompts": {**boxes, lost: speck}}, run("occlusion")),
        ({"rois": {**ROIS, lost: corner}}, strict),
    ):
        scores, skips = score_slice(MODEL, target(guided=True, **changes), chosen)
        assert [skip.organ for skip in skips] == [lost]
        assert scores.context.organs == tuple(others)
        if chosen is strict:
            expected, _ = score_slice(MODEL, target(others, guided=True), strict)
        assert np.array_equal(scores.context.rois, expected.context.rois)
        np.testing.assert_allclose(
            scores.tables["windows"].scores, expected.tables["windows"].scores, atol=1e-5
        )
        for key, one in maps(expected).items():
            np.testing.assert_allclose(maps(scores)[key].map, one.map, atol=2e-5)


class TwoPlans:
    """A method of two plans, in one of which the liver has no part."""

    @dataclass(frozen=True)
    class PlanSettings:
        pass

    @staticmethod
    def plans(context):
        windows = np.array([[0, 0, 256, 256], [200, 200, 400, 512]], np.int32)
        some = np.array([organ != "liver" for organ in context.organs])
        every = np.ones((2, len(context.organs)), bool)
        return {"a": WindowPlan(every, 2, windows), "b": WindowPlan(every & some, 2, windows)}

    @staticmethod
    def aggregate(plans, tables, context):
        drop = tables["b"].baseline_of(context.explained) - tables["b"].of(context.explained)
        maps = drop.mean(0)[..., None, None] * np.ones((512, 512))
        return context.attributions("both", ["a", "b"], maps, primary=True)


def test_an_organ_that_one_of_the_plans_lacks_is_left_out(monkeypatch):
    monkeypatch.setitem(sys.modules, "xaiclip.explain.two", TwoPlans)
    scores, skips = score_slice(MODEL, target(), run_of("two", {}, VALUES))
    assert [(skip.organ, skip.reason) for skip in skips] == [
        ("liver", "no perturbation meets the ROI")
    ]
    assert scores.context.organs == ("spleen", "pancreas")
    assert scores.tables["b"].scores.shape == (2, 2, 4)
    for one in attribute_slice(scores)[0]:
        assert scores.cost(one)["n_forwards"] == 1 + 4
        assert scores.cost(one)["rho"] == 1


def test_the_file_keeps_the_organs_apart(tmp_path):
    scores, _ = score_slice(MODEL, target(guided=True), run("occlusion"))
    other, _ = score_slice(MODEL, target(["liver"], case="b"), run("rise"))
    save_scores(tmp_path / "batch.npz", [scores, other])
    (loaded, second), _ = load_scores(tmp_path / "batch.npz")
    assert loaded.context.organs == ORGANS
    assert second.context.organs == ("liver",)
    assert second.context.rois is None
    for name in ("masks", "rois", "image"):
        assert np.array_equal(getattr(loaded.context, name), getattr(scores.context, name))
    for key, one in maps(scores).items():
        np.testing.assert_array_equal(maps(loaded)[key].map, one.map)
    save_frame(tmp_path / "batch.parquet", [scores, other])
    frame = score_frame([scores])
    last = frame[(frame.organ == LAST) & (frame.forward > 0)]
    np.testing.assert_array_equal(last.hard_iou, scores.tables["windows"].scores[:, 2, 3])
    assert last.member.tolist() == scores.plans["windows"].members[:, 2].tolist()


# ------------------------------------------------------------------------------------ draws


def whole():
    return {organ: np.ones(SHAPE, bool) for organ in ORGANS}


@pytest.mark.parametrize("name", list(SETTINGS))
def test_guidance_draws_nothing_anew(name):
    """An ROI that is the whole image gives the forwards of no ROI: they share every draw."""
    full, _ = score_slice(MODEL, target(), run(name))
    guided, _ = score_slice(MODEL, target(guided=True, rois=whole()), run(name))
    assert list(full.plans) == list(guided.plans)
    for key, plan in full.plans.items():
        assert plan.signatures() == guided.plans[key].signatures()
        np.testing.assert_array_equal(full.tables[key].scores, guided.tables[key].scores)


def test_rise_hides_the_same_cells_whatever_the_roi():
    full, _ = score_slice(MODEL, target(), run("rise"))
    guided, _ = score_slice(MODEL, target(guided=True), run("rise"))
    assert full.plans["masks"].signatures() == guided.plans["masks"].signatures()
    union = np.any([to_canonical_mask(mask) for mask in ROIS.values()], axis=0)
    assert np.array_equal(guided.plans["masks"].region, union)


@pytest.mark.parametrize("name", ["lime", "rise"])
def test_case_slice_and_seed_each_draw_anew(name):
    def drawn(seed=11, **changes):
        scores, _ = score_slice(MODEL, target(**changes), replace(run(name), seed=seed))
        return [plan.signatures() for plan in scores.plans.values()]

    others = [drawn(), drawn(case="b"), drawn(index=5), drawn(seed=12)]
    assert drawn() == others[0]
    for first in range(4):
        assert all(others[first] != others[other] for other in range(first))


def test_superpixel_maps_of_one_slice_have_draws_of_their_own():
    """Two plans with as many superpixels would else hide the same numbers."""
    names = {"felzenszwalb_100": 9, "slic": 9, "quickshift": 9}
    tiles = (np.arange(512)[:, None] // 171 * 3 + np.arange(512) // 171).astype(np.int64)
    scores, _ = score_slice(MODEL, target(), run("rise"))
    context = replace(scores.context, settings={"samples": 30, "superpixels": [*names]})
    settings = lime.PlanSettings(**context.settings)
    drawn = []
    for name in names:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(lime, "superpixels", lambda *_: tiles)
            drawn.append(lime._plan(name, settings, context).on)
    assert drawn[0].shape == drawn[1].shape == (29, 9)
    assert not np.array_equal(drawn[0], drawn[1])
    assert not np.array_equal(drawn[1], drawn[2])


# ------------------------------------------------------------------------------------ seconds


class Clockwork(FakeSegmenter):
    """Time passes here alone: 8 s to prepare, 1 s an image, a quarter of that an organ."""

    def __init__(self, monkeypatch):
        super().__init__()
        self.now = 0.0
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)

    def prepare(self, image):
        self.now += 8
        return super().prepare(image)

    def encode(self, inputs):
        self.now += len(inputs)
        return super().encode(inputs)

    def decode(self, embeddings, prompts):
        self.now += len(embeddings) * len(prompts.organs) / 4
        return super().decode(embeddings, prompts)


@pytest.mark.parametrize("budget", [1.0, 0.5])
def test_every_rounds_seconds_count(budget, monkeypatch):
    model = Clockwork(monkeypatch)
    refine, rounds = occlusion.refine, []

    def slow(*arguments):
        model.now += 16
        rounds.append(1)
        return refine(*arguments)

    monkeypatch.setattr(occlusion, "refine", slow)
    settings = {"window": 64, "stride": 64, "budget": budget}
    scores, _ = score_slice(model, target(), run_of("occlusion", settings, batch_size=5))
    one = attribute_slice(scores)[0][0]
    cost = scores.cost(one, seconds_aggregate=2.0)
    assert (len(rounds) > 3) == (budget < 1)
    assert model.encoded == cost["n_forwards"] == 1 + 64 * budget
    assert cost["seconds_encode"] == 8 + cost["n_forwards"]
    assert cost["seconds_decode"] == cost["n_forwards"] * 3 / 4
    assert cost["seconds_perturb"] == 16 * len(rounds)
    assert cost["seconds_aggregate"] == 2
    assert cost["seconds_total"] == model.now + 2


def test_seconds_of_one_superpixel_map_are_not_those_of_all(monkeypatch):
    model = Clockwork(monkeypatch)
    scores, _ = score_slice(model, target(), replace(run("lime"), batch_size=4))
    slic, felzenszwalb = (
        scores.cost(next(one for (_, kind, _), one in maps(scores).items() if kind == variant))
        for variant in ("slic", "felzenszwalb")
    )
    assert slic["n_forwards"] == felzenszwalb["n_forwards"] == 20
    assert slic["seconds_encode"] == felzenszwalb["seconds_encode"] == 8 + 20


def test_some_of_the_forwards_take_their_share_of_the_seconds(monkeypatch):
    model = Clockwork(monkeypatch)
    scores, _ = score_slice(model, target(), run("rise"))
    table = scores.tables["masks"]
    part = table.take(slice(5))
    assert part.n_forwards == 5
    assert part.seconds["encode"] == table.seconds["encode"] / 4 == 5
    both = part.extended(table.take(slice(5, None)))
    assert both.seconds == pytest.approx(table.seconds)
    assert both.n_forwards == 20
    np.testing.assert_array_equal(both.scores, table.scores)
