"""Rows of the explanation table: one for every organ, explained or not."""

from types import SimpleNamespace

import numpy as np
import pytest

from xaiclip.data.geometry import Geometry
from xaiclip.data.slices import Slice
from xaiclip.errors import Skip
from xaiclip.evaluate.rows import explanation_rows, unreached
from xaiclip.evaluate.schema import EXPLANATIONS
from xaiclip.explain.attribution import GRID, Attribution

ORGANS = ["liver", "spleen"]
COST = {
    "encode": {"ptflops": 2.0, "total": 3.0},
    "decode": {"ptflops": 1.0, "total": 1.0},
    "localizer": {"ptflops": 5.0, "total": 6.0},
    "decoded_organs": 2,
    "device": "cpu",
    "precision": "fp32",
}


@pytest.fixture
def item():
    label = np.zeros((8, 8), np.uint8)
    label[:4, :4] = 1
    geometry = Geometry(np.eye(4), (8, 8, 4))
    return Slice("c1", 2, "CT", np.arange(64, dtype=np.uint8).reshape(8, 8), label, geometry)


def rows(item, guidance="roi", skips=()):
    mask = np.zeros((GRID, GRID), bool)
    mask[:256, :256] = True
    figures = {"n_forwards": 11, "shared_by": 1, "rho": 0.5, "seconds_total": 2.0}
    scores = SimpleNamespace(
        context=SimpleNamespace(organs=("liver",), masks=mask[None]),
        cost=lambda one, seconds: dict(figures),
        member_scores=lambda one, value: np.array([1.0, 0.5], np.float32),
    )
    one = Attribution("liver", "window", "soft_dice", mask.astype(np.float32), ("p",), True)
    return explanation_rows(
        item,
        scores,
        [one],
        list(skips),
        organs=ORGANS,
        method="occlusion",
        guidance=guidance,
        seed=3,
        segmented={"liver": item.label == 1, "spleen": None},
        reference={"liver": mask, "spleen": ~mask},
        seconds_aggregate=0.1,
        seconds_roi=0.25,
        cost=COST,
    )


def test_every_organ_gets_a_row_of_the_schema(item):
    skips = [Skip("c1", "explain", "the ROI is empty", 2, "spleen")]
    spleen, liver = rows(item, skips=skips)
    assert spleen["skipped"] == "the ROI is empty"
    assert "skipped" not in liver
    assert set(spleen) | set(liver) <= set(EXPLANATIONS.names)
    assert liver["localization_dice_pred"] == liver["baseline_dice_gt"] == 1
    assert liver["fidelity_dice"] == pytest.approx(0.75)


@pytest.mark.parametrize(
    ("guidance", "source", "seconds", "gflops"),
    [
        ("full", None, 2.0, 11 * 3.5),
        ("roi", "localizer", 2.25, 11 * 3.5 + 6),
        ("roi_reference", "reference", 2.0, 11 * 3.5),
    ],
)
def test_the_localizer_is_charged_where_it_gave_the_roi(item, guidance, source, seconds, gflops):
    liver = rows(item, guidance)[-1]
    assert liver["roi_source"] == source
    assert liver["seconds_total"] == seconds
    assert liver["gflops_total"] == gflops


def test_cases_without_a_slice_are_told_with_their_reason(item):
    cases = [{"name": name, "modality": "CT"} for name in ("c1", "c2", "c3")]
    skips = [Skip("c2", "slices", "damaged"), Skip("c1", "slices", "no liver", 2, "liver")]
    assert unreached(cases, [item], skips) == [
        {"case": "c2", "modality": "CT", "skipped": "damaged"},
        {"case": "c3", "modality": "CT", "skipped": "no slice was taken"},
    ]
