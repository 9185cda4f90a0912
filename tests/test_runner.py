import logging
import subprocess
import sys
import types
from dataclasses import dataclass

import numpy as np
import pytest

from explain_fakes import BOXES, ORGANS, FakeSegmenter, picture, run_of
from stored_maps import score_batch
from xaiclip.clock import PHASES
from xaiclip.errors import CaseError, ConfigError
from xaiclip.explain import method
from xaiclip.explain.plan import SuperpixelPlan
from xaiclip.explain.runner import Request, attribute_slice, score_slice
from xaiclip.explain.store import load_scores, save_scores

SHAPE = (160, 140)
MODEL = FakeSegmenter()
SPECK = np.array([0.0, 0.0, 2.0, 2.0])  # too small a box for the model to see
SETTINGS = {
    "occlusion": {"window": 64, "stride": 64},
    "lime": {"superpixels": ["slic"], "samples": 20, "min_samples": 5},
    "rise": {"masks": 20},
}


def boxes():
    scale = np.array([SHAPE[1], SHAPE[0]] * 2)
    return {organ: BOXES[o].numpy() * scale for o, organ in enumerate(ORGANS)}


def roi(left, top, right, bottom):
    mask = np.zeros(SHAPE, bool)
    mask[top:bottom, left:right] = True
    return mask


ROIS = {"liver": roi(20, 30, 70, 110), "spleen": roi(70, 60, 120, 130)}


def target(guided=False, **changes):
    known = {
        "case": "a",
        "index": 4,
        "image": picture(shape=SHAPE),
        "prompts": boxes(),
        "rois": ROIS if guided else None,
        "guidance": "roi" if guided else "full",
    }
    return Request(**{**known, **changes})


def run(name="occlusion", **changes):
    return run_of(**{"method": name, "settings": SETTINGS[name], "seed": 11, **changes})


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("name", list(SETTINGS))
def test_every_method_from_slice_to_maps(name, guided):
    scores, skips = score_slice(MODEL, target(guided), run(name))
    assert skips == []
    assert scores.context.organs == ORGANS
    attributions, seconds = attribute_slice(scores)
    primary = [one for one in attributions if one.primary]
    assert [one.organ for one in primary] == list(ORGANS)
    for one in primary:
        cost = scores.cost(one, seconds)
        assert (cost["rho"] < 1) == (guided and name != "rise")
        parts = sum(cost[f"seconds_{phase}"] for phase in PHASES)
        assert parts <= cost["seconds_total"]
        assert np.isfinite(one.map).any()
        assert np.isfinite(one.map).all() == (not guided)
        assert (scores.member_scores(one, "hard_dice") <= 1).all()
    again, _ = score_slice(MODEL, target(guided), run(name))
    for key, made in scores.tables.items():
        np.testing.assert_array_equal(made.scores, again.tables[key].scores)


def test_guided_drops_are_the_full_drops():
    full, _ = score_slice(MODEL, target(), run())
    guided, _ = score_slice(MODEL, target(guided=True), run())
    rows = {tuple(box): k for k, box in enumerate(full.plans["windows"].windows)}
    at = [rows[tuple(box)] for box in guided.plans["windows"].windows]
    assert len(at) < len(rows)
    np.testing.assert_allclose(
        guided.tables["windows"].scores, full.tables["windows"].scores[at], atol=1e-6
    )


def test_a_slice_has_its_own_samples_whatever_its_batch():
    plans = [
        score_slice(MODEL, target(case=case), run("rise", seed=seed))[0].plans["masks"].cells
        for case, seed in [("a", 11), ("b", 11), ("a", 12)]
    ]
    assert not np.array_equal(plans[0], plans[1])
    assert not np.array_equal(plans[0], plans[2])
    both, _ = score_batch(MODEL, [target(case="b"), target()], run("rise"))
    assert np.array_equal(both[1].plans["masks"].cells, plans[0])


@pytest.mark.parametrize(
    ("changes", "settings", "reason"),
    [
        ({"prompts": {**boxes(), "spleen": None}}, {}, "there is no box"),
        ({"rois": {**ROIS, "spleen": roi(0, 0, 0, 0)}}, {}, "the ROI is empty"),
        ({"rois": {"liver": ROIS["liver"]}}, {}, "there is no ROI"),
        (
            {"prompts": {**boxes(), "spleen": SPECK}},
            {},
            "unperturbed segmentation is empty",
        ),
        (
            {"rois": {**ROIS, "spleen": roi(100, 100, 103, 103)}},
            {"min_overlap": 0.3},
            "no perturbation meets the ROI",
        ),
    ],
)
def test_one_organ_is_left_out_and_the_other_goes_on(changes, settings, reason):
    chosen = run(settings={**SETTINGS["occlusion"], **settings})
    scores, skips = score_slice(MODEL, target(guided=True, **changes), chosen)
    assert scores.context.organs == ("liver",)
    assert scores.tables["windows"].scores.shape[1] == 1
    assert [(skip.case, skip.slice, skip.organ, skip.stage) for skip in skips] == [
        ("a", 4, "spleen", "explain")
    ]
    assert reason in skips[0].reason
    attributions, _ = attribute_slice(scores)
    assert {one.organ for one in attributions} == {"liver"}


@pytest.mark.parametrize(
    "changes",
    [
        {"prompts": dict.fromkeys(ORGANS)},
        {"rois": dict.fromkeys(ORGANS, roi(0, 0, 0, 0))},
        {"prompts": dict.fromkeys(ORGANS, SPECK)},
    ],
)
def test_nothing_is_left(changes):
    scores, skips = score_slice(MODEL, target(guided=True, **changes), run())
    assert scores is None
    assert [skip.organ for skip in skips] == list(ORGANS)


def test_a_failing_slice_does_not_stop_the_batch(caplog):
    caplog.set_level(logging.INFO)
    tiny = dict.fromkeys(ORGANS, roi(100, 100, 103, 103))
    chosen = run(settings={**SETTINGS["occlusion"], "min_overlap": 0.9})
    targets = [target(guided=True, case="bad", rois=tiny), target(guided=True)]
    done, skips = score_batch(MODEL, targets, chosen)
    assert [one.case for one in done] == ["a"]
    assert [(skip.case, skip.organ) for skip in skips] == [("bad", None)]
    assert "min_overlap" in skips[0].reason
    assert "forwards/s" in caplog.text
    assert "bad/4 occlusion: left out" in caplog.text


def test_one_encode_serves_all_organs():
    model = FakeSegmenter()
    scores, _ = score_slice(model, target(), run())
    assert model.encoded == 1 + scores.plans["windows"].n_forwards == 65


# A fourth method: superpixels that are taken away one at a time.


@dataclass(frozen=True)
class PlanSettings:
    tiles: int = 4


def plans(context):
    side = 512 // PlanSettings(**context.settings).tiles
    at = np.arange(512) // side
    segments = (at[:, None] * (at[-1] + 1) + at).astype(np.int32)
    on = ~np.eye(segments.max() + 1, dtype=bool)
    return {
        "tiles": SuperpixelPlan(
            np.ones((len(on), len(context.organs)), bool), len(on), segments, on
        )
    }


def aggregate(plans, tables, context):
    drop = tables["tiles"].baseline_of(context.explained) - tables["tiles"].of(context.explained)
    maps = drop[plans["tiles"].segments].transpose(2, 3, 0, 1)
    return context.attributions("tiles", ["tiles"], maps, primary=True)


def test_a_fourth_method_is_one_module(monkeypatch, tmp_path):
    module = types.ModuleType("xaiclip.explain.ablation")
    module.PlanSettings, module.plans, module.aggregate = PlanSettings, plans, aggregate
    monkeypatch.setitem(sys.modules, module.__name__, module)
    done, _ = score_batch(MODEL, [target()], run_of("ablation", {"tiles": 8}))
    save_scores(tmp_path / "batch.npz", done)
    (loaded,), _ = load_scores(tmp_path / "batch.npz")
    attributions, _ = attribute_slice(loaded)
    assert loaded.tables["tiles"].n_forwards == 64
    assert [one.value for one in attributions[:2]] == ["soft_dice", "in_mask_probability"]
    assert attributions[0].map.std() > 0


@pytest.mark.parametrize(
    ("name", "message"),
    [("occlusoin", "no explanation method 'occlusoin'"), ("engine", "lacks PlanSettings, plans")],
)
def test_unknown_methods(name, message):
    with pytest.raises(ConfigError, match=message):
        method(name)


def test_case_errors_of_one_slice_are_raised_by_score_slice():
    tiny = dict.fromkeys(ORGANS, roi(100, 100, 103, 103))
    chosen = run(settings={**SETTINGS["occlusion"], "min_overlap": 0.9})
    with pytest.raises(CaseError):
        score_slice(MODEL, target(guided=True, rois=tiny), chosen)


def test_maps_are_read_without_torch(tmp_path):
    """The rules that draw maps run in an environment that has no torch."""
    code = "import sys; import xaiclip.explain.attribution; assert 'torch' not in sys.modules"
    path = [entry for entry in sys.path if entry.endswith("scripts")]
    subprocess.run([sys.executable, "-c", f"import sys; sys.path += {path!r}; {code}"], check=True)
