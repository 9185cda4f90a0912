import numpy as np
import pytest
import torch
from captum.attr import Occlusion

from explain_fakes import ORGANS, PROMPTS, FakeSegmenter, context, picture, rois, table
from xaiclip.errors import CaseError
from xaiclip.explain.engine import fill_image, score
from xaiclip.explain.occlusion import WINDOWS, aggregate, plans
from xaiclip.explain.values import VALUES
from xaiclip.targets import SegmenterScorer

MODEL = FakeSegmenter()
INPUTS = MODEL.prepare(picture())
VALUE_NAMES = ("soft_dice", "in_mask_probability")


def explain(ctx):
    plan = plans(ctx)[WINDOWS]
    scored = score(plan, SegmenterScorer(MODEL, PROMPTS, INPUTS, VALUE_NAMES))
    return plan, scored, aggregate({WINDOWS: plan}, {WINDOWS: scored}, ctx)


@pytest.mark.parametrize(("window", "stride"), [(64, 32), (64, 64), (100, 60)])
def test_equals_captum(window, stride):
    """The same windows, the same fill: the mean drop over the windows that cover a pixel."""
    ctx = context(settings={"window": window, "stride": stride}, explained=VALUE_NAMES)
    _, _, attributions = explain(ctx)
    mask = SegmenterScorer(MODEL, PROMPTS, INPUTS).mask
    filling = fill_image("mean", INPUTS).expand_as(INPUTS)[None]
    for one in attributions[::3]:  # each organ and each value once
        o = ORGANS.index(one.organ)

        def forward(x, o=o, value=one.value):
            probability = MODEL.decode(MODEL.encode(x), PROMPTS).sigmoid()
            return VALUES[value](probability, mask)[:, o]

        reference = Occlusion(forward).attribute(
            INPUTS[None],
            sliding_window_shapes=(3, window // 4, window // 4),
            strides=(3, stride // 4, stride // 4),
            baselines=filling,
            perturbations_per_eval=32,
        )
        enlarged = reference[0, 0].repeat_interleave(4, 0).repeat_interleave(4, 1).numpy()
        assert np.abs(one.map - enlarged).max() <= 1e-5


def test_the_papers_grid_has_225_windows():
    plan = plans(context())[WINDOWS]
    assert plan.n_forwards == plan.n_full == 225
    assert plan.members.all()
    assert (np.diff(plan.windows[:, [0, 2]]) == 64).all()


def test_guidance_keeps_the_windows_that_meet_the_roi_and_their_drops():
    full_plan, full_table, _ = explain(context())
    plan, got, attributions = explain(context(guided=True))
    assert 20 < plan.n_forwards < plan.n_full == 225
    rows = {tuple(window): k for k, window in enumerate(full_plan.windows)}
    same = full_table.scores[[rows[tuple(window)] for window in plan.windows]]
    np.testing.assert_allclose(got.scores, same, atol=1e-6)
    for o, roi in enumerate(rois()):
        meets = [roi[y0:y1, x0:x1].any() for x0, y0, x1, y1 in plan.windows]
        assert plan.members[:, o].tolist() == meets
        covered = np.zeros((512, 512), bool)
        for x0, y0, x1, y1 in plan.windows[meets]:
            covered[y0:y1, x0:x1] = True
        assert np.array_equal(np.isfinite(attributions[o].map), covered)


def test_sign_and_place():
    """A score that falls only where one window lies puts the importance there."""
    ctx = context()
    plan = plans(ctx)[WINDOWS]
    hit = 100
    scores = np.ones((225, 2))
    scores[hit, 0] = 0.2
    liver, spleen = aggregate({WINDOWS: plan}, {WINDOWS: table(scores)}, ctx)
    x0, y0, x1, y1 = plan.windows[hit]
    assert liver.map[y0:y1, x0:x1].min() == pytest.approx(0.2)  # one of four windows fell by 0.8
    outside = liver.map.copy()
    outside[y0:y1, x0:x1] = 0
    assert (outside == 0).all()
    assert (spleen.map == 0).all()
    assert liver.primary
    assert liver.variant == "window"


@pytest.mark.parametrize(("overlap", "fewer"), [(0.1, False), (0.6, True)])
def test_min_overlap(overlap, fewer):
    loose = plans(context(guided=True))[WINDOWS]
    strict = plans(context(guided=True, settings={"min_overlap": overlap}))[WINDOWS]
    assert strict.n_forwards < loose.n_forwards
    assert (strict.members.sum() < loose.members.sum() / 2) == fewer


def test_no_window_meets_the_roi():
    dot = np.zeros((2, 512, 512), bool)
    dot[:, 5, 5] = True
    ctx = context(rois=dot, settings={"min_overlap": 0.5})
    with pytest.raises(CaseError, match="min_overlap"):
        plans(ctx)


def test_gaps_between_windows_are_undefined():
    ctx = context(settings={"window": 32, "stride": 64})
    _, _, (liver, _) = explain(ctx)
    assert np.isnan(liver.map[40, 10])
    assert np.isfinite(liver.map[10, 10])
    assert torch.isfinite(torch.from_numpy(liver.map)).float().mean() == 0.25
