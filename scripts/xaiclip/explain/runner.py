"""One slice, one method, one guidance: prepare → segment → plan → score; then aggregate.

A script loads the segmenter once and runs `score_batch` over its slices.
"""

from __future__ import annotations

import logging
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from xaiclip.errors import Skip, left_out, refuse_broken
from xaiclip.explain import engine, method, refine
from xaiclip.explain.attribution import Attribution, to_canonical_image, to_canonical_mask
from xaiclip.explain.plan import Context
from xaiclip.explain.store import SliceScores
from xaiclip.explain.values import explained
from xaiclip.models.segmenters.base import Prompts
from xaiclip.models.segmenters.predict import plain_slice

if TYPE_CHECKING:
    from xaiclip.explain.engine import ScoreTable
    from xaiclip.models.segmenters.base import Segmenter

STAGE = "explain"

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Target:
    """A slice that is to be explained.

    Attributes:
        case, slice: where it comes from.
        image: uint8 (H, W), what the segmenter sees.
        boxes: each organ's prompt, float (4,) XYXY in pixels of the slice; None = no box.
        rois: each organ's ROI, bool (H, W), if it has one; None = no guidance.
        guidance: the guidance's name, for the record.
    """

    case: str
    slice: int
    image: NDArray[np.uint8]
    boxes: Mapping[str, NDArray[np.floating[Any]] | None]
    rois: Mapping[str, NDArray[np.bool_]] | None = None
    guidance: str = "full"

    @property
    def seed(self) -> int:
        """Of the slice, whatever batch it is in; the same with and without guidance."""
        return zlib.crc32(f"{self.case}/{self.slice}".encode())


@dataclass(frozen=True)
class Run:
    """How slices are explained: a method and what all methods share."""

    method: str
    settings: Mapping[str, Any]
    values: Sequence[str] = ("soft_dice", "in_mask_probability", "hard_dice", "hard_iou")
    fill: str = "mean"
    batch_size: int | Literal["auto"] | engine.BatchSize = "auto"
    seed: int = 0


def score_slice(
    segmenter: Segmenter,
    target: Target,
    run: Run,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[SliceScores | None, list[Skip]]:
    """Score one slice for all its organs together.

    Args:
        segmenter: the model that is explained.
        target: the slice, its prompts and ROIs.
        run: method and settings.
        progress: called with the forwards done and their number, plan by plan.

    Returns:
        The scores, and the organs that were left out: no box, no or an empty ROI, an empty
        unperturbed segmentation, or no perturbation that meets the ROI. None if no organ is left.

    Raises:
        CaseError: the method finds nothing to perturb.
    """
    explainer = method(run.method)
    clock = engine.Clock(segmenter.device)
    with clock("total"):
        reasons = {organ: _unusable(target, organ) for organ in target.boxes}
        organs = tuple(organ for organ, reason in reasons.items() if reason is None)
        skips = [_skip(target, organ, reason) for organ, reason in reasons.items() if reason]
        if not organs:
            return None, skips

        with clock("encode"):
            inputs = segmenter.prepare(target.image)
        baseline = engine.segment(segmenter, inputs, _prompts(target, organs), clock)
        context = Context(
            image=to_canonical_image(target.image),
            organs=organs,
            masks=baseline.canonical_masks(),
            rois=_stack_rois(target, organs),
            seed=run.seed ^ target.seed,
            settings=run.settings,
            explained=explained(tuple(run.values)),
        )
        segmented = context.masks.any((1, 2)) & baseline.mask.flatten(1).any(1).cpu().numpy()
        reason = "the unperturbed segmentation is empty"
        skips += [_skip(target, organ, reason) for organ in context.without(segmented)]
        context, baseline = context.select(segmented), baseline.select(segmented)
        if not context.organs:
            return None, skips

        with clock("perturb"):
            plans = explainer.plans(context)
            met = np.all([plan.members.any(axis=0) for plan in plans.values()], axis=0)
            if not met.all():
                reason = "no perturbation meets the ROI"
                skips += [_skip(target, organ, reason) for organ in context.without(met)]
                context, baseline = context.select(met), baseline.select(met)
                plans = explainer.plans(context)

    prompts = _prompts(target, context.organs)
    tables: dict[str, ScoreTable] = {}
    chunk, plans = plans, {}
    while chunk:
        for name, plan in chunk.items():
            table = engine.score(
                plan,
                segmenter,
                inputs,
                prompts,
                run.values,
                run.fill,
                run.batch_size,
                baseline=baseline,
                progress=progress,
            )
            plans[name] = plans[name].extended(plan) if name in plans else plan
            tables[name] = tables[name].extended(table) if name in tables else table
        with clock("total"), clock("perturb"):
            chunk = refine(explainer, plans, tables, context)
    return SliceScores(
        case=target.case,
        slice=target.slice,
        method=run.method,
        guidance=target.guidance,
        context=context,
        plans=plans,
        tables=tables,
        seconds=clock.seconds,
    ), skips


def score_batch(
    segmenter: Segmenter, targets: Sequence[Target], run: Run
) -> tuple[list[SliceScores], list[Skip]]:
    """Score slices one after the other; one that cannot be explained is left out with its reason.

    Logs the rate and the time that is left.

    Raises:
        ConfigError: nothing can be explained, not even a plain image.
    """
    done: list[SliceScores] = []
    skips: list[Skip] = []
    # one for the job: what fits is found once, not in each slice
    batch = engine.BatchSize.of(run.batch_size, segmenter.device, segmenter.input_size)
    run = replace(run, batch_size=batch)
    start = time.perf_counter()
    for number, target in enumerate(targets, 1):
        scores = None
        with left_out(skips, target.case, STAGE, target.slice):
            scores, without = score_slice(segmenter, target, run)
            skips += without
        if scores is None:
            _log.warning("%s/%d %s: left out", target.case, target.slice, run.method)
            continue
        done.append(scores)
        elapsed = time.perf_counter() - start
        forwards = sum(table.n_forwards for one in done for table in one.tables.values())
        _log.info(
            "%s/%d %s (%s): slice %d of %d, %.1f forwards/s, %.0f s left",
            target.case,
            target.slice,
            run.method,
            target.guidance,
            number,
            len(targets),
            forwards / elapsed,
            elapsed / number * (len(targets) - number),
        )
    if targets:
        probe = _plain_target(targets[0])
        what = f"The segmenter under '{run.method}'"
        refuse_broken(len(done), skips, what, lambda: score_slice(segmenter, probe, run))
    return done, skips


def _plain_target(like: Target) -> Target:
    """A plain image with the organs and the guidance of another target."""
    image, disk, box = plain_slice()
    rois = None if like.rois is None else dict.fromkeys(like.boxes, disk)
    return Target("plain", 0, image, dict.fromkeys(like.boxes, box), rois, like.guidance)


def attribute_slice(
    scores: SliceScores,
    settings: Mapping[str, Any] | None = None,
    values: Sequence[str] = (),
) -> tuple[list[Attribution], float]:
    """Build the maps of a slice from its scores; no model is needed.

    Args:
        scores: of the slice, with the settings that its plans hang on.
        settings: what the maps hang on besides, the method's ``MapSettings``.
        values: the value functions that get a map; those of the scores' own context if none.

    Returns:
        The maps, and the seconds that all of them took together.
    """
    start = time.perf_counter()
    context = replace(
        scores.context,
        settings={**scores.context.settings, **(settings or {})},
        explained=tuple(values) or scores.context.explained,
    )
    attributions = method(scores.method).aggregate(scores.plans, scores.tables, context)
    return attributions, time.perf_counter() - start


def _prompts(target: Target, organs: Sequence[str]) -> Prompts:
    height, width = target.image.shape
    boxes = np.array([target.boxes[organ] for organ in organs])
    return Prompts.from_pixels(organs, boxes, (height, width))


def _stack_rois(target: Target, organs: Sequence[str]) -> NDArray[np.bool_] | None:
    if target.rois is None:
        return None
    return np.stack([to_canonical_mask(target.rois[organ]) for organ in organs])


def _unusable(target: Target, organ: str) -> str | None:
    """Why an organ cannot be explained in this slice, as far as its prompt and ROI tell."""
    if target.boxes[organ] is None:
        return "there is no box to prompt the segmenter with"
    if target.rois is None:
        return None
    if organ not in target.rois:
        return "there is no ROI"
    return None if to_canonical_mask(target.rois[organ]).any() else "the ROI is empty"


def _skip(target: Target, organ: str | None, reason: str) -> Skip:
    return Skip(target.case, STAGE, reason, target.slice, organ)
