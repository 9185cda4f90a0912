"""One slice, one method, one guidance: ask → plan → score, or differentiate; then aggregate.

A script loads the model once and runs `score_each` over its slices. `attribute_slice` needs no
model, nor torch.
"""

from __future__ import annotations

import logging
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from xaiclip.clock import Clock
from xaiclip.data.record import SliceName
from xaiclip.errors import Skip, left_out, refuse_broken
from xaiclip.explain import differentiates, engine, method, refine
from xaiclip.explain.attribution import Attribution, to_canonical_image, to_canonical_mask
from xaiclip.explain.plan import Context
from xaiclip.explain.store import SliceScores
from xaiclip.explain.values import explained

if TYPE_CHECKING:
    from xaiclip.explain.engine import ScoreTable
    from xaiclip.explain.gradients import GradientMethod
    from xaiclip.explain.plan import Plan
    from xaiclip.targets import Model

STAGE = "explain"

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Request(SliceName):
    """A slice, and what of the model's answer to it is to be explained.

    Attributes:
        image: uint8 (H, W), what the model sees.
        prompts: by target (organ or class), what the model needs to be asked for it; for a
            segmenter a box, float (4,) XYXY in pixels of the slice; None = there is none.
        rois: each target's ROI, bool (H, W), if it has one; None = no guidance.
        guidance: the guidance's name, for the record.
        regions: each organ's region, bool (H, W), if the method asks for a source of them.
    """

    image: NDArray[np.uint8]
    prompts: Mapping[str, Any]
    rois: Mapping[str, NDArray[np.bool_]] | None = None
    guidance: str = "full"
    regions: Mapping[str, NDArray[np.bool_]] = field(default_factory=dict)

    @property
    def seed(self) -> int:
        """Of the slice, whatever batch it is in; the same with and without guidance."""
        return zlib.crc32(self.key.encode())


@dataclass(frozen=True)
class Run:
    """How slices are explained: a method and what all methods share."""

    method: str
    settings: Mapping[str, Any]
    values: Sequence[str]
    fill: str
    batch_size: int | Literal["auto"] | engine.BatchSize
    seed: int


def score_slice(
    model: Model,
    request: Request,
    run: Run,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[SliceScores | None, list[Skip]]:
    """Score one slice for all its targets together.

    Args:
        model: what is explained, of any kind that `xaiclip.targets.scorer_type` knows.
        request: the slice, its prompts and ROIs.
        run: method and settings.
        progress: called with the forwards done and their number, plan by plan; of a gradient
            method with the maps.

    Returns:
        The scores, and the targets that were left out: no prompt, no or an empty ROI, refused by
        the scorer (an empty unperturbed segmentation), or no perturbation that meets the ROI. None
        if no target is left.

    Raises:
        CaseError: the method finds nothing to perturb.
    """
    from xaiclip.targets import scorer_type

    explainer = method(run.method)
    clock = Clock(model.device)
    with clock("total"):
        reasons = {target: _unusable(request, target) for target in request.prompts}
        targets = tuple(target for target, reason in reasons.items() if reason is None)
        skips = [_skip(request, target, reason) for target, reason in reasons.items() if reason]
        if not targets:
            return None, skips

        prompts = {target: request.prompts[target] for target in targets}
        kind = scorer_type(model)
        scorer = kind.of_slice(model, request.image, prompts, run.values, clock)
        context = Context(
            image=to_canonical_image(request.image),
            organs=scorer.targets,
            masks=scorer.masks,
            rois=_stack_rois(request, targets),
            seed=run.seed ^ request.seed,
            settings=run.settings,
            explained=explained(scorer.values),
            regions={organ: to_canonical_mask(mask) for organ, mask in request.regions.items()},
        )
        refused = scorer.refused()
        skips += [_skip(request, target, reason) for target, reason in refused.items()]
        usable = np.array([target not in refused for target in targets])
        if not usable.any():
            return None, skips
        context, scorer = context.select(usable), scorer.select(usable)

        plans: dict[str, Plan] = {}
        if not differentiates(run.method):
            with clock("perturb"):
                plans = explainer.plans(context)
            met = np.all([plan.members.any(axis=0) for plan in plans.values()], axis=0)
            if not met.all():
                reason = "no perturbation meets the ROI"
                skips += [_skip(request, target, reason) for target in context.without(met)]
                context, scorer = context.select(met), scorer.select(met)
                with clock("perturb"):
                    plans = explainer.plans(context)

    gradients = None
    if differentiates(run.method):
        from xaiclip.explain.gradients import differentiate

        gradients = differentiate(
            cast("GradientMethod", explainer),
            scorer,
            context,
            run.fill,
            run.batch_size,
            progress=progress,
        )
    tables: dict[str, ScoreTable] = {}
    chunk, plans = plans, {}
    while chunk:
        for name, plan in chunk.items():
            table = engine.score(plan, scorer, run.fill, run.batch_size, progress=progress)
            plans[name] = plans[name].extended(plan) if name in plans else plan
            tables[name] = tables[name].extended(table) if name in tables else table
        with clock("total"), clock("perturb"):
            chunk = refine(explainer, plans, tables, context)
    return SliceScores(
        case=request.case,
        index=request.index,
        method=run.method,
        guidance=request.guidance,
        context=context,
        plans=plans,
        tables=tables,
        seconds=clock.seconds,
        gradients=gradients,
    ), skips


def score_each(
    model: Model, requests: Iterable[Request], count: int, run: Run, skips: list[Skip]
) -> Iterator[SliceScores]:
    """Score slices one after the other; one that cannot be explained is left out with its reason.

    Logs the rate and the time that is left.

    Args:
        model: what is explained.
        requests: the slices; none is kept but the first.
        count: how many they are, at most.
        run: method and settings.
        skips: gets what is left out.

    Raises:
        ConfigError: nothing can be explained, not even a plain image.
    """
    done = forwards = 0
    first, before = None, len(skips)
    # one for the job: what fits is found once, not in each slice
    batch = engine.BatchSize.of(run.batch_size, model.device, model.input_size)
    run = replace(run, batch_size=batch)
    start = time.perf_counter()
    for number, request in enumerate(requests, 1):
        first = first or request
        scores = None
        with left_out(skips, request.case, STAGE, request.index):
            scores, without = score_slice(model, request, run)
            skips += without
        if scores is None:
            _log.warning("%s %s: left out", request.key, run.method)
            continue
        done += 1
        elapsed = time.perf_counter() - start
        forwards += scores.n_forwards
        _log.info(
            "%s %s (%s): slice %d of %d, %.1f forwards/s, %.0f s left",
            request.key,
            run.method,
            request.guidance,
            number,
            count,
            forwards / elapsed,
            elapsed / number * (count - number),
        )
        yield scores
    if first is not None:
        probe = _plain_request(model, first)
        what = f"The model under '{run.method}'"
        refuse_broken(done, skips[before:], what, lambda: score_slice(model, probe, run))


def _plain_request(model: Model, like: Request) -> Request:
    """A plain image with the targets and the guidance of another request."""
    from xaiclip.targets import scorer_type

    image, shown, prompts = scorer_type(model).plain(like.prompts)
    rois = None if like.rois is None else dict.fromkeys(like.prompts, shown)
    regions = dict.fromkeys(like.regions, shown)
    return Request("plain", 0, image, prompts, rois, like.guidance, regions)


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
    explainer = method(scores.method)
    if scores.gradients is not None:
        gradients = scores.gradients.of(context.explained)
        attributions = cast("GradientMethod", explainer).aggregate(gradients, context)
    else:
        attributions = explainer.aggregate(scores.plans, scores.tables, context)
    return attributions, time.perf_counter() - start


def _stack_rois(request: Request, targets: Sequence[str]) -> NDArray[np.bool_] | None:
    if request.rois is None:
        return None
    return np.stack([to_canonical_mask(request.rois[target]) for target in targets])


def _unusable(request: Request, target: str) -> str | None:
    """Why a target cannot be explained in this slice, as far as its prompt and ROI tell."""
    if request.prompts[target] is None:
        return "there is no box to prompt the segmenter with"
    if request.rois is None:
        return None
    if target not in request.rois:
        return "there is no ROI"
    return None if to_canonical_mask(request.rois[target]).any() else "the ROI is empty"


def _skip(request: Request, target: str | None, reason: str) -> Skip:
    return Skip(request.case, STAGE, reason, request.index, target)
