"""The score results of a batch on disk: new maps, values and metrics need no new forward."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from xaiclip.clock import PHASES
from xaiclip.data.record import SliceName
from xaiclip.errors import Skip
from xaiclip.explain import method
from xaiclip.explain.attribution import Attribution
from xaiclip.files import Arrays, atomic, open_arrays, writing_arrays

if TYPE_CHECKING:
    import pandas as pd

    from xaiclip.explain.engine import ScoreTable
    from xaiclip.explain.gradients import Gradients
    from xaiclip.explain.plan import Context, Plan


@dataclass(frozen=True, eq=False)
class SliceScores(SliceName):
    """One slice under one method and guidance.

    Attributes:
        method, guidance: how it was explained.
        context: organs, unperturbed masks, ROIs, settings.
        plans, tables: what was done and what it did, by the plan's name.
        seconds: spent before the first plan ran, by phase and ``total``: preparing the input,
            segmenting it unperturbed (one forward), making the plans.
        gradients: what a gradient method got; it has no plans.
    """

    method: str
    guidance: str
    context: Context
    plans: dict[str, Plan]
    tables: dict[str, ScoreTable]
    seconds: dict[str, float]
    gradients: Gradients | None = None

    @property
    def n_forwards(self) -> int:
        """Of all plans, or of the gradients; without the unperturbed one."""
        if self.gradients is not None:
            return self.gradients.n_forwards
        return sum(table.n_forwards for table in self.tables.values())

    @property
    def seconds_total(self) -> float:
        """Of everything that was asked; without making the maps."""
        asked = [table.seconds for table in self.tables.values()]
        asked += [self.gradients.seconds] if self.gradients is not None else []
        return sum(part.get("total", 0.0) for part in (self.seconds, *asked))

    def cost(self, attribution: Attribution, seconds_aggregate: float = 0.0) -> dict[str, Any]:
        """What one map took. All organs share the forwards and the seconds.

        Args:
            attribution: one of this slice's maps.
            seconds_aggregate: of `runner.attribute_slice`, which makes all maps together.

        Returns:
            ``n_forwards`` (the unperturbed one included), ``n_forwards_full`` (without guidance),
            ``n_patch`` (perturbations that count for the organ), ``rho`` (their share of the
            perturbations without guidance), ``rho_union`` (the same for the slice),
            ``n_backwards``, ``n_backwards_to_input``, ``shared_by`` (organs), and ``seconds_…``
            of each of `PHASES` and ``seconds_total``.
            A gradient method asks the same whatever the guidance: its shares are 1, and it has no
            ``n_patch``. Its maps share all it asked.
        """
        asked = self.gradients
        if asked is not None:
            return {
                "n_forwards": 1 + asked.n_forwards,
                "n_forwards_full": 1 + asked.n_forwards,
                "n_backwards": asked.n_backwards,
                "n_backwards_to_input": asked.n_backwards_to_input,
                "n_patch": None,
                "rho": 1.0,
                "rho_union": 1.0,
                "shared_by": len(self.context.organs),
                **self._seconds([asked.seconds], seconds_aggregate),
            }
        organ = self.context.organs.index(attribution.organ)
        plans = [self.plans[name] for name in attribution.plans]
        tables = [self.tables[name] for name in attribution.plans]
        made = sum(table.n_forwards for table in tables)
        full = sum(plan.n_full for plan in plans)
        patches = sum(int(plan.members[:, organ].sum()) for plan in plans)
        return {
            "n_forwards": 1 + made,
            "n_forwards_full": 1 + full,
            "n_backwards": 0,
            "n_backwards_to_input": 0,
            "n_patch": patches,
            "rho": patches / full,
            "rho_union": made / full,
            "shared_by": len(self.context.organs),
            **self._seconds([table.seconds for table in tables], seconds_aggregate),
        }

    def _seconds(
        self, asked: Sequence[dict[str, float]], seconds_aggregate: float
    ) -> dict[str, float]:
        last = {"aggregate": seconds_aggregate, "total": seconds_aggregate}
        return {
            f"seconds_{phase}": sum(part.get(phase, 0.0) for part in (self.seconds, *asked, last))
            for phase in (*PHASES, "total")
        }

    def member_scores(self, attribution: Attribution, value: str) -> NDArray[np.float32]:
        """The scores (n_patch,) of the perturbations behind a map, for its organ.

        None behind gradients, nor of a value that was not scored.
        """
        organ = self.context.organs.index(attribution.organ)
        parts = [
            self.tables[name].of([value])[self.plans[name].members[:, organ], organ, 0]
            for name in attribution.plans
            if value in self.tables[name].values
        ]
        return np.concatenate([np.empty(0, np.float32), *parts])


def save_scores(
    path: str | os.PathLike[str], scores: Iterable[SliceScores], skips: Sequence[Skip] = ()
) -> None:
    """Write a batch to one .npz file; none of the scores is kept.

    What is left out while they are made may still be added to ``skips``.
    """
    rows = []
    with writing_arrays(path) as writer:
        for i, one in enumerate(scores):
            for name, array in _arrays_of(one).items():
                writer[f"{i}/{name}"] = array
            rows.append(_facts_of(one))
        writer.meta = {"scores": rows, "skips": [skip.to_dict() for skip in skips]}


def _arrays_of(one: SliceScores) -> dict[str, NDArray[Any]]:
    context = one.context
    arrays: dict[str, NDArray[Any]] = {"image": context.image, "masks": context.masks}
    if context.rois is not None:
        arrays["rois"] = context.rois
    arrays |= {f"regions/{organ}": mask for organ, mask in context.regions.items()}
    for name, plan in one.plans.items():
        table = one.tables[name]
        arrays |= {f"plans/{name}/{k}": array for k, array in plan.to_arrays().items()}
        arrays |= {f"tables/{name}/scores": table.scores}
        arrays |= {f"tables/{name}/baseline": table.baseline}
    if one.gradients is not None:
        arrays["gradients"] = one.gradients.maps
    return arrays


def _facts_of(one: SliceScores) -> dict[str, Any]:
    context = one.context
    return {
        "case": one.case,
        "slice": one.index,
        "method": one.method,
        "guidance": one.guidance,
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
        "gradients": one.gradients
        and {key: value for key, value in vars(one.gradients).items() if key != "maps"},
    }


class StoredScores:
    """What `save_scores` wrote: the scores of a slice are read when they are asked for.

    Attributes:
        numbers: of each slice, by case and index.
        skips: what was left out.
    """

    def __init__(self, stored: Arrays) -> None:
        self._stored = stored
        rows = stored.meta["scores"]
        self.numbers = {(row["case"], row["slice"]): i for i, row in enumerate(rows)}
        self.skips = [Skip(**skip) for skip in stored.meta["skips"]]

    def __len__(self) -> int:
        return len(self._stored.meta["scores"])

    def read(self, number: int) -> SliceScores:
        """The scores of that number."""
        return _read(self._stored, number)


@contextmanager
def open_scores(path: str | os.PathLike[str]) -> Iterator[StoredScores]:
    """The scores of a batch, for reading slice by slice."""
    with open_arrays(path) as stored:
        yield StoredScores(stored)


def load_scores(path: str | os.PathLike[str]) -> tuple[list[SliceScores], list[Skip]]:
    """Read what `save_scores` wrote."""
    with open_scores(path) as stored:
        return [stored.read(i) for i in range(len(stored))], stored.skips


def load_plan(
    path: str | os.PathLike[str], of: SliceName, organ: str, name: str | None = None
) -> dict[str, NDArray[Any]]:
    """The arrays of one plan of what `save_scores` wrote; reads no other, and needs no torch.

    Args:
        path: of the batch.
        of: the slice.
        organ: one of its organs.
        name: of the plan; None for the slice's first.

    Returns:
        As `Plan.to_arrays` gave them, ``members`` cut down to the organ: (N,).

    Raises:
        KeyError: there is no such plan.
    """
    with open_arrays(path) as stored:
        for i, row in enumerate(stored.meta["scores"]):
            if (row["case"], row["slice"]) == (of.case, of.index) and organ in row["organs"]:
                arrays = stored.below(f"{i}/plans/{name or next(iter(row['plans']))}/")
                arrays["members"] = arrays["members"][:, row["organs"].index(organ)]
                return arrays
    raise KeyError(of.key)


def _read(stored: Arrays, number: int) -> SliceScores:
    from xaiclip.explain.engine import ScoreTable
    from xaiclip.explain.plan import Context, Plan

    row, mine = stored.meta["scores"][number], stored.below(f"{number}/")
    method(row["method"])  # its plans' classes may be its own
    context = Context(
        image=mine["image"],
        organs=tuple(row["organs"]),
        masks=mine["masks"],
        rois=mine.get("rois"),
        seed=row["seed"],
        settings=row["settings"],
        explained=tuple(row["explained"]),
        regions=_below(mine, "regions/"),
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
    gradients = None
    if facts := row["gradients"]:
        from xaiclip.explain.gradients import Gradients  # torch

        values = tuple(facts.pop("values"))
        gradients = Gradients(maps=mine["gradients"], values=values, **facts)
    return SliceScores(
        case=row["case"],
        index=row["slice"],
        method=row["method"],
        guidance=row["guidance"],
        context=context,
        plans=plans,
        tables=tables,
        seconds=row["seconds"],
        gradients=gradients,
    )


def score_frame(scores: Iterable[SliceScores]) -> pd.DataFrame:
    """The tables as one frame: a row for each case, slice, organ, plan and forward.

    Columns: case, slice, organ, plan, forward (0 = unperturbed, k = the plan's k-th), member
    (whether the forward counts for the organ), and one float32 column per value function.
    """
    import pandas as pd

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
                keys = {"case": one.case, "slice": one.index, "organ": organ, "plan": name}
                parts.append(pd.DataFrame({**keys, **part}))
    empty = pd.DataFrame(columns=["case", "slice", "organ", "plan", "forward", "member"])
    return pd.concat(parts, ignore_index=True) if parts else empty


def save_frame(path: str | os.PathLike[str], scores: Iterable[SliceScores]) -> None:
    """Write `score_frame` as Parquet."""
    with atomic(path) as temporary:
        score_frame(scores).to_parquet(temporary, index=False)


def _below(arrays: dict[str, NDArray[Any]], prefix: str) -> dict[str, NDArray[Any]]:
    return {k.removeprefix(prefix): array for k, array in arrays.items() if k.startswith(prefix)}
