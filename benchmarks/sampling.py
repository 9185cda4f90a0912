"""RISE's true sampling error, over independent runs: each design at N masks, plain RISE at 2 N.

    PYTHONPATH=scripts python benchmarks/sampling.py [--masks 1000] [--runs 24]
    PYTHONPATH=scripts python benchmarks/sampling.py --masks 250 1000 --runs 16 --scores FILE.npz

Without ``--scores``, of a synthetic score of the 7 × 7 cells. With the score tables of a run, of
the compact model on one of its slices: ``--runs`` counts the runs at the smallest N, and longer
runs are made of the same masks, so there are fewer of them. Prints a Markdown table, and writes it
as CSV.

The true error is the standard deviation over the runs, its mean square taken over the map's
32 × 32 points; a ratio is the root of the mean squared ratio over the organs, with the jackknife's
standard error over the runs.
"""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from xaiclip.explain import engine, rise
from xaiclip.explain.attribution import GRID
from xaiclip.explain.plan import CellPlan, Context
from xaiclip.explain.store import load_scores
from xaiclip.files import atomic
from xaiclip.masks.roi import box_of
from xaiclip.models.segmenters.base import Prompts
from xaiclip.models.segmenters.loading import load_segmenter
from xaiclip.report.markdown import pipe_table
from xaiclip.targets import SegmenterScorer

log = logging.getLogger("sampling")
VALUE = "soft_dice"
DESIGNS = [
    ("plain", "covariance"),
    ("antithetic", "covariance"),
    ("plain", "control_variate"),
    ("antithetic", "control_variate"),
]
Array = NDArray[np.floating[Any]]
Score = Callable[[CellPlan], Array]


def synthetic(plan: CellPlan) -> Array:
    """A score with saturation and an interaction, of nine cells: (N, 1)."""
    inside = plan.cells[:, 2:4, 2:5].mean((1, 2))
    beside = plan.cells[:, 4, 1:6].mean(1)
    return ((0.7 + 0.3 * beside) / (1 + np.exp(-8 * (inside - 0.4))))[:, None]


def model_score(path: Path, number: int) -> Score:
    """The compact model's soft Dice on a slice of a run, boxes drawn round the stored masks."""
    context = load_scores(path)[0][number].context
    segmenter = load_segmenter({"model": "compact"}, "cpu", "fp32")
    boxes = np.stack([box for mask in context.masks if (box := box_of(mask, 5)) is not None])
    prompts = Prompts.from_pixels(list(context.organs), boxes, (GRID, GRID))
    inputs = segmenter.prepare(context.image)
    scorer = SegmenterScorer(segmenter, prompts, inputs, [VALUE])
    log.info("case of %s, slice %d: %s", path, number, ", ".join(context.organs))

    def score(plan: CellPlan) -> Array:
        start = time.perf_counter()
        members = np.ones((plan.n_forwards, len(context.organs)), bool)
        plan = CellPlan(members, plan.n_full, plan.cells, plan.shifts, plan.region)
        table = engine.score(plan, scorer)
        spent = time.perf_counter() - start
        log.info("%d forwards, %.1f/s", plan.n_forwards, plan.n_forwards / spent)
        return table.of([VALUE])[..., 0]

    return score


def drawn(sampling: str, masks: int, seed: int) -> tuple[CellPlan, rise.PlanSettings]:
    """The masks of one run over the whole image."""
    settings: dict[str, Any] = {"masks": masks, "sampling": sampling}
    everywhere = np.ones((1, GRID, GRID), bool)
    image = np.zeros((GRID, GRID), np.uint8)
    context = Context(image, ("organ",), everywhere, None, seed, settings, (VALUE,))
    plan = rise.plans(context)["masks"]
    assert isinstance(plan, CellPlan)
    return plan, rise.PlanSettings(**settings)


def measure(score: Score, masks: list[int], runs: int) -> Iterator[dict[str, Any]]:
    """Rows: the designs at each N, and plain sampling with the covariance at 2 N."""
    smallest = min(masks)
    pools = {}
    for start, sampling in enumerate(("plain", "antithetic")):
        made = []
        for run in range(runs):
            plan, settings = drawn(sampling, smallest, 1000 * start + run)
            made.append((plan, score(plan)))
        pools[sampling] = made, settings

    def maps(sampling: str, estimator: str, count: int) -> tuple[Array, Array]:
        """Each run's slopes and standard errors: (R, K, P, P)."""
        made, settings = pools[sampling]
        each = count // smallest
        found = []
        for first in range(0, len(made) - each + 1, each):
            plan, scores = made[first]
            for other, more in made[first + 1 : first + each]:
                plan, scores = plan.extended(other), np.concatenate([scores, more])
            found.append(rise.slopes_at_points(estimator, plan, scores, settings))
        slopes, errors = zip(*found, strict=True)
        return np.stack(slopes), np.stack(errors)

    for count in masks:
        twice = maps("plain", "covariance", 2 * count)
        for sampling, estimator in DESIGNS:
            yield row(sampling, estimator, count, maps(sampling, estimator, count), twice)
        yield row("plain", "covariance", 2 * count, twice, twice)


def row(
    sampling: str,
    estimator: str,
    count: int,
    own: tuple[Array, Array],
    reference: tuple[Array, Array],
) -> dict[str, Any]:
    """True and estimated errors beside plain sampling's at 2 N."""
    slopes, errors = own
    true = variance(slopes)
    ratio = np.sqrt((true / variance(reference[0])).mean())
    spread = np.hypot(jackknife(slopes), jackknife(reference[0])) if own is not reference else 0.0
    return {
        "sampling": sampling,
        "estimator": estimator,
        "masks": str(count),
        "runs": len(slopes),
        "true error": np.sqrt(true.mean()),
        "estimated error": np.sqrt((errors**2).mean()),
        "ratio to plain covariance at 2 N": ratio,
        "±": ratio * spread / 2,
    }


def variance(maps: Array) -> Array:
    """Variance over the runs, mean over the map: (K,)."""
    return np.asarray(maps.var(0, ddof=1).mean((1, 2)))


def jackknife(maps: Array) -> float:
    """Standard error of the logarithm of the variance, mean over the organs."""
    if len(maps) < 3:  # nothing to leave out
        return float("nan")
    left = [np.log(variance(np.delete(maps, run, 0))).mean() for run in range(len(maps))]
    return float(np.sqrt((len(maps) - 1) * np.var(left)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--masks", type=int, nargs="+", default=[1000], help="N, even numbers")
    parser.add_argument("--runs", type=int, default=24, help="independent runs at the smallest N")
    parser.add_argument("--scores", type=Path, help="score tables of a run: its slices are used")
    parser.add_argument("--slice", type=int, default=0, help="which slice of the tables")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("results/benchmark/sampling.csv"))
    arguments = parser.parse_args()
    smallest = min(arguments.masks)
    if any(count % (2 * smallest) and count != smallest for count in arguments.masks):
        parser.error("each N must be an even multiple of the smallest one")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(arguments.threads)
    score = model_score(arguments.scores, arguments.slice) if arguments.scores else synthetic
    table = pd.DataFrame(measure(score, arguments.masks, arguments.runs))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    with atomic(arguments.out) as temporary:
        table.to_csv(temporary, index=False)
    print(pipe_table(table))


if __name__ == "__main__":
    main()
