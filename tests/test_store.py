import numpy as np
import pandas as pd
import pytest

from explain_fakes import ORGANS, context, table
from stored_maps import load_attributions
from xaiclip.clock import PHASES
from xaiclip.errors import Skip
from xaiclip.explain import method
from xaiclip.explain.attribution import save_attributions
from xaiclip.explain.runner import attribute_slice
from xaiclip.explain.store import SliceScores, load_scores, save_frame, save_scores, score_frame

SETTINGS = {
    "occlusion": {"window": 128, "stride": 128, "min_overlap": 0.0},
    "lime": {"superpixels": ["slic", "multiscale"], "samples": 12, "min_samples": 4},
    "rise": {"masks": 12},
}


def scored(name: str, guided: bool = True) -> SliceScores:
    ctx = context(guided=guided, settings=SETTINGS[name])
    plans = method(name).plans(ctx)
    rng = np.random.default_rng(0)
    return SliceScores(
        case="a",
        index=7,
        method=name,
        guidance="roi" if guided else "full",
        context=ctx,
        plans=plans,
        tables={key: table(rng.random((plan.n_forwards, 2)), 0.9) for key, plan in plans.items()},
        seconds={"perturb": 0.25, "encode": 0.1, "decode": 0.05, "total": 0.42},
    )


@pytest.mark.slow
@pytest.mark.parametrize("guided", [True, False])
@pytest.mark.parametrize("name", list(SETTINGS))
def test_maps_from_the_file_are_maps_from_memory(tmp_path, name, guided):
    one = scored(name, guided)
    skip = Skip("b", "explain", "the ROI is empty", 3, "liver")
    save_scores(tmp_path / "batch.npz", [one, one], [skip])
    loaded, skips = load_scores(tmp_path / "batch.npz")
    assert skips == [skip]
    assert len(loaded) == 2
    assert vars(loaded[1]).keys() == vars(one).keys()
    assert (loaded[1].case, loaded[1].index, loaded[1].guidance) == ("a", 7, one.guidance)
    assert loaded[1].seconds == one.seconds
    expected, seconds = attribute_slice(one)
    got, _ = attribute_slice(loaded[1])
    assert seconds > 0
    assert len(got) == len(expected) > 0
    for a, b in zip(got, expected, strict=True):
        assert (a.organ, a.variant, a.value, a.plans, a.primary) == (
            *(b.organ, b.variant, b.value, b.plans, b.primary),
        )
        np.testing.assert_array_equal(a.map, b.map)
        assert loaded[1].cost(a) == one.cost(b)


def test_an_empty_batch_is_a_file_too(tmp_path):
    save_scores(tmp_path / "batch.npz", [], [])
    assert load_scores(tmp_path / "batch.npz") == ([], [])
    save_frame(tmp_path / "batch.parquet", [])
    assert pd.read_parquet(tmp_path / "batch.parquet").empty


def test_score_frame(tmp_path):
    one = scored("occlusion")
    save_frame(tmp_path / "batch.parquet", [one])
    frame = pd.read_parquet(tmp_path / "batch.parquet")
    pd.testing.assert_frame_equal(frame, score_frame([one]))
    plan, scores = one.plans["windows"], one.tables["windows"].scores
    assert list(frame) == ["case", "slice", "organ", "plan", "forward", "member", "soft_dice"]
    assert len(frame) == 2 * (1 + plan.n_forwards)
    spleen = frame[frame["organ"] == "spleen"].set_index("forward")
    assert spleen.loc[0, "soft_dice"] == np.float32(0.9)
    assert spleen.loc[3, "soft_dice"] == scores[2, 1, 0]
    assert spleen["member"].tolist() == [True, *plan.members[:, 1].tolist()]


def test_cost_of_a_map():
    one = scored("occlusion")
    plan = one.plans["windows"]
    (liver, _), _ = attribute_slice(one)
    cost = one.cost(liver, seconds_aggregate=0.5)
    patches = int(plan.members[:, 0].sum())
    assert 0 < patches < plan.n_forwards < 16
    assert cost["n_forwards"] == 1 + plan.n_forwards
    assert cost["n_forwards_full"] == 17
    assert cost["n_patch"] == patches
    assert cost["rho"] == patches / 16
    assert cost["rho_union"] == plan.n_forwards / 16
    assert cost["shared_by"] == 2
    assert cost["seconds_perturb"] == pytest.approx(0.35)
    assert cost["seconds_encode"] == pytest.approx(1.1)
    assert cost["seconds_decode"] == pytest.approx(0.55)
    assert cost["seconds_aggregate"] == pytest.approx(0.5)
    assert cost["seconds_total"] == pytest.approx(0.42 + 1.61 + 0.5)
    assert {f"seconds_{phase}" for phase in PHASES} <= set(cost)
    inside = one.member_scores(liver, "soft_dice")
    assert inside.tolist() == one.tables["windows"].scores[plan.members[:, 0], 0, 0].tolist()


def test_a_map_of_several_plans_costs_all_of_them():
    one = scored("lime", guided=False)
    attributions, _ = attribute_slice(one)
    by_variant = {each.variant: one.cost(each) for each in attributions}
    assert by_variant["slic"]["n_forwards"] == 12
    assert by_variant["multiscale"]["n_forwards"] == 1 + 3 * 11
    assert by_variant["multiscale"]["rho"] == 1
    assert len(one.member_scores(attributions[-1], "soft_dice")) == 33


def test_attributions_survive_storage(tmp_path):
    attributions, _ = attribute_slice(scored("lime"))
    save_attributions(tmp_path / "maps.npz", [("a", 7, each) for each in attributions])
    loaded = load_attributions(tmp_path / "maps.npz")
    assert len(loaded) == len(attributions) == 4
    assert [each.error is None for each in attributions] == [False, False, True, True]
    for (case, index, got), expected in zip(loaded, attributions, strict=True):
        assert (case, index) == ("a", 7)
        np.testing.assert_array_equal(got.map, expected.map)
        if expected.error is None:
            assert got.error is None
        else:
            np.testing.assert_array_equal(got.error, expected.error)
        plain = {"map": 0, "error": 0}
        assert {**vars(got), **plain} == {**vars(expected), **plain}
    assert {each.organ for _, _, each in loaded} == set(ORGANS)
