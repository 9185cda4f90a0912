"""Which pixels are replaced in which forward: compact plans, never N full masks in memory.

Plans live on the canonical grid (512 × 512) and can be drawn at any size, so that the same plan
perturbs a model input of 256 or 1024 pixels and builds the map. Only drawing masks needs torch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache
from itertools import compress
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from xaiclip.explain.attribution import GRID, Attribution
from xaiclip.explain.recipes import Recipe
from xaiclip.explain.settings import Kind, read

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_CHUNK = 32  # masks drawn at once where they must be drawn at 512: 32 MB


@dataclass(frozen=True, eq=False)
class Plan(ABC):
    """A perturbation plan: N forwards, each with the pixels that it keeps.

    Subclasses are frozen dataclasses whose fields are arrays and numbers.

    Attributes:
        members: bool (N, O): forward k counts for organ o.
        n_full: forwards that the same method would make without guidance.
    """

    members: NDArray[np.bool_]
    n_full: int

    #: The fields that hold one entry for each forward.
    per_forward: ClassVar[tuple[str, ...]] = ("members",)
    _kinds: ClassVar[dict[str, type[Plan]]] = {}

    def __init_subclass__(cls) -> None:
        Plan._kinds[cls.__name__] = cls

    @property
    def n_forwards(self) -> int:
        """N, the number of perturbed images."""
        return len(self.members)

    @abstractmethod
    def keep(self, start: int, stop: int, size: int, device: torch.device | str = "cpu") -> Tensor:
        """What forwards ``start`` to ``stop`` keep: float32 (n, 1, size, size), 1 = kept."""

    def weighted_sum(
        self, weights: NDArray[np.floating[Any]], size: int = GRID
    ) -> NDArray[np.floating[Any]]:
        """Σₖ weights[k] · keepₖ: (N, K) gives (K, size, size).

        This draws a few dozen masks at a time; kinds with a closed form override it.
        """
        import torch

        total = torch.zeros(weights.shape[1], size * size)
        for start in range(0, self.n_forwards, _CHUNK):
            some = torch.from_numpy(weights[start : start + _CHUNK]).float()
            total += some.T @ self.keep(start, start + len(some), size).flatten(1)
        return total.view(-1, size, size).numpy()

    def take(self, rows: slice | NDArray[np.integer[Any]]) -> Self:
        """The plan of some of the forwards."""
        chosen: dict[str, Any] = {name: getattr(self, name)[rows] for name in self.per_forward}
        return replace(self, **chosen)

    def extended(self, other: Self) -> Self:
        """The forwards of this plan, then those of another that differs in nothing else."""
        joined: dict[str, Any] = {
            name: np.concatenate([getattr(self, name), getattr(other, name)])
            for name in self.per_forward
        }
        return replace(self, **joined)

    def signatures(self) -> list[bytes]:
        """What tells the forwards of one kind of plan apart: the same bytes, the same pixels."""
        columns = [getattr(self, name) for name in self.per_forward if name != "members"]
        return [
            b"".join(column[k].tobytes() for column in columns) for k in range(len(self.members))
        ]

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """The plan as plain arrays, for `from_arrays`."""
        arrays = {one.name: np.asarray(getattr(self, one.name)) for one in fields(self)}
        return {"kind": np.asarray(type(self).__name__), **arrays}

    @staticmethod
    def from_arrays(arrays: Mapping[str, NDArray[Any]]) -> Plan:
        """The plan that `to_arrays` gave; its class must have been imported."""
        values: dict[str, Any] = {
            name: array if array.ndim else array.item() for name, array in arrays.items()
        }
        return Plan._kinds[values.pop("kind")](**values)


@dataclass(frozen=True, eq=False)
class WindowPlan(Plan):
    """Forward k hides one rectangle.

    Attributes:
        windows: int (N, 4), XYXY on the canonical grid, the last edge excluded.
    """

    windows: NDArray[np.int32]

    per_forward = ("members", "windows")

    def keep(self, start: int, stop: int, size: int, device: torch.device | str = "cpu") -> Tensor:
        x0, y0, x1, y1 = _brought(self, "windows", device)[start:stop].T[..., None]
        at = _brought(self, "_at", device, size)
        rows, columns = (at >= y0) & (at < y1), (at >= x0) & (at < x1)
        return 1 - (rows[:, None, :, None] & columns[:, None, None, :]).float()

    def _at(self, size: int) -> NDArray[np.int64]:
        return nearest(size)

    def weighted_sum(
        self, weights: NDArray[np.floating[Any]], size: int = GRID
    ) -> NDArray[np.floating[Any]]:
        """From the windows' corners: a summed-area table read backwards."""
        x0, y0, x1, y1 = self.windows.T
        corners = np.zeros((GRID + 1, GRID + 1, weights.shape[1]))
        for y, x, sign in ((y0, x0, 1), (y1, x1, 1), (y0, x1, -1), (y1, x0, -1)):
            np.add.at(corners, (y, x), sign * weights)
        hidden = corners.cumsum(0).cumsum(1).transpose(2, 0, 1)
        at = nearest(size)
        return weights.sum(0, dtype=float)[:, None, None] - hidden[:, at[:, None], at]


@dataclass(frozen=True, eq=False)
class SuperpixelPlan(Plan):
    """Forward k keeps a set of superpixels and hides the others.

    Attributes:
        segments: int (512, 512), superpixel 0 … F − 1, or −1 where pixels are always kept.
        on: bool (N, F), True = kept.
    """

    segments: NDArray[np.int32]
    on: NDArray[np.bool_]

    per_forward = ("members", "on")

    def keep(self, start: int, stop: int, size: int, device: torch.device | str = "cpu") -> Tensor:
        from torch import nn

        on = _brought(self, "on", device)[start:stop].float()
        on = nn.functional.pad(on, (0, 1), value=1)
        return on.index_select(1, _brought(self, "_labels", device, size)).view(-1, 1, size, size)

    def _labels(self, size: int) -> NDArray[np.int64]:
        """Each pixel's column: (size · size,); of label −1 that after the last, always on."""
        at = nearest(size)
        labels = self.segments[np.ix_(at, at)].astype(np.int64) % (self.on.shape[1] + 1)
        return labels.ravel()


@dataclass(frozen=True, eq=False)
class CellPlan(Plan):
    """Forward k keeps a coarse random grid, enlarged bilinearly and shifted (RISE).

    The grid of c × c cells is enlarged to (c + 1) · ⌈512 / c⌉ pixels, of which the shift picks 512,
    as in the published method; the two triangular kernels are applied directly.

    Attributes:
        cells: bool (N, c, c), True = kept.
        shifts: int (N, 2), rows and columns, in [0, ⌈512 / c⌉).
        region: bool (512, 512); outside it every pixel is kept.
    """

    cells: NDArray[np.bool_]
    shifts: NDArray[np.int32]
    region: NDArray[np.bool_]

    per_forward = ("members", "cells", "shifts")

    def keep(self, start: int, stop: int, size: int, device: torch.device | str = "cpu") -> Tensor:
        import torch

        kernel = _brought(self, "_kernel", device, size)
        rows, columns = kernel[:, _brought(self, "shifts", device)[start:stop]].unbind(2)
        cells = _brought(self, "cells", device)[start:stop].float()
        drawn = rows.transpose(0, 1) @ cells @ columns.permute(1, 2, 0)
        return torch.where(_brought(self, "_region", device, size), drawn, 1.0)[:, None]

    def _kernel(self, size: int) -> NDArray[np.float32]:
        return _kernel(self.cells.shape[1], size)

    def _region(self, size: int) -> NDArray[np.bool_]:
        at = nearest(size)
        return self.region[np.ix_(at, at)]

    def weighted_sum(
        self, weights: NDArray[np.floating[Any]], size: int = GRID
    ) -> NDArray[np.floating[Any]]:
        """Two matrix products, whatever N is: cells are summed by shift before they are drawn."""
        drawn = self._sum_by_shift(self._kernel(size), self.cells, weights)
        return np.where(self._region(size), drawn, weights.sum(0)[:, None, None])

    def square_sum(self) -> NDArray[np.floating[Any]]:
        """Σₖ keepₖ² on the canonical grid: (512, 512).

        A pixel lies between two rows and two columns of cells, so the square of the bilinear form
        is again one, in the products of neighbouring kernels and cells.
        """
        index = np.arange(2 * self.cells.shape[1] - 1)
        low, high = index // 2, (index + 1) // 2  # a cell with itself, with the next one, …
        kernel = _kernel(self.cells.shape[1], GRID)
        kernel = kernel[..., low] * kernel[..., high] * (1 + index % 2).astype(np.float32)
        straight = self.cells[:, low][..., low] & self.cells[:, high][..., high]
        crossed = self.cells[:, low][..., high] & self.cells[:, high][..., low]
        pairs = (straight.astype(np.float32) + crossed) / 2
        drawn = self._sum_by_shift(kernel, pairs, np.ones((self.n_forwards, 1)))[0]
        return np.where(self.region, drawn, self.n_forwards)

    def _sum_by_shift(
        self,
        kernel: NDArray[np.float32],
        cells: NDArray[Any],
        weights: NDArray[np.floating[Any]],
    ) -> NDArray[np.floating[Any]]:
        """Σₖ wₖ · R(shiftₖ) cellsₖ C(shiftₖ)ᵀ: (K, 512, 512)."""
        _, shifts, count = kernel.shape
        columns = weights.shape[1]
        weighted = np.einsum("nij,nk->nkij", cells, weights.astype(np.float32))
        by_shift = np.zeros((shifts, shifts, columns, count, count), dtype=np.float32)
        np.add.at(by_shift, tuple(self.shifts.T), weighted)
        table = by_shift.transpose(2, 0, 3, 1, 4).reshape(columns, shifts * count, shifts * count)
        flat = kernel.reshape(len(kernel), shifts * count)
        return flat @ table @ flat.T


class _Itself:
    """A plan as a key: two are the same if they are one object, whatever their fields hold."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Itself) and other.plan is self.plan

    def __hash__(self) -> int:
        return id(self.plan)


def _brought(plan: Plan, part: str, device: torch.device | str, size: int | None = None) -> Tensor:
    """An array that ``plan.keep`` reads, on a device: one copy for a plan, not for each batch.

    ``part`` is a field, or with a size the method that makes it.
    """
    return _bring(_Itself(plan), part, str(device), size)


@lru_cache(maxsize=8)  # of a plan or two: what a finished slice brought is let go of
def _bring(itself: _Itself, part: str, device: str, size: int | None) -> Tensor:
    import torch

    found = getattr(itself.plan, part)
    with torch.inference_mode(False):
        return torch.from_numpy(found if size is None else found(size)).to(device)


def cell_side(count: int) -> int:
    """Side of a cell on the canonical grid: the range of RISE's random shift."""
    return -(-GRID // count)


@lru_cache(maxsize=4)
def _kernel(count: int, size: int) -> NDArray[np.float32]:
    """How much of each of ``count`` cells a pixel takes, by shift: (size, shifts, count)."""
    side = cell_side(count)
    pitch = (count + 1) * side / count
    centres = (np.arange(size) + 0.5) * (GRID / size)
    at = ((centres[:, None] + np.arange(side)) / pitch - 0.5).clip(0, count - 1)
    distance = np.abs(at[..., None] - np.arange(count))
    return (1 - distance).clip(0).astype(np.float32)


def overlap(count: int, size: int, other: int) -> NDArray[np.float64]:
    """How much two pixels of one row share a cell's weight, mean over the shifts: (size, other).

    Between the centres of ``size`` and of ``other`` pixels. Independent cells of variance v give
    masks the covariance v · overlap(rows) · overlap(columns).
    """
    first, second = (_kernel(count, side).astype(np.float64) for side in (size, other))
    return np.tensordot(first, second, ([1, 2], [1, 2])) / first.shape[1]


def nearest(size: int) -> NDArray[np.int64]:
    """Canonical row (or column) under the centre of each of ``size`` pixels."""
    return ((np.arange(size) + 0.5) * (GRID / size)).astype(np.int64)


@dataclass(frozen=True, eq=False)
class Context:
    """What a method knows of one slice: everything but the model.

    Attributes:
        image: uint8 (512, 512), the slice on the canonical grid.
        organs: the O organs that are explained.
        masks: bool (O, 512, 512), their unperturbed segmentations, none empty.
        rois: bool (O, 512, 512), none empty; None = no guidance.
        seed: of every random choice for this slice.
        settings: of the method's section of the configuration what its plans hang on; for
            ``aggregate`` what its maps hang on, too. See `read`.
        explained: the value functions that get a map; the first is the primary one.
        regions: organs' regions, bool (512, 512), from the source that the setting ``regions``
            names; empty if it names none, or the slice lacks it.
    """

    image: NDArray[np.uint8]
    organs: tuple[str, ...]
    masks: NDArray[np.bool_]
    rois: NDArray[np.bool_] | None
    seed: int
    settings: Mapping[str, Any]
    explained: tuple[str, ...] = ("soft_dice",)
    regions: Mapping[str, NDArray[np.bool_]] = field(default_factory=dict)

    def read(self, kind: type[Kind]) -> Kind:
        """The settings as one of the method's dataclasses: ``PlanSettings`` or ``MapSettings``."""
        return read(kind, self.settings)

    @property
    def union(self) -> NDArray[np.bool_]:
        """Where any organ's perturbations may fall: bool (512, 512)."""
        return np.asarray(self.domains.any(axis=0))

    @property
    def domains(self) -> NDArray[np.bool_]:
        """Where each organ's map is defined: bool (O, 512, 512)."""
        return np.ones_like(self.masks) if self.rois is None else self.rois

    def select(self, chosen: NDArray[np.bool_]) -> Context:
        """The same slice with some of its organs: bool (O,)."""
        return replace(
            self,
            organs=tuple(compress(self.organs, chosen)),
            masks=self.masks[chosen],
            rois=None if self.rois is None else self.rois[chosen],
        )

    def without(self, chosen: NDArray[np.bool_]) -> tuple[str, ...]:
        """The organs that `select` would drop."""
        return tuple(compress(self.organs, ~chosen))

    def attributions(
        self,
        variant: str,
        plans: Sequence[str],
        maps: NDArray[np.floating[Any]],
        *,
        primary: bool,
        details: Mapping[str, NDArray[np.floating[Any]]] | None = None,
        errors: NDArray[np.floating[Any]] | None = None,
        units: Sequence[Sequence[dict[str, float]]] | None = None,
        recipes: Sequence[Sequence[Recipe]] | None = None,
    ) -> list[Attribution]:
        """Name the maps of one variant.

        Args:
            variant: the variant's name.
            plans: names of the plans that the maps rest on.
            maps: (O, V, 512, 512), V = number of explained values.
            primary: whether this is the method's first variant.
            details: numbers for each map, (O, V) each.
            errors: (O, V, s, s), the maps' standard errors, s dividing 512.
            units: (O, V), the values of named units.
            recipes: what the maps are made of, by organ and value; see `Attribution`.
        """
        return [
            Attribution(
                organ=organ,
                variant=variant,
                value=value,
                map=np.ascontiguousarray(maps[o, v], dtype=np.float32),
                plans=tuple(plans),
                primary=primary and v == 0,
                details={name: float(numbers[o, v]) for name, numbers in (details or {}).items()},
                error=None if errors is None else errors[o, v].astype(np.float32),
                units={} if units is None else units[o][v],
                recipe=None if recipes is None else recipes[o][v],
            )
            for o, organ in enumerate(self.organs)
            for v, value in enumerate(self.explained)
        ]
