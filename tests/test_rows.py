"""Rows of the explanation table: one for every organ, explained or not; each of its own organ."""

import numpy as np
import pytest

from xaiclip.data.geometry import Geometry
from xaiclip.data.record import Slice
from xaiclip.errors import Skip
from xaiclip.explain.attribution import GRID, Attribution
from xaiclip.explain.engine import ScoreTable
from xaiclip.explain.plan import Context, WindowPlan
from xaiclip.explain.store import SliceScores
from xaiclip.metrics.rows import explanation_rows, unreached
from xaiclip.metrics.schema import EXPLANATIONS

#: As in a config: not by the alphabet. What is explained is a part of it, in the same order.
ORGANS = ["spleen", "liver", "pancreas"]
EXPLAINED = ("spleen", "pancreas")
VALUES = ("soft_dice", "hard_iou", "hard_dice")
COST = {
    "encode": {"ptflops": 2.0, "total": 3.0},
    "decode": {"ptflops": 1.5, "total": 0.75},
    "localizer": {"ptflops": 5.0, "total": 6.0},
    "decoded_organs": 3,
    "device": "cpu",
    "precision": "fp32",
}


def area(top, left, bottom, right, shape=(GRID, GRID)):
    mask = np.zeros(shape, bool)
    mask[top:bottom, left:right] = True
    return mask


#: (8, 6) pixels; the pancreas of the reference is wider than the predicted one.
LABEL = np.zeros((8, 6), np.uint8)
LABEL[:4, :2], LABEL[5:7, 1:5] = 1, 3
SEGMENTED = {"spleen": area(0, 0, 4, 1, (8, 6)), "pancreas": area(5, 1, 7, 4, (8, 6))}
MASKS = {"spleen": area(0, 0, 200, 128), "pancreas": area(300, 100, 460, 340)}
REFERENCE = {
    "spleen": area(0, 0, 256, 100),
    "liver": area(0, 400, 100, 500),
    "pancreas": area(300, 220, 460, 460),
}
#: Highest where spleen and pancreas were found; of the pancreas the left half of it more.
HEAT = {
    "spleen": MASKS["spleen"].astype(np.float32),
    "pancreas": MASKS["pancreas"] + area(300, 100, 460, 220).astype(np.float32),
}
MEMBERS = np.array([[1, 0], [1, 1], [0, 1], [1, 1]], bool)
SCORES = np.random.default_rng(0).random((4, 2, 3)).astype(np.float32)


@pytest.fixture
def item():
    image = np.arange(48, dtype=np.uint8).reshape(8, 6)
    return Slice("c1", 2, "CT", image, LABEL.copy(), Geometry(np.eye(4), (6, 8, 4)))


def slice_scores():
    windows = np.array([[0, 0, 64, 64]] * 4, np.int32)
    return SliceScores(
        case="c1",
        index=2,
        method="occlusion",
        guidance="roi",
        context=Context(
            image=np.zeros((GRID, GRID), np.uint8),
            organs=EXPLAINED,
            masks=np.stack([MASKS[organ] for organ in EXPLAINED]),
            rois=None,
            seed=0,
            settings={},
        ),
        plans={"p": WindowPlan(MEMBERS, 8, windows)},
        tables={"p": ScoreTable(SCORES, np.ones((2, 3), np.float32), VALUES, {"total": 1.0}, 4)},
        seconds={"total": 0.5},
    )


def rows(item, guidance="roi", prompt="roi", skips=(), **changes):
    """By organ; of an organ with two maps the second."""
    known = {
        "organs": ORGANS,
        "method": "occlusion",
        "guidance": guidance,
        "prompt": prompt,
        "seed": 3,
        "segmented": {**SEGMENTED, "liver": None},
        "reference": REFERENCE,
        "seconds_aggregate": 0.25,
        "seconds_roi": 0.125,
        "cost": COST,
    }
    maps = [
        Attribution(organ, "window", "soft_dice", HEAT[organ], ("p",), True, {"r2": 0.1 * position})
        for position, organ in enumerate(EXPLAINED, start=1)
    ]
    made = explanation_rows(item, slice_scores(), maps, list(skips), **{**known, **changes})
    assert all(set(row) <= set(EXPLANATIONS.names) for row in made)
    assert sorted(row["organ"] for row in made) == sorted(ORGANS)
    return {row["organ"]: row for row in made}


def overlap(a, b):
    return 2 * (a & b).sum() / (a.sum() + b.sum())


@pytest.mark.parametrize("organ", EXPLAINED)
def test_a_map_is_scored_against_its_own_organ(item, organ):
    row = rows(item)[organ]
    mask, reference, position = MASKS[organ], REFERENCE[organ], EXPLAINED.index(organ)
    assert row["localization_dice_pred"] == row["localization_iou_pred"] == 1
    assert row["localization_dice_pred_chance"] == pytest.approx(mask.mean())
    assert row["localization_dice_gt_chance"] == pytest.approx(reference.mean())
    assert row["pointing_gt"] == pytest.approx(reference[HEAT[organ] == HEAT[organ].max()].mean())
    assert row["baseline_dice_gt"] == pytest.approx(
        overlap(SEGMENTED[organ], item.label == 1 + ORGANS.index(organ))
    )
    of_organ = SCORES[MEMBERS[:, position], position]
    assert row["fidelity_iou"] == pytest.approx(of_organ[:, 1].mean())
    assert row["fidelity_dice"] == pytest.approx(of_organ[:, 2].mean())
    assert row["lime_r2"] == pytest.approx(0.1 * (position + 1))


def test_forwards_are_the_slices_and_patches_the_organs(item):
    spleen, pancreas = (rows(item)[organ] for organ in EXPLAINED)
    for row in (spleen, pancreas):
        assert (row["n_forwards"], row["n_forwards_full"], row["shared_by"]) == (5, 9, 2)
        assert row["rho_union"] == 4 / 8
        assert row["primary"]
    assert (spleen["n_patch"], pancreas["n_patch"]) == (3, 3)
    assert spleen["rho"] == pancreas["rho"] == 3 / 8


def test_one_of_an_organs_maps_is_primary(item):
    other = Attribution("pancreas", "slic", "soft_dice", HEAT["pancreas"], ("p",), False)
    first = Attribution("pancreas", "window", "soft_dice", HEAT["pancreas"], ("p",), True)
    known = {"organs": ["pancreas"], "method": "lime", "guidance": "full", "prompt": "roi"}
    made = explanation_rows(
        item,
        slice_scores(),
        [other, first],
        [],
        **known,
        seed=3,
        segmented=SEGMENTED,
        reference=REFERENCE,
        seconds_aggregate=0.25,
        seconds_roi=0.125,
        cost=COST,
    )
    assert [(row["variant"], row["primary"]) for row in made] == [("slic", False), ("window", True)]


def test_every_organ_gets_a_row(item):
    made = rows(item, skips=[Skip("c1", "explain", "the ROI is empty", 2, "liver")])
    assert made["liver"]["skipped"] == "the ROI is empty"
    assert all("skipped" not in made[organ] for organ in EXPLAINED)
    assert {(row["case"], row["slice"], row["modality"], row["seed"]) for row in made.values()} == {
        ("c1", 2, "CT", 3)
    }


@pytest.mark.parametrize(
    ("reasons", "skipped"),
    [
        ({}, "nothing to explain"),
        ({None: "too dark"}, "too dark"),
        ({None: "too dark", "liver": "the ROI is empty"}, "the ROI is empty"),
        ({"spleen": "the ROI is empty"}, "nothing to explain"),
    ],
)
def test_why_an_organ_has_no_map(item, reasons, skipped):
    skips = [Skip("c1", "explain", reason, 2, organ) for organ, reason in reasons.items()]
    assert rows(item, skips=skips)["liver"]["skipped"] == skipped


def test_a_slice_that_could_not_be_explained_has_rows_too(item):
    made = explanation_rows(
        item,
        None,
        [],
        [Skip("c1", "explain", "too dark", 2)],
        organs=ORGANS,
        method="rise",
        guidance="full",
        prompt="roi",
        seed=3,
        segmented={},
        reference=REFERENCE,
        seconds_aggregate=0.0,
        seconds_roi=None,
        cost=COST,
    )
    assert [(row["organ"], row["skipped"]) for row in made] == [(o, "too dark") for o in ORGANS]


@pytest.mark.parametrize(
    ("guidance", "prompt", "source", "charged"),
    [
        ("full", "roi", None, True),  # its box is the localizer's
        ("full", "reference", None, False),
        ("roi", "roi", "localizer", True),
        ("roi", "reference", "localizer", True),
        ("roi_reference", "roi", "reference", True),
        ("roi_reference", "reference", "reference", False),
        ("roi_body", "roi", "body", True),
        ("roi_body", "reference", "body", False),
    ],
)
def test_the_localizer_is_charged_where_the_map_needs_it(item, guidance, prompt, source, charged):
    row = rows(item, guidance, prompt)["pancreas"]
    assert row["roi_source"] == source
    assert row["guidance"] == guidance.partition("_")[0]
    assert row["seconds_roi"] == charged * 0.125
    assert row["seconds_total"] == 0.5 + 1.0 + 0.25 + charged * 0.125
    # two of the three organs that cost.json's decode has
    assert row["gflops_ptflops"] == pytest.approx(5 * (2.0 + 2 / 3 * 1.5) + charged * 5.0)
    assert row["gflops_total"] == pytest.approx(5 * (3.0 + 2 / 3 * 0.75) + charged * 6.0)


def test_without_a_reference_nothing_is_compared_with_it(item):
    object.__setattr__(item, "label", None)
    row = rows(item)["pancreas"]
    assert row["localization_dice_pred"] == 1
    assert np.isnan([row["localization_dice_gt"], row["localization_iou_gt"]]).all()
    assert row["baseline_dice_gt"] is None


def test_an_organ_that_the_reference_lacks_has_no_baseline_dice(item):
    item.label[item.label == 3] = 0
    made = rows(item)
    assert made["pancreas"]["baseline_dice_gt"] is None
    assert made["spleen"]["baseline_dice_gt"] > 0


def test_cases_without_a_slice_are_told_with_their_reason(item):
    cases = [{"name": name, "modality": "CT"} for name in ("c1", "c2", "c3")]
    skips = [
        Skip("c2", "slices", "damaged"),
        Skip("c3", "slices", "no liver", 2, "liver"),
        Skip("c1", "slices", "no liver", 2, "liver"),
    ]
    assert unreached(cases, [item], skips) == [
        {"case": "c2", "modality": "CT", "skipped": "damaged"},
        {"case": "c3", "modality": "CT", "skipped": "no slice was taken"},
    ]
