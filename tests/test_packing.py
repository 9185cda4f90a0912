"""Maps on disk: small, and to the last bit what they were."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from explain_fakes import context
from stored_maps import load_attributions
from test_runner import MODEL, run, target
from xaiclip.explain import recipes, rise
from xaiclip.explain.attribution import Attribution, save_attributions
from xaiclip.explain.packing import is_smooth, pack, unpack
from xaiclip.explain.runner import attribute_slice, score_slice
from xaiclip.files import open_arrays

BITS = arrays(np.uint32, st.tuples(st.integers(1, 9), st.integers(1, 9)))


def same(one, other):
    return np.array_equal(one.view(np.uint32), other.view(np.uint32))


@given(BITS)
def test_any_float_comes_out_as_it_was(bits):
    """Every kind: NaN with its payload, infinities, both zeros, subnormal numbers."""
    map_ = bits.view(np.float32)
    assert same(unpack(pack(map_)), map_)


def test_a_smooth_map_packs_well():
    y, x = np.mgrid[:200, :301] / 300
    map_ = (y * (1 - x) - 0.2).astype(np.float32)  # it crosses zero
    map_[:40] = np.nan
    planes = pack(map_)
    assert is_smooth(map_)
    assert (planes[:2] == 0).mean() > 0.9
    assert same(unpack(planes), map_)
    assert not is_smooth(np.repeat(np.repeat(np.float32([[1, 2], [3, 4]]), 40, 0), 40, 1))


@pytest.fixture(scope="module", params=[False, True], ids=["full", "guided"])
def maps(request):
    names = ["covariance", "paper", "complement", "control_variate"]
    request_ = target(guided=request.param)
    scores, _ = score_slice(
        MODEL, request_, run("rise", settings={"masks": 40, "estimators": names})
    )
    return attribute_slice(scores)[0]


def test_a_recipe_gives_its_map_to_the_last_bit(maps):
    assert {one.variant for one in maps if one.recipe is None} == {"control_variate"}
    for one in maps:
        assert one.recipe is None or same(one.recipe.map(), one.map)


def test_a_batch_of_maps_comes_out_as_it_was_and_shares_its_arrays(maps, tmp_path):
    path = tmp_path / "maps.npz"
    save_attributions(path, [("a", 7, one) for one in maps])
    loaded = load_attributions(path)
    assert [(case, index) for case, index, _ in loaded] == [("a", 7)] * len(maps)
    for before, (_, _, after) in zip(maps, loaded, strict=True):
        assert same(before.map, after.map)
        assert (before.error is None) == (after.error is None)
        for key in ("organ", "variant", "value", "plans", "primary", "details"):
            assert getattr(before, key) == getattr(after, key)
    with open_arrays(path) as stored:
        shared = [name for name in stored if name.startswith("shared/")]
        own = [name for name in stored if name.partition("/")[0].isdigit() and "error" not in name]
    closed = {(one.organ, one.value) for one in maps}
    organs = {one.organ for one in maps}
    assert len(own) == len(closed)  # control_variate's
    assert len(shared) == len(closed) + len(organs) + 3  # products; domains; keep, square, region


def test_a_recipe_that_gives_another_map_is_not_stored(maps, tmp_path):
    one = next(one for one in maps if one.recipe)
    wrong = one.map.copy()
    wrong[5, 5] = np.nextafter(wrong[5, 5], np.float32(9)) if np.isfinite(wrong[5, 5]) else 1
    facts = {key: value for key, value in vars(one).items() if key != "map"}
    save_attributions(tmp_path / "maps.npz", [("a", 0, Attribution(**facts, map=wrong))])
    ((_, _, loaded),) = load_attributions(tmp_path / "maps.npz")
    assert loaded.recipe is None
    assert same(loaded.map, wrong)


def test_sums_mean_what_their_names_say():
    """Against the masks themselves, drawn one by one."""
    ctx = context(guided=True, settings={"masks": 30, "probability": 0.4})
    plan = rise.plans(ctx)["masks"]
    scores = np.random.default_rng(3).random(30)
    masks = plan.keep(0, 30, 512)[:, 0].double().numpy()
    drawn = recipes.MaskSums(
        estimator="covariance",
        product=((scores - scores.mean()) @ masks.reshape(30, -1)).reshape(512, 512),
        keep=masks.sum(0),
        square=(masks**2).sum(0),
        region=plan.region,
        domain=ctx.domains[0],
        outside=0.0,
        least=rise.VARIES,
        mean=scores.mean(),
        count=30,
        probability=0.4,
    )
    at = np.argwhere(ctx.domains[0])[1234]
    here = masks[:, at[0], at[1]]
    wanted = np.cov(scores, here, bias=True)[0, 1] / here.var()
    assert drawn.map()[tuple(at)] == pytest.approx(wanted, rel=1e-5)
    paper = recipes.MaskSums(**{**vars(drawn), "estimator": "paper"}).map()
    assert paper[tuple(at)] == pytest.approx((scores * here).sum() / (30 * 0.4), rel=1e-5)
    other = recipes.MaskSums(**{**vars(drawn), "estimator": "complement"}).map()
    assert other[tuple(at)] == pytest.approx(1 - paper[tuple(at)], abs=1e-6)
    assert np.isnan(drawn.map()[~ctx.domains[0]]).all()
