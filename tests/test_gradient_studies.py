"""Gradient methods: what is refused, and how they go through the workflow."""

import numpy as np
import pytest
import torch

from explain_fakes import ORGANS, PROMPTS, FakeSegmenter, picture, rois, run_of
from gradient_models import METHODS, VALUE_NAMES, asked, scorer
from stored_maps import score_batch
from xaiclip.errors import CaseError, ConfigError
from xaiclip.explain import differentiates, grad_cam, integrated_gradients
from xaiclip.explain.runner import Request, attribute_slice, score_slice
from xaiclip.explain.store import load_scores, save_frame, save_scores, score_frame
from xaiclip.metrics.maps.explained import Explained
from xaiclip.metrics.maps.fidelity import measure
from xaiclip.metrics.rows import _gflops
from xaiclip.models.segmenters.base import Prompts
from xaiclip.models.segmenters.loading import load_segmenter
from xaiclip.targets import SegmenterScorer

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
    done, skips = score_batch(Closed(), requests, run_of(name, METHODS[name]))
    assert not done
    assert [skip.case for skip in skips] == ["a", "b"]
    assert all("gives no gradients" in skip.reason for skip in skips)
    done, skips = score_batch(Closed(), requests, run_of("rise", {"masks": 4}))
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
                FakeSegmenter(), request, run_of(name, settings, seed=5, batch_size=4)
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
