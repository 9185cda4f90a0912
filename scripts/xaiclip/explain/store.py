"""The score results of a batch on disk: new maps, values and metrics need no new forward."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from xaiclip.clock import PHASES
from xaiclip.errors import Skip
from xaiclip.explain import method
from xaiclip.explain.attribution import Attribution
from xaiclip.explain.engine import ScoreTable
from xaiclip.explain.plan import Context, Plan
from xaiclip.files import atomic, load_arrays, save_arrays


@dataclass(frozen=True, eq=False)
class SliceScores:
    """One slice under one method and guidance.

    Attributes:
        case, slice, method, guidance: what was explained, and how.
        context: organs, unperturbed masks, ROIs, settings.
        plans, tables: what was done and what it did, by the plan's name.
        seconds: spent before the first plan ran, by phase and ``total``: preparing the input,
            segmenting it unperturbed (one forward), making the plans.
    """

    case: str
    slice: int
    method: str
    guidance: str
    context: Context
    plans: dict[str, Plan]
    tables: dict[str, ScoreTable]
    seconds: dict[str, float]

    def cost(self, attribution: Attribution, seconds_aggregate: float = 0.0) -> dict[str, float]:
        """What one map took. All organs share the forwards and the seconds.

        Args:
            attribution: one of this slice's maps.
            seconds_aggregate: of `runner.attribute_slice`, which makes all maps together.

        Returns:
            ``n_forwards`` (the unperturbed one included), ``n_forwards_full`` (without guidance),
            ``n_patch`` (perturbations that count for the organ), ``rho`` (their share of the
            perturbations without guidance), ``rho_union`` (the same for the slice),
            ``shared_by`` (organs), and ``seconds_perturb``, ``…encode``, ``…decode``,
            ``…aggregate``, ``…total``.
        """
        organ = self.context.organs.index(attribution.organ)
        plans = [self.plans[name] for name in attribution.plans]
        tables = [self.tables[name] for name in attribution.plans]
        made = sum(table.n_forwards for table in tables)
        full = sum(plan.n_full for plan in plans)
        patches = sum(int(plan.members[:, organ].sum()) for plan in plans)
        parts = [
            self.seconds,
            *(table.seconds for table in tables),
            {"aggregate": seconds_aggregate, "total": seconds_aggregate},
        ]
        return {
            "n_forwards": 1 + made,
            "n_forwards_full": 1 + full,
            "n_patch": patches,
            "rho": patches / full,
            "rho_union": made / full,
            "shared_by": len(self.context.organs),
            **{
                f"seconds_{phase}": sum(part.get(phase, 0.0) for part in parts)
                for phase in (*PHASES, "total")
            },
        }

    def member_scores(self, attribution: Attribution, value: str) -> NDArray[np.float32]:
        """The scores (n_patch,) of the perturbations behind a map, for its organ."""
        organ = self.context.organs.index(attribution.organ)
        return np.concatenate(
            [
                self.tables[name].of([value])[self.plans[name].members[:, organ], organ, 0]
                for name in attribution.plans
            ]
        )


def save_scores(
    path: str | os.PathLike[str], scores: Sequence[SliceScores], skips: Sequence[Skip] = ()
) -> None:
    """Write a batch to one .npz file."""
    arrays: dict[str, NDArray[Any]] = {}
    rows = []
    for i, one in enumerate(scores):
        context = one.context
        arrays |= {f"{i}/image": context.image, f"{i}/masks": context.masks}
        if context.rois is not None:
            arrays[f"{i}/rois"] = context.rois
        for name, plan in one.plans.items():
            table = one.tables[name]
            arrays |= {f"{i}/plans/{name}/{k}": array for k, array in plan.to_arrays().items()}
            arrays |= {f"{i}/tables/{name}/scores": table.scores}
            arrays |= {f"{i}/tables/{name}/baseline": table.baseline}
        rows.append(
            {
                **{key: getattr(one, key) for key in ("case", "slice", "method", "guidance")},
                "organs": context.organs,
                "seed": context.seed,
                "settings": dict(context.settings),
                "explained": context.explained,
                "seconds": one.seconds,
                "plans": {
                    name: {
                        "values": table.values,
                        "seconds": table.seconds,
                        "n_forwards": table.n_forwards,
                    }
                    for name, table in one.tables.items()
                },
            }
        )
    save_arrays(path, arrays, {"scores": rows, "skips": [skip.to_dict() for skip in skips]})


def load_scores(path: str | os.PathLike[str]) -> tuple[list[SliceScores], list[Skip]]:
    """Read what `save_scores` wrote."""
    arrays, meta = load_arrays(path)
    scores = []
    for i, row in enumerate(meta["scores"]):
        method(row["method"])  # its plans' classes may be its own
        mine = _below(arrays, f"{i}/")
        context = Context(
            image=mine["image"],
            organs=tuple(row["organs"]),
            masks=mine["masks"],
            rois=mine.get("rois"),
            seed=row["seed"],
            settings=row["settings"],
            explained=tuple(row["explained"]),
        )
        plans, tables = {}, {}
        for name, facts in row["plans"].items():
            plans[name] = Plan.from_arrays(_below(mine, f"plans/{name}/"))
            tables[name] = ScoreTable(
                **_below(mine, f"tables/{name}/"),
                values=tuple(facts["values"]),
                seconds=facts["seconds"],
                n_forwards=facts["n_forwards"],
            )
        keys = {key: row[key] for key in ("case", "slice", "method", "guidance", "seconds")}
        scores.append(SliceScores(**keys, context=context, plans=plans, tables=tables))
    return scores, [Skip(**skip) for skip in meta["skips"]]


def score_frame(scores: Sequence[SliceScores]) -> pd.DataFrame:
    """The tables as one frame: a row for each case, slice, organ, plan and forward.

    Columns: case, slice, organ, plan, forward (0 = unperturbed, k = the plan's k-th), member
    (whether the forward counts for the organ), and one float32 column per value function.
    """
    parts = []
    for one in scores:
        for name, table in one.tables.items():
            members = one.plans[name].members
            every = np.concatenate([table.baseline[None], table.scores])
            for o, organ in enumerate(one.context.organs):
                part = {
                    "forward": np.arange(len(every), dtype=np.int32),
                    "member": np.concatenate([[True], members[:, o]]),
                    **{value: every[:, o, v] for v, value in enumerate(table.values)},
                }
                keys = {"case": one.case, "slice": one.slice, "organ": organ, "plan": name}
                parts.append(pd.DataFrame({**keys, **part}))
    empty = pd.DataFrame(columns=["case", "slice", "organ", "plan", "forward", "member"])
    return pd.concat(parts, ignore_index=True) if parts else empty


def save_frame(path: str | os.PathLike[str], scores: Sequence[SliceScores]) -> None:
    """Write `score_frame` as Parquet."""
    with atomic(path) as temporary:
        score_frame(scores).to_parquet(temporary, index=False)


def _below(arrays: dict[str, NDArray[Any]], prefix: str) -> dict[str, NDArray[Any]]:
    return {k.removeprefix(prefix): array for k, array in arrays.items() if k.startswith(prefix)}
