"""Shapley values of segmenters, through the engine, the script and the one-call API."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from captum.attr import ShapleyValues
from scipy.stats import spearmanr

from explain_fakes import PROMPTS, FakeSegmenter, picture, run_of
from figure_study import BATCH, CLASSES, drawn_slice, make_study
from in_process import Named, run_script
from segmenter_models import some_prompts
from shapley_games import VALUES
from stored_maps import load_rois
from test_equality import compact
from xaiclip.arguments import units_of
from xaiclip.errors import ConfigError
from xaiclip.explain.attribution import to_canonical_mask
from xaiclip.explain.engine import fill_image, score
from xaiclip.explain.runner import Request, attribute_slice, score_slice
from xaiclip.explain.shapley import (
    COALITIONS,
    UnitPlan,
    coalitions,
    plans,
    shapley_values,
)
from xaiclip.explain.store import load_scores, save_scores
from xaiclip.explain.values import soft_dice
from xaiclip.masks.roi import Roi
from xaiclip.metrics.savings import savings
from xaiclip.targets import SegmenterScorer

# --- a real engine ---


def test_equals_captum_on_a_segmenter():
    """captum's exact values, of the same model, units and fill."""
    model = FakeSegmenter(64)  # captum walks through the pixels
    inputs = model.prepare(picture())
    scorer = SegmenterScorer(model, PROMPTS, inputs)
    segments = np.zeros((512, 512), np.int32)
    segments[:, 256:] = 1
    segments[200:330, 100:400] = 2
    on = coalitions(3, 10, 4, 0)
    plan = UnitPlan(np.ones((7, 2), bool), 7, segments, on, np.array(list("abc")))
    scores = score(plan, scorer)
    values, _ = shapley_values(on, scores.scores, scores.baseline)
    small = torch.from_numpy(segments[4::8, 4::8]).long().expand(1, 3, -1, -1).contiguous()
    for o in range(2):

        def dice(images, organ=o):
            probability = model.decode(model.encode(images), PROMPTS).sigmoid()
            return soft_dice(probability, scorer.mask)[:, organ]

        theirs = ShapleyValues(dice).attribute(
            inputs[None],
            baselines=fill_image("mean", inputs).expand_as(inputs)[None],
            feature_mask=small,
        )
        painted = values[o, 0][segments[4::8, 4::8]]
        np.testing.assert_allclose(painted, theirs[0, 0].numpy(), atol=1e-5)


def scored(settings, guided=False, **changes):
    shape = (160, 140)
    masks = {name: np.zeros(shape, bool) for name in ("spleen", "liver")}
    masks["spleen"][40:90, 30:70] = True
    masks["liver"][70:130, 65:120] = True
    boxes = {"spleen": np.array([20.0, 30, 80, 100]), "liver": np.array([60.0, 60, 130, 140])}
    request = Request("a", 3, picture(shape=shape), boxes, masks if guided else None, **changes)
    return score_slice(FakeSegmenter(), request, run_of("shapley", settings, VALUES, seed=5))


@pytest.mark.parametrize(
    ("settings", "guided"),
    [
        ({}, False),
        ({}, True),
        ({"units": "superpixels", "slic": {"n_segments": 14}, "samples": 80}, False),
    ],
)
def test_values_add_up_to_the_total_drop(tmp_path, settings, guided):
    found, skips = scored(settings, guided)
    assert found is not None
    assert not skips
    save_scores(tmp_path / "scores.npz", [found])
    (loaded,), _ = load_scores(tmp_path / "scores.npz")
    assert isinstance(loaded.plans[COALITIONS], UnitPlan)
    made = attribute_slice(loaded)[0]
    answers = loaded.tables[COALITIONS]
    drop = answers.baseline - answers.scores[0]
    segments = loaded.plans[COALITIONS].segments
    assert {(one.organ, one.value) for one in made} == {
        (organ, value) for organ in ("spleen", "liver") for value in VALUES[:2]
    }
    for one in made:
        o, v = found.context.organs.index(one.organ), VALUES.index(one.value)
        domain = found.context.domains[o] & (segments >= 0)
        assert np.array_equal(np.isfinite(one.map), domain)
        if one.units:
            assert sum(one.units.values()) == pytest.approx(drop[o, v], abs=1e-4)
        if not guided and one.variant == "density":
            assert one.map.sum(dtype=float) == pytest.approx(drop[o, v], abs=1e-4)
        cost = loaded.cost(one)
        assert cost["n_forwards"] == 1 + len(answers.scores)
        assert cost["n_forwards_full"] == 1 + loaded.plans[COALITIONS].n_full
    assert np.abs(drop).max() > 0.05


def test_regions_come_from_the_request(tmp_path):
    mask = np.zeros((160, 140), bool)
    mask[20:60, 10:50] = True
    found, _ = scored({"regions": "label"}, regions={"kidney": mask, "none": mask & False})
    assert found is not None
    plan = found.plans[COALITIONS]
    assert plan.names.tolist()[0] == "kidney"
    assert "none" not in plan.names
    assert plan.segments[100, 100] == 0
    assert (plan.segments == 0).sum() == pytest.approx(512**2 * 1600 / (160 * 140), rel=0.02)
    save_scores(tmp_path / "scores.npz", [found])
    (loaded,), _ = load_scores(tmp_path / "scores.npz")
    # the plan can be made again, as `savings` does
    assert plans(loaded.context)[COALITIONS].signatures() == plan.signatures()
    assert list(loaded.context.regions) == ["kidney", "none"]


@pytest.mark.parametrize(("regions", "source"), [("label", "reference"), ("localizer",) * 2])
def test_the_script_gives_the_source_that_the_setting_names(tmp_path, regions, source):
    root = make_study(tmp_path, [drawn_slice("a")], settings={})
    names = ("slices", "preprocessed", "roi")
    output = Named(scores=tmp_path / "s.npz", table=tmp_path / "s.parquet")
    cfg = {
        "method": "shapley",
        "settings": {"regions": regions},
        "values": VALUES,
        "organs": ["spleen", "liver"],
        "guidance": "roi",
        "prompt": "reference",
        "segmenter": {"model": "compact", "input": "windowed"},
        "device": "cpu",
        "precision": "fp32",
        "fill": "mean",
        "batch_size": 4,
        "seed": 5,
    }
    files = Named(**{name: root / name / f"{BATCH}.npz" for name in names})
    run_script("score.py", files, output, tmp_path / "log", cfg)
    (found,), _ = load_scores(output.scores)
    plan = found.plans[COALITIONS]
    rois = load_rois(files.roi)[0]["a/7"]
    for organ in cfg["organs"]:
        unit = plan.segments == plan.names.tolist().index(organ)
        assert np.array_equal(unit, to_canonical_mask(rois[organ][source].mask))
    other = {"reference": "localizer", "localizer": "reference"}[source]
    assert not np.array_equal(rois["liver"][other].mask, rois["liver"][source].mask)


def test_one_call_takes_the_label_or_what_was_located():
    item = drawn_slice("a", without="spleen")
    label = units_of(item, "label", None, CLASSES)
    assert list(label) == ["liver", "right kidney", "left kidney", "pancreas"]
    assert np.array_equal(label["left kidney"], item.label == 3)
    located = {"liver": Roi(label["pancreas"], None), "spleen": label["liver"]}
    assert list(units_of(item, "localizer", located, CLASSES)) == ["liver"]
    assert (
        units_of(item, "prediction", located, CLASSES) == units_of(item, None, None, CLASSES) == {}
    )
    with pytest.raises(ConfigError, match="no label"):
        units_of(replace(item, label=None), "label", None, CLASSES)
    with pytest.raises(ConfigError, match="give the rois that locate"):
        units_of(item, "localizer", {"liver": label["liver"]}, CLASSES)


def test_a_plan_that_was_cut_gives_a_map():
    found, _ = scored({})
    assert found is not None
    rows = savings(found, [0.05, 0.5, 1.0])
    assert {row["plan"] for row in rows} == {"first 5%", "first 50%", "first 100%"}
    full = [row for row in rows if row["plan"] == "first 100%"]
    assert all(row["rank_correlation"] > 0.9 for row in full)


@pytest.mark.slow
def test_a_sample_agrees_with_all_on_the_compact_model():
    """Half of the coalitions of seven units; the whole game is scored once."""
    segmenter, prompts = compact(), some_prompts(3, seed=4)
    scorer = SegmenterScorer(segmenter, prompts, segmenter.prepare(picture()))
    at, units = np.arange(512), 7
    tiles = (at[:, None] // 256 * 4 + at // 128).clip(max=6).astype(np.int32)
    on = coalitions(units, 10, 4, 0)
    plan = UnitPlan(np.ones((127, 3), bool), 127, tiles, on, np.arange(units).astype(str))
    answers = score(plan, scorer)
    truth, _ = shapley_values(plan.on, answers.scores, answers.baseline)
    assert np.ptp(truth, axis=-1).min() > 0.01
    row = {on.tobytes(): number for number, on in enumerate(plan.on)}
    agreement = []
    for seed in range(6):
        on = coalitions(units, 2, 2 ** (units - 1), seed)
        scores = answers.scores[[row[one.tobytes()] for one in on]]
        values, errors = shapley_values(on, scores, answers.baseline)
        assert errors is not None
        agreement += [
            spearmanr(*pair).statistic for pair in zip(values[:, 0], truth[:, 0], strict=True)
        ]
    assert np.mean(agreement) > 0.95
