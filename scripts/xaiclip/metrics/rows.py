"""Rows of ``explanations.parquet``: one for every organ, explained or not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from xaiclip.errors import Skip
from xaiclip.explain import GRADIENT_PRECISION, differentiates
from xaiclip.masks.roi import SOURCES_OF_PROMPT
from xaiclip.metrics import maps
from xaiclip.metrics.maps.explained import Explained
from xaiclip.metrics.overlap import dice

if TYPE_CHECKING:
    from xaiclip.data.record import Slice
    from xaiclip.explain.attribution import Attribution
    from xaiclip.explain.store import SliceScores

#: What a guidance of the configuration stands for in the table: guidance, source of the ROI.
GUIDANCES: Mapping[str, tuple[str, str | None]] = {
    "full": ("full", None),
    "roi": ("roi", "localizer"),
    "roi_reference": ("roi", "reference"),
    "roi_body": ("roi", "body"),
}


def unreached(
    cases: Sequence[Mapping[str, Any]], slices: Sequence[Slice], skips: Sequence[Skip]
) -> list[dict[str, Any]]:
    """The cases that no slice was taken of: ``case``, ``modality`` and ``skipped``, the reason.

    Args:
        cases: of the batch, with ``name`` and ``modality``.
        slices: that were taken.
        skips: what was left out while taking them.
    """
    taken = {item.case for item in slices}
    reasons = {skip.case: skip.reason for skip in skips if skip.organ is None}
    return [
        {
            "case": case["name"],
            "modality": case["modality"],
            "skipped": reasons.get(case["name"], "no slice was taken"),
        }
        for case in cases
        if case["name"] not in taken
    ]


def explanation_rows(
    item: Slice,
    scores: SliceScores | None,
    attributions: Sequence[Attribution],
    skips: Sequence[Skip],
    *,
    organs: Sequence[str],
    method: str,
    guidance: str,
    prompt: str,
    seed: int,
    segmented: Mapping[str, NDArray[np.bool_] | None],
    reference: Mapping[str, NDArray[np.bool_] | None],
    seconds_aggregate: float,
    seconds_roi: float | None,
    cost: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """The rows of one slice under one method and guidance.

    Args:
        item: the slice.
        scores: its scores; None if nothing of it could be explained.
        attributions: its maps.
        skips: what was left out of it, and why.
        organs: all organs of the study; each gets a row.
        method, guidance, prompt, seed: as configured; ``prompt`` is ``roi`` where the localizer
            gave the box that prompts the segmenter, else ``reference``.
        segmented: (H, W) segmentation of each organ on the slice grid, None where there is none.
        reference: (512, 512) reference of each organ on the canonical grid, or None.
        seconds_aggregate: of making all maps of the slice.
        seconds_roi: of the localizer on this slice; counts where the map needs it, for its ROI or
            for the prompt's box.
        cost: what ``cost.json`` holds.

    Returns:
        Rows of `xaiclip.metrics.schema.EXPLANATIONS`. Seconds and operations are those of the
        slice, which its ``shared_by`` organs share: do not add them up over organs.
    """
    name, source = GUIDANCES[guidance]
    common = {
        "case": item.case,
        "slice": item.index,
        "modality": item.modality,
        "method": method,
        "guidance": name,
        "roi_source": source,
        "seed": seed,
        "device": cost["device"],
        "precision": GRADIENT_PRECISION if differentiates(method) else cost["precision"],
    }
    reasons = {skip.organ: skip.reason for skip in skips}
    explained = {attribution.organ for attribution in attributions}
    rows = [
        {
            **common,
            "organ": organ,
            "primary": True,
            "skipped": reasons.get(organ) or reasons.get(None) or "nothing to explain",
        }
        for organ in organs
        if organ not in explained
    ]
    by_localizer = "localizer" in (source, SOURCES_OF_PROMPT[prompt])
    for one in attributions:
        assert scores is not None
        figures = scores.cost(one, seconds_aggregate)
        roi_seconds = (seconds_roi or 0.0) if by_localizer else 0.0
        figures["seconds_total"] += roi_seconds
        to_input = figures.pop("n_backwards_to_input")
        mask = segmented.get(one.organ)
        label = None if item.label is None else reference[one.organ]
        rows.append(
            {
                **common,
                "organ": one.organ,
                "variant": one.variant,
                "value": one.value,
                "primary": one.primary,
                **figures,
                "seconds_roi": roi_seconds,
                **_gflops(cost, figures, to_input, by_localizer),
                "baseline_dice_gt": _baseline_dice(item, mask, one.organ, organs),
                **maps.columns(Explained(one, scores, label)),
                "lime_r2": one.details.get("r2"),
                "standard_error": one.details.get("standard_error"),
                "reliability": one.details.get("reliability"),
            }
        )
    return rows


def _gflops(
    cost: Mapping[str, Any], figures: Mapping[str, Any], to_input: int, localizer: bool
) -> dict[str, float]:
    """The decoder treats each pair of image and organ by itself: it is linear in organs.

    A backward takes about two forwards: one gradient for what a layer was given, one for its
    weights or for the other factor. It counts for the encoder where it went ``to_input``.
    """
    share = figures["shared_by"] / cost["decoded_organs"]
    encodes = figures["n_forwards"] + 2 * to_input
    decodes = figures["n_forwards"] + 2 * figures["n_backwards"]
    return {
        column: encodes * cost["encode"][count]
        + decodes * share * cost["decode"][count]
        + (cost["localizer"][count] if localizer else 0.0)
        for column, count in (("gflops_ptflops", "ptflops"), ("gflops_total", "total"))
    }


def _baseline_dice(
    item: Slice, mask: NDArray[np.bool_] | None, organ: str, organs: Sequence[str]
) -> float | None:
    if item.label is None or mask is None:
        return None
    reference = item.label == 1 + list(organs).index(organ)
    return dice(mask, reference) if reference.any() else None
