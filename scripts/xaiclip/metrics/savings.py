"""What fewer forwards would have saved, and lost: stored score tables, replayed without a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from xaiclip.errors import CaseError
from xaiclip.explain import Method, method, refine
from xaiclip.explain.occlusion import TOP
from xaiclip.explain.plan import Context, Plan
from xaiclip.explain.runner import attribute_slice
from xaiclip.explain.settings import MAP, keys_of
from xaiclip.explain.store import SliceScores
from xaiclip.metrics.explanation import rank_correlation, top_fraction
from xaiclip.metrics.overlap import iou

THINNED = slice(2, None, 4)  # of a map's rows and columns: ranking all pixels took half the time
KEYS = ("method", "guidance", "variant", "value", "plan")
COLUMNS = ("forwards", "forwards_full", "saved", "top20_iou", "rank_correlation", "standard_error")


def replay(scores: SliceScores, settings: Mapping[str, Any]) -> SliceScores:
    """What the same slice would have been with other settings of its method.

    Args:
        scores: a stored result.
        settings: the keys that differ.

    Raises:
        CaseError: the method would make a forward that is not in the stored tables.
    """
    explainer = method(scores.method)
    own = {**scores.context.settings, **settings}
    context = replace(scores.context, settings=own)
    stored = {
        name: {key: row for row, key in enumerate(plan.signatures())}
        for name, plan in scores.plans.items()
    }
    plans: dict[str, Plan] = {}
    rows: dict[str, list[int]] = {}
    chunk = explainer.plans(context)
    while chunk:
        for name, plan in chunk.items():
            try:
                found = [stored[name][key] for key in plan.signatures()]
            except KeyError:
                raise CaseError(
                    f"The scores of {scores.method} do not hold what {dict(settings)} asks for: "
                    "score the slice with these settings."
                ) from None
            plans[name] = plans[name].extended(plan) if name in plans else plan
            rows[name] = [*rows.get(name, []), *found]
        tables = {name: scores.tables[name].take(np.array(rows[name])) for name in plans}
        chunk = refine(explainer, plans, tables, context)
    return replace(scores, context=context, plans=plans, tables=tables)


def shortened(scores: SliceScores, share: float) -> SliceScores:
    """The same with the first ``share`` of each plan's forwards, an even number of them."""
    rows = {
        name: slice(max(2, 2 * round(share * plan.n_forwards / 2)))
        for name, plan in scores.plans.items()
    }
    return replace(
        scores,
        plans={name: plan.take(rows[name]) for name, plan in scores.plans.items()},
        tables={name: table.take(rows[name]) for name, table in scores.tables.items()},
    )


def savings(
    scores: SliceScores,
    shares: Sequence[float],
    stops: Sequence[float] = (),
    maps: Mapping[str, Any] | None = None,
    value: str | None = None,
) -> list[dict[str, Any]]:
    """Rows of what shorter plans would have saved and lost, for one value function.

    Each method is taken at its first variant, and only that variant's forwards count. A method with
    a ``budget`` is replayed at each share of its forwards; any other is cut to its first forwards,
    and replayed with each stopping threshold. The slice counts as full as it was scored. Maps are
    compared at every fourth row and column.

    Args:
        scores: of the slice.
        shares, stops: the budgets and thresholds to replay.
        maps: the method's ``MapSettings``; its defaults if None.
        value: the value function whose maps are compared; the scores' first explained one if None.

    Returns:
        A row for each plan, organ and variant: `KEYS`, ``case``, ``slice``, ``organ``, and
        `COLUMNS`. ``top20_iou`` compares the highest fifth of the map with that of the full map,
        ``rank_correlation`` is Spearman's ρ of the two; forwards are those of the slice.
    """
    kinds = method(scores.method)
    if scores.gradients is not None:  # there is nothing to cut
        return []
    settings = keys_of(kinds.PlanSettings)
    context = replace(
        scores.context,
        settings={**scores.context.settings, **(maps or {})},
        explained=(value,) if value else scores.context.explained[:1],
    )
    scores = replay(replace(scores, context=context), _first(kinds, context))
    shorter = {}
    for share in shares:
        if "budget" in settings:
            shorter[f"budget {share:g}"] = replay(scores, {"budget": share})
        else:
            shorter[f"first {share:.0%}"] = shortened(scores, share)
    if "stop" in settings:
        shorter |= {f"stop {stop:g}": replay(scores, {"stop": stop}) for stop in stops}
    full, _ = attribute_slice(scores)
    rows = []
    for plan, one in shorter.items():
        for whole, part in zip(full, attribute_slice(one)[0], strict=True):
            count, every = (
                sum(side.tables[name].n_forwards for name in whole.plans) for side in (one, scores)
            )
            every_map, some_map = (side.map[THINNED, THINNED] for side in (whole, part))
            rows.append(
                {
                    "case": scores.case,
                    "slice": scores.index,
                    "organ": whole.organ,
                    "method": scores.method,
                    "guidance": scores.guidance,
                    "variant": whole.variant,
                    "value": whole.value,
                    "plan": plan,
                    "forwards": count,
                    "forwards_full": every,
                    "saved": 1 - count / every,
                    "top20_iou": iou(top_fraction(every_map, TOP), top_fraction(some_map, TOP)),
                    "rank_correlation": rank_correlation(every_map, some_map),
                    "standard_error": part.details.get("standard_error"),
                }
            )
    return rows


def _first(explainer: Method, context: Context) -> dict[str, Any]:
    """The settings under which a method makes its primary maps alone."""
    kind = getattr(explainer, MAP, None)
    own: Any = kind and context.read(kind)
    if hasattr(own, "estimators"):
        return {"estimators": own.estimators[:1]}
    if hasattr(own, "variants"):
        made = own.variants or context.read(explainer.PlanSettings).superpixels
        return {"superpixels": made[:1], "variants": made[:1]}
    return {}


def summarise(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Means over cases and organs, one row for each of `KEYS`, and the lowest ``top20_iou``."""
    frame = pd.DataFrame(rows, columns=["case", "slice", "organ", *KEYS, *COLUMNS])
    frame = frame.astype(dict.fromkeys(COLUMNS, float))
    groups = frame.groupby(list(KEYS), sort=False)
    means = groups[list(COLUMNS)].mean()
    means["top20_iou_min"] = groups["top20_iou"].min()
    means["maps"] = groups.size()
    return means.reset_index()
