"""Shapley values: against their definition, captum, and the engine; what the units are."""

from dataclasses import replace
from itertools import permutations
from math import comb

import numpy as np
import pytest
import torch
from captum.attr import KernelShap, ShapleyValues
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from scipy.stats import spearmanr

from explain_fakes import PROMPTS, FakeSegmenter, context, picture, rois, table
from figure_study import BATCH, CLASSES, drawn_slice, make_study
from in_process import Named, run_script
from segmenter_models import some_prompts
from test_equality import compact
from xaiclip.arguments import units_of
from xaiclip.errors import CaseError, ConfigError
from xaiclip.explain.attribution import to_canonical_mask
from xaiclip.explain.engine import fill_image, score
from xaiclip.explain.plan import Context
from xaiclip.explain.runner import Request, Run, attribute_slice, score_slice
from xaiclip.explain.shapley import (
    COALITIONS,
    UnitPlan,
    aggregate,
    coalitions,
    plans,
    shapley_values,
)
from xaiclip.explain.store import load_scores, save_scores
from xaiclip.explain.values import soft_dice
from xaiclip.masks.roi import Roi, body_mask, load_rois
from xaiclip.metrics.savings import savings
from xaiclip.organs import OUTSIDE, REST
from xaiclip.targets import SegmenterScorer

VALUES = ("soft_dice", "in_mask_probability", "hard_dice", "hard_iou")
#: Not in the alphabet's order, of different sizes; the last two overlap.
REGIONS = {
    "spleen": (slice(60, 200), slice(50, 190)),
    "liver": (slice(220, 420), slice(60, 300)),
    "pancreas": (slice(400, 440), slice(250, 350)),
}


def masks() -> np.ndarray:
    found = np.zeros((3, 512, 512), bool)
    for one, place in zip(found, REGIONS.values(), strict=True):
        one[place] = True
    return found


def body() -> np.ndarray:
    """A grey disc in air: what the body's mask is made of."""
    rows, columns = np.mgrid[:512, :512]
    return (120 * (np.hypot(rows - 256, columns - 256) < 240)).astype(np.uint8)


def sliced(guided=None, **changes) -> Context:
    known = {"image": body(), "organs": tuple(REGIONS), "masks": masks(), "rois": guided,
             "settings": {}}  # fmt: skip
    return context(**{**known, **changes})


class Game:
    """A made-up game of M units with interactions of up to three of them; two scores."""

    def __init__(self, units: int, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.units = units
        self.single = rng.normal(size=(units, 2)) * np.linspace(0.2, 1, units)[:, None]
        self.pairs = rng.normal(size=(units, units, 2)) * 0.15
        self.triple = rng.integers(0, units, (60, 3))
        self.weight = rng.normal(size=(60, 2)) * 0.2

    def __call__(self, on: np.ndarray) -> np.ndarray:
        """(N, M) → (N, 1, 2)."""
        kept = on.astype(float)
        linear = kept @ self.single + np.einsum("ni,nj,ijk->nk", kept, kept, self.pairs)
        return np.tanh(linear + kept[:, self.triple].prod(2) @ self.weight + 0.3)[:, None]

    def solve(self, on: np.ndarray):
        return shapley_values(on, self(on), self(np.ones((1, self.units), bool))[0])


def by_definition(game: Game) -> np.ndarray:
    """The mean gain over all orders: (1, 2, M)."""
    gains = np.zeros((game.units, 2))
    orders = list(permutations(range(game.units)))
    for order in orders:
        on = np.zeros((game.units + 1, game.units), bool)
        for place, unit in enumerate(order, 1):
            on[place:, unit] = True
        gains[list(order)] += np.diff(game(on)[:, 0], axis=0)
    return (gains / len(orders)).T[None]


# --- the estimator ---


@pytest.mark.parametrize("units", [1, 2, 3, 4, 5, 6, 7])
def test_all_coalitions_give_the_definition(units):
    game = Game(units)
    values, errors = game.solve(coalitions(units, 10, 4, 0))
    np.testing.assert_allclose(values, by_definition(game), atol=1e-12)
    assert errors is None


def test_equals_captum():
    game = Game(5)
    values, _ = game.solve(coalitions(5, 10, 4, 0))
    for score_number in range(2):
        theirs = ShapleyValues(
            lambda kept, v=score_number: torch.from_numpy(game(kept.numpy())[:, 0, v])
        ).attribute(torch.ones(1, 5), baselines=0)
        np.testing.assert_allclose(values[0, score_number], theirs[0], atol=1e-6)


@pytest.mark.parametrize("units", [11, 12, 13])
def test_a_sample_agrees_with_all(units):
    """Of 2046 coalitions and more a thousand are scored."""
    game = Game(units, seed=units)
    truth, none = game.solve(coalitions(units, 16, 4, 0))
    assert none is None
    for seed in range(5):
        on = coalitions(units, 10, 1000, seed)
        assert len(on) == 1001
        values, errors = game.solve(on)
        assert errors is not None
        for mine, true in zip(values[0], truth[0], strict=True):
            assert spearmanr(mine, true).statistic > 0.95
        total = game(np.ones((1, units), bool)) - game(np.zeros((1, units), bool))
        np.testing.assert_allclose(values.sum(-1), total[0], atol=1e-10)


def test_a_sample_is_nearer_than_captums_of_the_same_size():
    game, units = Game(12, seed=3), 12
    truth, _ = game.solve(coalitions(units, 16, 4, 0))
    ours, theirs = [], []
    for seed in range(4):
        values, _ = game.solve(coalitions(units, 10, 400, seed))
        ours.append(np.abs(values - truth)[0, 0].mean())
        torch.manual_seed(seed)
        found = KernelShap(lambda kept: torch.from_numpy(game(kept.numpy())[:, 0, 0])).attribute(
            torch.ones(1, units), baselines=0, n_samples=400, perturbations_per_eval=400
        )
        theirs.append(np.abs(found[0].numpy() - truth[0, 0]).mean())
    assert np.mean(ours) < np.mean(theirs)


def test_errors_are_what_repeated_samples_show():
    game = Game(13, seed=1)
    truth, _ = game.solve(coalitions(13, 16, 4, 0))
    found = [game.solve(coalitions(13, 10, 300, seed)) for seed in range(80)]
    values, errors = (np.stack(part) for part in zip(*found, strict=True))
    ratio = np.sqrt((errors**2).mean(0)) / values.std(0, ddof=1)
    assert 0.85 < ratio.mean() < 1.25
    away = (values.mean(0) - truth) / values.std(0, ddof=1) * np.sqrt(80)
    assert np.sqrt((away**2).mean()) < 1.6  # 1 if unbiased


def test_a_unit_that_adds_nothing_and_twins():
    """Dummy and symmetry: two of the axioms that define the value."""

    def game(on):
        kept = on.astype(float)
        twins = kept[:, 1] + kept[:, 4]
        return (kept[:, 0] + twins**2 * kept[:, 2])[:, None, None]

    on = coalitions(6, 10, 4, 1)
    (((first, twin, factor, dummy, other, _),),), _ = shapley_values(
        on, game(on), np.full((1, 1), 5)
    )
    assert first == pytest.approx(1)
    assert dummy == pytest.approx(0, abs=1e-12)
    assert twin == pytest.approx(other, abs=1e-12)
    # (twins)² · factor: 4/3 for the factor and as much for each twin, by hand
    assert (factor, twin) == pytest.approx((5 / 3, 7 / 6))
    on = coalitions(12, 10, 600, 1)
    ((values,),), errors = shapley_values(on, game(on), np.full((1, 1), 5))
    assert errors is not None
    assert np.abs(values[[3, *range(5, 12)]]).max() < 4 * errors.max()
    assert abs(values[1] - values[4]) < 4 * errors.max()


# --- which coalitions ---


@given(st.integers(1, 40), st.integers(1, 12), st.integers(4, 600), st.integers(0, 99))
@examples(max_examples=60, deadline=None)
def test_coalitions(units, exact, samples, seed):
    on = coalitions(units, exact, samples, seed)
    assert on.shape[1] == units
    assert not on[0].any()
    np.testing.assert_array_equal(on[2::2], ~on[1::2])
    assert len(np.unique(on, axis=0)) == len(on)
    assert not on[1:].all(1).any()
    if units <= exact:
        assert len(on) == 2**units - 1
    else:
        wanted = max(samples, 4 * units) // 2 * 2
        assert len(on) == 1 + min(wanted, 2**units - 2)
        made = np.bincount(on[1:].sum(1), minlength=units + 1)
        possible = np.array([comb(units, size) for size in range(units + 1)])
        # one unit alone and all but one are always there, every size is, the smallest are whole
        assert made[1] == possible[1]
        assert (made[1:units] >= np.minimum(2, possible[1:units])).all()
        np.testing.assert_array_equal(on, coalitions(units, exact, samples, seed))


def test_small_sizes_come_whole_and_the_others_by_their_weight():
    made = np.bincount(coalitions(12, 10, 1000, 0)[1:].sum(1), minlength=13)
    assert (made[1], made[2]) == (12, 66)
    assert made.tolist() == made[::-1].tolist()
    assert made[3] > made[4] > made[5]


def test_seeds_draw_anew():
    one, same, other = (coalitions(20, 10, 300, seed) for seed in (1, 1, 2))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


# --- which units ---


def test_organs_the_rest_and_outside_are_the_units():
    plan = plans(sliced())[COALITIONS]
    assert isinstance(plan, UnitPlan)
    assert plan.names.tolist() == [*REGIONS, REST, OUTSIDE]
    assert plan.n_forwards == plan.n_full == 2**5 - 1
    of = {name: plan.segments == number for number, name in enumerate(plan.names)}
    inside = body_mask(body())
    spleen, liver, pancreas = masks()
    assert np.array_equal(of["spleen"], spleen)
    assert np.array_equal(of["pancreas"], pancreas)  # the smaller one
    assert np.array_equal(of["liver"], liver & ~pancreas)
    organs = masks().any(0)
    assert np.array_equal(of[REST], inside & ~organs)
    assert np.array_equal(of[OUTSIDE], ~inside & ~organs)
    assert of[OUTSIDE].any()


def test_a_forward_keeps_its_units_and_fills_the_others():
    plan = plans(sliced())[COALITIONS]
    drawn = plan.keep(0, plan.n_forwards, 512).numpy()[:, 0]
    assert not drawn[0].any()
    for kept, on in zip(drawn, plan.on, strict=True):
        for number, name in enumerate(plan.names):
            assert (kept[plan.segments == number] == on[number]).all(), name


def test_under_guidance_whole_units_that_meet_an_roi_play():
    roi = np.zeros((3, 512, 512), bool)
    roi[:, 100:110, 60:70] = True  # within the spleen
    roi[1, 425:430, 260:270] = True  # within the pancreas
    plan = plans(sliced(roi))[COALITIONS]
    assert plan.names.tolist() == ["spleen", "pancreas"]
    assert (plan.n_forwards, plan.n_full) == (3, 31)
    spleen, _, pancreas = masks()
    assert np.array_equal(plan.segments >= 0, spleen | pancreas)
    kept = plan.keep(0, 1, 512).numpy()[0, 0]
    assert np.array_equal(kept == 1, ~(spleen | pancreas))
    truth = np.array([[[0.1], [0.2], [0.3]], [[0.5], [0.5], [0.5]], [[0.2], [0.2], [0.2]]])
    found = aggregate({COALITIONS: plan}, {COALITIONS: table(truth[..., 0])}, sliced(roi))
    for one, own in zip(found[::1], roi, strict=False):
        assert np.array_equal(np.isfinite(one.map), own & (plan.segments >= 0))


@pytest.mark.parametrize("regions", ["label", "localizer"])
def test_regions_of_another_source(regions):
    """A small organ that the other hides leaves no unit; an organ that is not explained is one."""
    whole, nothing = masks()[1], np.zeros((512, 512), bool)
    given = {"aorta": masks()[0], "liver": whole, "gallbladder": nothing, "twin": whole}
    settings = {"regions": regions}
    plan = plans(sliced(settings=settings, regions=given))[COALITIONS]
    assert plan.names.tolist() == ["aorta", "twin", REST, OUTSIDE]
    with pytest.raises(CaseError, match=f"no {regions} .*methods.shapley.regions"):
        plans(sliced(settings=settings))


def test_an_image_that_is_all_air_is_one_unit():
    made = sliced(image=np.zeros((512, 512), np.uint8), masks=np.ones((3, 512, 512), bool))
    plan = plans(made)[COALITIONS]
    assert plan.names.tolist() == ["pancreas"]
    (first, *_) = aggregate(
        {COALITIONS: plan}, {COALITIONS: table(np.array([[0.25, 0.5, 1.0]]))}, made
    )
    assert first.units == {"pancreas": 0.75}


def test_superpixels_are_limes():
    from xaiclip.explain import lime

    settings = {"units": "superpixels", "slic": {"n_segments": 12, "compactness": 0.2}}
    made = context(settings={**settings, "samples": 64})
    plan = plans(made)[COALITIONS]
    expected = lime.superpixels(
        "slic", made.image, lime.PlanSettings(slic=lime.Slic(n_segments=12, compactness=0.2))
    )
    assert np.array_equal(plan.segments, expected)
    assert plan.on.shape[1] == expected.max() + 1
    guided = plans(context(guided=True, settings={**settings, "samples": 64}))[COALITIONS]
    met = np.unique(expected[rois().any(0)])
    assert guided.on.shape[1] == len(met)
    assert np.array_equal(guided.segments >= 0, np.isin(expected, met))
    drop = RNG.random((plan.n_forwards, 2))
    assert not any(
        one.units for one in aggregate({COALITIONS: plan}, {COALITIONS: table(drop)}, made)
    )


RNG = np.random.default_rng(0)


# --- maps ---


def test_maps_paint_units_and_add_up():
    made = sliced(explained=("soft_dice",))
    plan = plans(made)[COALITIONS]
    gain = np.array([[0.4, 0.0, 0.01], [0.05, 0.3, -0.02], [0.0, 0.1, 0.2], [0.2, 0.1, 0.3],
                     [-0.05, 0.0, 0.02]])  # fmt: skip
    scores = 0.1 + plan.on @ gain
    found = aggregate(
        {COALITIONS: plan}, {COALITIONS: table(scores, (0.1 + gain.sum(0))[:, None])}, made
    )
    assert [(one.organ, one.variant, one.primary) for one in found] == [
        (organ, variant, variant == "value")
        for variant in ("value", "density")
        for organ in REGIONS
    ]
    for o, one in enumerate(found[:3]):
        assert one.units == pytest.approx(dict(zip(plan.names, gain[:, o], strict=True)), abs=1e-6)
        for number in range(5):
            np.testing.assert_allclose(one.map[plan.segments == number], gain[number, o], atol=1e-6)
        assert sum(one.units.values()) == pytest.approx(gain[:, o].sum(), abs=1e-6)
        assert one.error is None
        assert one.details == {}
    for o, one in enumerate(found[3:]):
        assert one.units == {}
        assert one.map.sum(dtype=float) == pytest.approx(gain[:, o].sum(), abs=1e-5)
        assert one.map[100, 100] == pytest.approx(gain[0, o] / (140 * 140), abs=1e-9)


def test_a_sampled_map_has_errors():
    settings = {"units": "superpixels", "slic": {"n_segments": 30}, "samples": 200}
    made = context(guided=True, settings=settings)
    plan = plans(made)[COALITIONS]
    game = Game(plan.on.shape[1])
    whole = game(np.ones((1, game.units), bool))[0, 0]
    one, *_, last = aggregate(
        {COALITIONS: plan}, {COALITIONS: table(game(plan.on)[:, 0], whole[:, None])}, made
    )
    values, errors = game.solve(plan.on)
    assert errors is not None
    at = (200, 150)
    number = plan.segments[at]
    assert one.error is not None
    assert last.error is not None
    assert one.error[at] == pytest.approx(errors[0, 0, number], rel=1e-3)
    assert one.map[at] == pytest.approx(values[0, 0, number], rel=1e-3)
    area = (plan.segments == plan.segments[300, 350]).sum()
    assert last.error[300, 350] * area == pytest.approx(
        errors[0, 1, plan.segments[300, 350]], rel=1e-3
    )
    assert np.array_equal(np.isfinite(one.error), np.isfinite(one.map))
    assert one.details["standard_error"] == pytest.approx(np.median(errors[0, 0]), rel=1e-3)
    assert 0 < one.details["reliability"] <= 1


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
    return score_slice(FakeSegmenter(), request, Run("shapley", settings, VALUES, seed=5))


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
