"""Occlusion coarse to fine, against its rule written out pixel by pixel (docs/sampling.md).

Three organs whose places, drops and ROIs are no mirror images of each other.
"""

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import norm

from explain_fakes import context
from xaiclip.explain import occlusion
from xaiclip.explain.engine import ScoreTable
from xaiclip.explain.surface import surface

ORGANS = ("spleen", "liver", "pancreas")
VALUES = ("soft_dice", "in_mask_probability")
GRID = {"window": 128, "stride": 64}  # 7 × 7 windows; every cell is 64 × 64 pixels
BETWEEN = np.arange(32, 512, 64)  # a point in each cell's row, or column
#: Rows and columns of the masks.
PLACES = (((20, 150), (330, 470)), ((250, 300), (40, 260)), ((360, 500), (400, 450)))


def masks():
    found = np.zeros((3, 512, 512), bool)
    for mask, (rows, columns) in zip(found, PLACES, strict=True):
        mask[slice(*rows), slice(*columns)] = True
    return found


def rois():
    found = np.zeros((3, 512, 512), bool)
    for mask, (rows, columns) in zip(found, PLACES, strict=True):
        mask[max(0, rows[0] - 70) : rows[1] + 30, max(0, columns[0] - 10) : columns[1] + 60] = True
    return found


def study(guided, budget):
    return context(
        organs=ORGANS,
        masks=masks(),
        rois=rois() if guided else None,
        settings={**GRID, "budget": budget},
        explained=VALUES,
    )


def drops(windows):
    """Sharp, and of another shape for each organ and value: (N, 3, 2)."""
    x, y = (windows[:, 0] + windows[:, 2]) / 2, (windows[:, 1] + windows[:, 3]) / 2
    found = np.zeros((len(windows), 3, 2))
    for o, (rows, columns) in enumerate(PLACES):
        far = np.hypot((y - np.mean(rows)) / (40 + 30 * o), (x - np.mean(columns)) / (90 - 20 * o))
        found[:, o, 0] = (0.2 + 0.1 * o) * np.exp(-far) + 0.02 * np.sin(x / 50 + o) * np.cos(y / 90)
        found[:, o, 1] = 0.1 * np.exp(-(far**2)) + 0.01 * np.cos(x / 70) * (o + 1)
    return found


def scored(plan):
    scores = (0.9 - drops(plan.windows)).astype(np.float32)
    return ScoreTable(scores, np.full((3, 2), 0.9, np.float32), VALUES, {"total": 1.0}, len(scores))


def every(ctx):
    """All windows, and which of them count for which organ."""
    whole = replace(ctx, settings={**GRID, "budget": 1.0})
    return occlusion.plans(whole)["windows"]


def places_of(windows, mask):
    covered = np.array([mask[y0:y1, x0:x1].sum() for x0, y0, x1, y1 in windows])
    return np.column_stack([windows[:, 0] / 64, windows[:, 1] / 64, 4 * covered / covered.max()])


def next_windows(ctx, made, count):
    """The windows that the rule takes next, one after the other."""
    windows, members = every(ctx).windows, every(ctx).members
    known = [[*map(tuple, windows)].index(tuple(window)) for window in made.windows]
    organs = []
    for o in range(3):
        mine = [k for k in known if members[k, o]]
        guess = surface(
            places_of(windows, ctx.masks[o]), np.array(mine), drops(windows[mine])[:, o, 0]
        )
        cover = np.array(
            [
                [
                    members[k, o] and x0 <= x < x1 and y0 <= y < y1
                    for k, (x0, y0, x1, y1) in enumerate(windows)
                ]
                for y in BETWEEN
                for x in BETWEEN
            ],
            float,
        )
        cover = cover[cover.any(1)]
        cover /= cover.sum(1, keepdims=True)
        heat = cover @ guess.values
        cut = np.sort(heat)[int(np.ceil(0.8 * len(heat) - 1e-9)) - 1]
        organs.append([np.abs(heat - cut), cover * guess.slope, guess.covariance])
    chosen = []
    for _ in range(count):
        worth = np.zeros(len(windows))
        for far, weights, covariance in organs:
            together = weights @ covariance
            cells = np.einsum("ck,ck->c", together, weights)
            own = np.diag(covariance)
            doubtful, free = cells > 1e-9 * cells.max(), own > 1e-9 * own.max()
            sd = np.sqrt(cells[doubtful])
            doubt = norm.cdf(-far[doubtful] / sd) / sd / len(far)
            worth[free] += doubt @ np.abs(together[doubtful][:, free]) / np.sqrt(own[free])
        worth[[*known, *chosen]] = -1
        chosen.append(int(worth.argmax()))
        for organ in organs:
            covariance = organ[2]
            column, own = covariance[:, chosen[-1]], covariance[chosen[-1], chosen[-1]]
            if own > 0:
                organ[2] = covariance - np.outer(column, column) / own
    return [tuple(windows[k]) for k in chosen]


@pytest.mark.parametrize("guided", [False, True])
def test_the_next_windows_are_those_that_tell_most(guided):
    ctx = study(guided, 0.7)
    plan = occlusion.plans(ctx)["windows"]
    for _ in range(2):
        more = occlusion.refine({"windows": plan}, {"windows": scored(plan)}, ctx)["windows"]
        assert more.n_forwards > 2
        assert [*map(tuple, more.windows)] == next_windows(ctx, plan, more.n_forwards)
        plan = plan.extended(more)


def test_what_the_budget_leaves_is_made_in_four_equal_rounds():
    ctx = study(False, 0.7)  # 34 of 49 windows
    plan = occlusion.plans(ctx)["windows"]
    first, sizes = plan.n_forwards, []
    while more := occlusion.refine({"windows": plan}, {"windows": scored(plan)}, ctx):
        sizes.append(more["windows"].n_forwards)
        plan = plan.extended(more["windows"])
    assert first == 16
    assert sizes == [5, 5, 5, 3]
    assert plan.n_forwards == 34


@pytest.mark.parametrize("guided", [False, True])
def test_a_map_is_the_mean_of_measured_and_guessed_drops(guided):
    """For each organ and each value, from its own windows."""
    ctx = study(guided, 0.5)
    plan = occlusion.plans(ctx)["windows"]
    while more := occlusion.refine({"windows": plan}, {"windows": scored(plan)}, ctx):
        plan = plan.extended(more["windows"])
    found = occlusion.aggregate({"windows": plan}, {"windows": scored(plan)}, ctx)
    windows, members = every(ctx).windows, every(ctx).members
    known = np.array([[*map(tuple, windows)].index(tuple(window)) for window in plan.windows])
    for one in found:
        o, v = ORGANS.index(one.organ), VALUES.index(one.value)
        mine = known[members[known, o]]
        guess = surface(places_of(windows, ctx.masks[o]), mine, drops(windows[mine])[:, o, v])
        for y in BETWEEN:
            for x in BETWEEN:
                over = [
                    guess.values[k]
                    for k, (x0, y0, x1, y1) in enumerate(windows)
                    if members[k, o] and x0 <= x < x1 and y0 <= y < y1
                ]
                expected = np.mean(over) if over else np.nan
                assert one.map[y, x] == pytest.approx(expected, abs=1e-5, nan_ok=True)


@pytest.mark.parametrize("shape", [(3, 1), (1, 3)])
def test_windows_meet_rois_along_their_own_axes(shape):
    """A slender ROI: rows of it are not columns of it."""
    rows, columns = shape
    roi = np.zeros((1, 512, 512), bool)
    roi[0, 8 : 8 + 150 * rows, 320 : 320 + 60 * columns] = True
    ctx = context(organs=("liver",), masks=roi, rois=roi, settings={"window": 64, "stride": 64})
    found = {tuple(window) for window in occlusion.plans(ctx)["windows"].windows}
    expected = {
        (x, y, x + 64, y + 64)
        for x in range(0, 512, 64)
        for y in range(0, 512, 64)
        if roi[0, y : y + 64, x : x + 64].any()
    }
    assert found == expected
