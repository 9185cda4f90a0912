"""Gradient methods: equal to captum called directly, counted as they are made, kept apart."""

import numpy as np
import pytest
import torch
from captum.attr import GradientShap, IntegratedGradients, LayerGradCam, NoiseTunnel
from torch import Tensor, nn

from explain_fakes import ORGANS, PROMPTS, FakeSegmenter, LargestTensor, context, picture, rois
from xaiclip.errors import CaseError, ConfigError
from xaiclip.explain import differentiates, grad_cam, gradient_shap, integrated_gradients, method
from xaiclip.explain.engine import BatchSize, fill_image
from xaiclip.explain.gradients import differentiate
from xaiclip.explain.runner import Request, Run, attribute_slice, score_batch, score_slice
from xaiclip.explain.store import load_scores, save_frame, save_scores, score_frame
from xaiclip.explain.values import VALUES
from xaiclip.metrics.maps.explained import Explained
from xaiclip.metrics.maps.fidelity import measure
from xaiclip.metrics.rows import _gflops
from xaiclip.models.segmenters.base import Prompts
from xaiclip.models.segmenters.fixed import FixedClassSegmenter
from xaiclip.models.segmenters.loading import load_segmenter
from xaiclip.targets import SegmenterScorer

VALUE_NAMES = ("soft_dice", "in_mask_probability")
METHODS = {
    "integrated_gradients": {"steps": 6},
    "gradient_shap": {"samples": 10},
    "grad_cam": {"layer": "2"},
}


def scorer(model=None, values=VALUE_NAMES, prompts=PROMPTS):
    model = model or FakeSegmenter()
    return SegmenterScorer(model, prompts, model.prepare(picture()), values)


def asked(explainer, settings, *, mine=None, fill="mean", batch=4, **changes):
    mine = mine or scorer()
    known = {"explained": VALUE_NAMES, "settings": settings, **changes}
    return differentiate(explainer, mine, context(**known), fill, batch)


def by_hand(model, value, organ, mask):
    """The same score without any code of ours between the model and captum."""

    def score(images: Tensor) -> Tensor:
        probability = model.decode(model.encode(images), PROMPTS).sigmoid()
        return VALUES[value](probability, mask)[:, organ]

    return score


def seeded(attribute, seed=3):
    np.random.seed(seed)  # noqa: NPY002
    torch.manual_seed(seed)
    return attribute()


def each(mine):
    """Every map of a scorer: its place, and the score by hand."""
    for o in range(2):
        for v, value in enumerate(VALUE_NAMES):
            yield o, v, by_hand(mine.segmenter, value, o, mine.mask)


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
            gradient_shap, {"samples": n, "deviation": 0.1}, mine=mine, fill="zero", batch=batch
        ).maps
        for n in (5, 11)
    )
    for o, v, score in each(mine):
        captum, zeros = GradientShap(score), torch.zeros_like(mine.inputs)[None]

        def drawn(*counts, captum=captum, zeros=zeros):
            parts = [
                n * captum.attribute(mine.inputs[None], zeros, n_samples=n, stdevs=0.1)
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
    scores, skips = score_slice(model, request, Run(name, settings, fill="zero"))
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


@pytest.mark.parametrize("name", ["integrated_gradients", "gradient_shap"])
def test_memory_does_not_grow_with_the_number_of_passes(name):
    largest = []
    mine = scorer()
    for count in (8, 40):
        with LargestTensor() as watch:
            asked(method(name), {"steps": count, "samples": count}, mine=mine, batch=4)
        largest.append(watch.numel)
    assert largest[0] == largest[1]


# ------------------------------------------------------------------------------------ refusals


def test_a_value_without_a_gradient_is_refused():
    mine = scorer(values=("hard_dice", "soft_dice"))
    with pytest.raises(ConfigError, match="'hard_dice' has no gradient"):
        asked(integrated_gradients, {}, mine=mine, explained=("hard_dice", "soft_dice"))


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        ("image_encoder.nekc", "no layer 'image_encoder.nekc'; near ones are image_encoder.neck"),
        ("mask_decoder.transformer", "is not run as a module of its own"),
        ("image_encoder.blocks.2", r"has outputs of shape \(1, 16, 16, 192\)"),
        ("image_encoder.blocks.2.attn.qkv", r"outputs of shape"),
    ],
)
def test_a_layer_that_will_not_do_is_refused_with_near_ones(layer, words):
    model = load_segmenter({"model": "compact"}, "cpu", "fp32")
    with pytest.raises(ConfigError, match=words):
        asked(grad_cam, {"layer": layer}, mine=scorer(model))


def test_a_model_without_a_layer_of_its_own_needs_a_name():
    with pytest.raises(ConfigError, match="needs the name of a layer; near ones are 1, 2, 3"):
        asked(grad_cam, {})


class Closed(FakeSegmenter):
    """Switches gradients off by itself."""

    @torch.inference_mode()
    def encode(self, inputs):
        return super().encode(inputs)


@pytest.mark.parametrize("name", list(METHODS))
def test_a_model_without_gradients_costs_its_cases_alone(name):
    boxes = PROMPTS.boxes.numpy() * np.array([140, 160] * 2)
    prompts = dict(zip(ORGANS, boxes, strict=True))
    requests = [Request(case, 0, picture(), prompts) for case in "ab"]
    done, skips = score_batch(Closed(), requests, Run(name, METHODS[name]))
    assert not done
    assert [skip.case for skip in skips] == ["a", "b"]
    assert all("gives no gradients" in skip.reason for skip in skips)
    done, skips = score_batch(Closed(), requests, Run("rise", {"masks": 4}))
    assert len(done) == 2


def test_which_methods_differentiate():
    assert [name for name in ("occlusion", "lime", "rise", *METHODS) if differentiates(name)] == [
        *METHODS
    ]
    with pytest.raises(CaseError):
        asked(integrated_gradients, {}, mine=scorer(Closed()))


# --------------------------------------------------------------------------- in the workflow


@pytest.fixture(scope="module")
def study():
    boxes = PROMPTS.boxes.numpy() * np.array([140, 160] * 2)
    prompts = {**dict(zip(ORGANS, boxes, strict=True)), "pancreas": None}
    regions = {
        organ: np.kron(mask[::16, ::16], np.ones((5, 5), bool))
        for organ, mask in zip(ORGANS, rois(), strict=True)
    }
    found = {}
    for name, settings in METHODS.items():
        for guidance, given in (("full", None), ("roi", regions)):
            request = Request("a", 4, picture(), prompts, given, guidance)
            found[name, guidance] = score_slice(
                FakeSegmenter(), request, Run(name, settings, seed=5, batch_size=4)
            )
    return found


@pytest.mark.parametrize("name", list(METHODS))
def test_guidance_cuts_the_map_and_asks_no_less(study, name):
    (full, skips), (guided, _) = study[name, "full"], study[name, "roi"]
    assert [(skip.organ, skip.reason) for skip in skips] == [
        ("pancreas", "there is no box to prompt the segmenter with")
    ]
    np.testing.assert_array_equal(full.gradients.maps, guided.gradients.maps)
    whole, cut = attribute_slice(full)[0], attribute_slice(guided, {"variants": ["signed"]})[0]
    for a, b in zip(whole, cut, strict=True):
        roi = guided.context.rois[ORGANS.index(b.organ)]
        assert np.isfinite(a.map).all()
        assert np.array_equal(np.isfinite(b.map), roi)
        assert 0 < roi.mean() < 1
        np.testing.assert_array_equal(a.map[roi], b.map[roi])
        for key in ("n_forwards", "n_backwards", "rho", "rho_union", "n_patch"):
            assert full.cost(a)[key] == guided.cost(b)[key]
    cost = full.cost(whole[0], 0.5)
    assert cost["n_forwards"] == cost["n_forwards_full"] == 1 + full.gradients.n_forwards
    assert (cost["rho"], cost["rho_union"], cost["n_patch"]) == (1, 1, None)
    assert cost["seconds_aggregate"] == 0.5
    for phase in ("encode", "decode", "backward", "total"):
        assert cost[f"seconds_{phase}"] > full.gradients.seconds[phase] - 1e-9


def test_the_file_keeps_the_raw_maps(study, tmp_path):
    every = [scores for scores, _ in study.values()]
    save_scores(tmp_path / "batch.npz", every)
    loaded, _ = load_scores(tmp_path / "batch.npz")
    for one, again in zip(every, loaded, strict=True):
        for key, value in vars(one.gradients).items():
            np.testing.assert_equal(vars(again.gradients)[key], value)
        for a, b in zip(attribute_slice(one)[0], attribute_slice(again)[0], strict=True):
            np.testing.assert_array_equal(a.map, b.map)
    save_frame(tmp_path / "batch.parquet", every)
    assert score_frame(every).empty


def test_a_backward_costs_two_forwards_of_what_it_went_through(study):
    cost = {
        "encode": {"ptflops": 10.0, "total": 100.0},
        "decode": {"ptflops": 1.0, "total": 3.0},
        "decoded_organs": 4,
        "localizer": {"ptflops": 1000.0, "total": 2000.0},
    }
    for name, forwards in (("integrated_gradients", 24), ("gradient_shap", 40), ("grad_cam", 4)):
        scores, _ = study[name, "full"]
        figures = scores.cost(attribute_slice(scores)[0][0])
        deep = figures["n_backwards_to_input"]
        assert deep == (0 if name == "grad_cam" else forwards)
        found = _gflops(cost, figures, deep, True)
        decodes = (1 + 3 * forwards) * 2 / 4
        assert found["gflops_total"] == (1 + forwards + 2 * deep) * 100 + decodes * 3 + 2000
        assert found["gflops_ptflops"] == (1 + forwards + 2 * deep) * 10 + decodes + 1000
        worth = measure(Explained(attribute_slice(scores)[0][0], scores, None))
        assert np.isnan([worth["fidelity_dice"], worth["fidelity_iou"]]).all()


def test_prompts_of_three_organs_keep_their_order():
    boxes = torch.tensor([[0.5, 0.45, 0.95, 0.8], [0.15, 0.2, 0.5, 0.7], [0.3, 0.05, 0.85, 0.3]])
    names = ("spleen", "liver", "pancreas")
    model = FakeSegmenter()
    together = SegmenterScorer(
        model, Prompts(names, boxes), model.prepare(picture()), ("in_mask_probability", "soft_dice")
    )
    masks = together.masks
    found = asked(integrated_gradients, {"steps": 3}, mine=together, organs=names, masks=masks)
    for o, name in enumerate(names):
        alone = SegmenterScorer(
            model, Prompts((name,), boxes[o : o + 1]), together.inputs, VALUE_NAMES
        )
        one = asked(
            integrated_gradients, {"steps": 3}, mine=alone, organs=(name,), masks=masks[o : o + 1]
        )
        np.testing.assert_allclose(found.maps[o], one.maps[0], atol=1e-6)
