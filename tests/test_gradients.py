"""Gradient methods: equal to captum called directly, counted as they are made, kept apart."""

import numpy as np
import pytest
import torch
from captum.attr import GradientShap, IntegratedGradients, LayerGradCam, NoiseTunnel
from torch import nn

from explain_fakes import ORGANS, FakeSegmenter, LargestTensor, context, rois, run_of
from gradient_models import METHODS, VALUE_NAMES, asked, each, scorer, seeded
from xaiclip.explain import grad_cam, gradient_shap, integrated_gradients, method
from xaiclip.explain.engine import BatchSize, fill_image
from xaiclip.explain.runner import Request, attribute_slice, score_slice
from xaiclip.models.segmenters.fixed import FixedClassSegmenter
from xaiclip.models.segmenters.loading import load_segmenter


@pytest.mark.parametrize("fill", ["mean", "zero", "blur"])
@pytest.mark.parametrize("batch", [1, 3, 64])
def test_integrated_gradients_equal_captum(fill, batch):
    mine = scorer()
    found = asked(integrated_gradients, {"steps": 7}, mine=mine, fill=fill, batch=batch)
    baseline = fill_image(fill, mine.inputs).expand_as(mine.inputs)[None]
    assert found.maps.shape == (2, 2, 128, 128)
    assert found.values == VALUE_NAMES
    for o, v, score in each(mine):
        expected = IntegratedGradients(score).attribute(mine.inputs[None], baseline, n_steps=7)
        assert np.ptp(found.maps[o, v]) > 1e-5
        np.testing.assert_allclose(found.maps[o, v], expected[0].sum(0), atol=1e-6)


@pytest.mark.parametrize("noise", ["smoothgrad", "smoothgrad_sq", "vargrad"])
def test_noise_equals_captums_tunnel(noise):
    mine = scorer()
    settings = {"steps": 4, "noise": noise, "samples": 3, "deviation": 0.2}
    found = asked(integrated_gradients, settings, mine=mine)
    baseline = fill_image("mean", mine.inputs).expand_as(mine.inputs)[None]
    for o, v, score in each(mine):
        tunnel = NoiseTunnel(IntegratedGradients(score))
        expected = seeded(
            lambda tunnel=tunnel: tunnel.attribute(
                mine.inputs[None],
                nt_type=noise,
                nt_samples=3,
                nt_samples_batch_size=1,
                stdevs=0.2,
                baselines=baseline,
                n_steps=4,
            )
        )
        peak = float(expected.abs().max())
        np.testing.assert_allclose(found.maps[o, v], expected[0].sum(0), atol=1e-4 * peak)


@pytest.mark.parametrize("batch", [1, 3, 64])
def test_gradient_shap_equals_captum(batch):
    """Whatever the batch; of more samples than are drawn at once, the mean over the draws."""
    mine = scorer()
    few, many = (
        asked(
            gradient_shap, {"samples": n, "deviation": 0.1}, mine=mine, fill="blur", batch=batch
        ).maps
        for n in (5, 11)
    )
    baseline = fill_image("blur", mine.inputs)[None]
    for o, v, score in each(mine):
        captum = GradientShap(score)

        def drawn(*counts, captum=captum):
            parts = [
                n * captum.attribute(mine.inputs[None], baseline, n_samples=n, stdevs=0.1)
                for n in counts
            ]
            return sum(parts)[0].sum(0) / sum(counts)

        np.testing.assert_allclose(few[o, v], seeded(lambda: drawn(5)), atol=1e-6)
        np.testing.assert_allclose(many[o, v], seeded(lambda: drawn(8, 3)), atol=1e-6)


@pytest.mark.parametrize("name", ["0", "2", "3"])
def test_grad_cam_equals_captum(name):
    mine = scorer()
    found = asked(grad_cam, {"layer": name}, mine=mine)
    assert found.maps.shape == (2, 2, 32, 32)
    for o, v, score in each(mine):
        layer = mine.segmenter.net[int(name)]
        images = mine.inputs[None].clone().requires_grad_()
        expected = LayerGradCam(score, layer).attribute(images)
        assert np.ptp(found.maps[o, v]) > 1e-6
        np.testing.assert_allclose(found.maps[o, v], expected[0, 0].detach(), atol=1e-7)


@pytest.mark.parametrize("attention", ["fast", "stock"])
def test_grad_cam_takes_the_neck_of_a_sam(attention):
    model = load_segmenter({"model": "compact", "attention": attention}, "cpu", "fp32")
    mine = scorer(model)
    found = asked(grad_cam, {}, mine=mine)
    assert found.maps.shape == (2, 2, 16, 16)
    for o, v, score in each(mine):
        images = mine.inputs[None].clone().requires_grad_()
        layer = model.sam.image_encoder.neck
        expected = LayerGradCam(score, layer).attribute(images)[0, 0].detach()
        assert np.ptp(found.maps[o, v]) > 1e-6
        np.testing.assert_allclose(found.maps[o, v], expected, atol=1e-5)


@pytest.mark.slow
def test_integrated_gradients_add_up_to_the_rise_of_the_score():
    mine = scorer()
    found = asked(integrated_gradients, {"steps": 60}, mine=mine, fill="zero", batch=16)
    with torch.no_grad():
        rise = (mine.baseline - mine(torch.zeros_like(mine.inputs)[None])[0]).numpy()
    assert np.abs(rise).min() > 0.05
    np.testing.assert_allclose(found.maps.sum((2, 3)), rise, atol=2e-3)
    shap = asked(gradient_shap, {"samples": 400, "deviation": 0.0}, mine=mine, fill="zero")
    np.testing.assert_allclose(shap.maps.sum((2, 3)), rise, rtol=0.15)


@pytest.mark.parametrize(
    ("name", "settings", "forwards", "to_input"),
    [
        ("integrated_gradients", {"steps": 6}, 6, 6),
        ("integrated_gradients", {"steps": 3, "noise": "vargrad", "samples": 5}, 15, 15),
        ("gradient_shap", {"samples": 11}, 11, 11),
        ("grad_cam", {"layer": "2"}, 1, 0),
    ],
)
def test_every_pass_is_counted(name, settings, forwards, to_input):
    model = FakeSegmenter()
    mine = scorer(model)
    found = asked(method(name), settings, mine=mine)
    assert found.n_forwards == model.encoded - 1 == 4 * forwards  # two organs, two values
    assert found.n_backwards == 4 * forwards
    assert found.n_backwards_to_input == 4 * to_input
    seconds = found.seconds
    assert set(seconds) == {"encode", "decode", "backward", "total"}
    parts = sum(seconds[phase] for phase in ("encode", "decode", "backward"))
    assert parts == pytest.approx(seconds["total"])
    assert all(one > 0 for one in seconds.values())


@pytest.mark.parametrize("name", ["gradient_shap", "integrated_gradients"])
def test_draws_hang_on_the_slices_seed_alone(name):
    settings = {"samples": 3} | ({"steps": 3, "noise": "smoothgrad"} if "integ" in name else {})
    mine = scorer()
    torch.manual_seed(8)
    np.random.seed(8)  # noqa: NPY002
    both = asked(method(name), settings, mine=mine).maps
    after = float(torch.rand(1)), np.random.random()  # noqa: NPY002
    torch.manual_seed(8)
    np.random.seed(8)  # noqa: NPY002
    assert after == (float(torch.rand(1)), np.random.random())  # noqa: NPY002
    alone = scorer().select(np.array([False, True]))
    only = context().select(np.array([False, True]))
    mine = asked(method(name), settings, mine=alone, organs=only.organs, masks=only.masks).maps
    np.testing.assert_allclose(mine[0], both[1], atol=1e-6)
    assert not np.allclose(asked(method(name), settings, seed=4).maps, both, atol=1e-6)


def test_maps_lie_on_the_grid_and_end_at_the_roi():
    found = asked(integrated_gradients, {"steps": 3})
    for guided in (False, True):
        where = context(
            guided, explained=VALUE_NAMES, settings={"variants": ["absolute", "signed"]}
        )
        maps = integrated_gradients.aggregate(found, where)
        assert [(one.organ, one.variant, one.value) for one in maps] == [
            (organ, variant, value)
            for variant in ("absolute", "signed")
            for organ in ORGANS
            for value in VALUE_NAMES
        ]
        assert [one.primary for one in maps] == [True, False, True, False, *[False] * 4]
        for one in maps:
            o, v = ORGANS.index(one.organ), VALUE_NAMES.index(one.value)
            assert np.array_equal(np.isfinite(one.map), rois()[o] if guided else where.domains[o])
            assert one.plans == ()
            raw = found.maps[o, v]
            # pixel (r, c) of 128 covers rows 4r … 4r + 3 of 512
            centre = one.map.reshape(128, 4, 128, 4)[:, 1:3, :, 1:3].mean((1, 3))
            near = np.abs(raw) if one.variant == "absolute" else raw
            inside = np.isfinite(centre)
            assert np.corrcoef(centre[inside], near[inside])[0, 1] > 0.9
            assert (one.variant == "absolute") == (one.map[np.isfinite(one.map)].min() >= 0)


def test_a_map_coarser_or_finer_than_the_grid_keeps_its_level():
    raw = np.random.default_rng(0).random((1, 1, 1024, 1024)).astype(np.float32)
    found = asked(grad_cam, {"layer": "2"})
    one = type(found)(raw, ("soft_dice",), {}, 0, 0, 0)
    where = context().select(np.array([True, False]))
    (whole,) = grad_cam.aggregate(one, where)
    pooled = raw[0, 0].reshape(512, 2, 512, 2).mean((1, 3))
    np.testing.assert_allclose(whole.map, pooled, atol=1e-6)


class Bright(nn.Module):
    """An organ is what is bright: one layer of one weight."""

    def __init__(self, slope=20.0):
        super().__init__()
        self.first = nn.Conv2d(1, 2, 1)
        self.first.weight.data = torch.tensor([0.0, slope]).view(2, 1, 1, 1)
        self.first.bias.data = torch.tensor([0.0, -0.5 * slope])

    def forward(self, x):
        return self.first(x)


@pytest.mark.parametrize("orientation", ["display", "ras"])
@pytest.mark.parametrize("aspect", [False, True])
@pytest.mark.parametrize("name", list(METHODS))
def test_what_supports_the_mask_is_positive_and_in_its_place(name, aspect, orientation):
    """A plain network of fixed classes, in any frame."""
    image = np.full((100, 150), 60, np.uint8)
    image[20:60, 90:140] = 200
    model = FixedClassSegmenter(
        Bright(), {"liver": 1}, size=120, keep_aspect=aspect, orientation=orientation
    )
    settings = {**METHODS[name], **({"layer": "first"} if name == "grad_cam" else {})}
    request = Request("a", 0, image, {"liver": np.array([80.0, 10, 145, 70])})
    scores, skips = score_slice(model, request, run_of(name, settings, fill="zero"))
    assert not skips
    # Grad-CAM's weights are means over the plane, in which what the soft Dice gains inside of the
    # mask and loses outside cancels
    value = "in_mask_probability" if name == "grad_cam" else "soft_dice"
    one = next(one for one in attribute_slice(scores)[0] if one.value == value)
    rows, columns = (np.arange(512) * 100 // 512, np.arange(512) * 150 // 512)
    organ = (image == 200)[np.ix_(rows, columns)]
    inside, outside = one.map[organ], one.map[~organ]
    assert np.median(inside) > 0
    assert np.median(outside) <= 0
    top = one.map >= np.quantile(one.map, 1 - organ.mean())
    assert (top & organ).sum() > 0.9 * organ.sum()


def test_half_the_batch_where_memory_runs_out():
    class Cramped(FakeSegmenter):
        limit = 9

        def encode(self, inputs):
            if len(inputs) > self.limit:
                raise RuntimeError("CUDA out of memory.")
            return super().encode(inputs)

    for name, forwards in (("integrated_gradients", 10), ("gradient_shap", 10)):
        model, batch = Cramped(), BatchSize(8)
        mine = scorer(model)
        expected = asked(method(name), {"steps": 10, "samples": 10}, mine=mine, batch=batch)
        assert batch.value == 8
        model.limit = 3
        found = asked(method(name), {"steps": 10, "samples": 10}, mine=mine, batch=batch)
        assert batch.value == 2
        np.testing.assert_allclose(found.maps, expected.maps, atol=1e-6)
        assert found.n_forwards == found.n_backwards == 4 * forwards
        model.limit = 0
        with pytest.raises(MemoryError, match="one image"):
            asked(method(name), {"steps": 10, "samples": 10}, mine=mine, batch=batch)


def test_an_attempt_that_memory_ended_half_way_does_not_count():
    class Once(FakeSegmenter):
        calls = 0

        def encode(self, inputs):
            self.calls += 1
            if self.calls == 3:  # the unperturbed slice, four steps, and then
                raise RuntimeError("CUDA out of memory.")
            return super().encode(inputs)

    found = asked(integrated_gradients, {"steps": 10}, mine=scorer(Once()), batch=BatchSize(4))
    assert found.n_forwards == found.n_backwards == found.n_backwards_to_input == 4 * 10


@pytest.mark.parametrize("name", ["integrated_gradients", "gradient_shap"])
def test_memory_does_not_grow_with_the_number_of_passes(name):
    largest = []
    mine = scorer()
    for count in (8, 40):
        with LargestTensor() as watch:
            asked(method(name), {"steps": count, "samples": count}, mine=mine, batch=4)
        largest.append(watch.numel)
    assert largest[0] == largest[1]
