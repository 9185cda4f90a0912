"""What a figure is drawn from: files of a study, and one slice and organ in them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xaiclip.data.slices import Slice, load_slices
from xaiclip.errors import CaseError
from xaiclip.explain.attribution import Attribution
from xaiclip.masks.roi import Roi, load_rois
from xaiclip.organs import organs_of
from xaiclip.preprocess import Letterbox

#: Files by their folder below ``results/{run}/``, for example ``scores/lime/roi``.
Sources = Mapping[str, Path]


@dataclass(frozen=True)
class Settings:
    """What to show.

    Attributes:
        classes: class names, background first.
        case: a case of the batch; None = the first that has what the figure shows.
        organ: for figures of one organ.
        prompt: whose segmentation was explained: ``roi`` or ``reference``.
        dpi: dots per inch.
    """

    classes: Sequence[str]
    case: str | None = None
    organ: str = "liver"
    prompt: str = "roi"
    dpi: float = 150

    @property
    def organs(self) -> list[str]:
        """The foreground classes."""
        return organs_of(self.classes)


@dataclass(frozen=True, eq=False)
class Subject:
    """One slice, and the organ that is shown in it."""

    item: Slice
    organ: str

    @property
    def words(self) -> str:
        """For titles."""
        return f"{slice_words(self.item)}, {self.organ}"


def slice_words(item: Slice) -> str:
    """A slice's name for titles."""
    return f"case {item.case} ({item.modality}), slice {item.index}"


def sources_of(paths: Iterable[str | Path], root: str | Path) -> dict[str, Path]:
    """Key files by their folder below the study's folder ``root``."""
    return {Path(path).parent.relative_to(root).as_posix(): Path(path) for path in paths}


def all_slices(sources: Sources) -> list[Slice]:
    """The slices of the batch that every stage behind the figure has finished."""
    slices = load_slices(sources["slices"])[0]
    for key, path in sources.items():
        if key == "preprocessed":
            finished = {f"{row['case']}/{row['index']}" for row in _Stored(path).meta["slices"]}
        elif key.startswith("localization/"):
            finished = set(_Stored(path).meta["seconds"])
        elif key == "roi":
            finished = set(_Stored(path).meta["slices"])
        else:
            continue
        slices = [item for item in slices if item.key in finished]
    return slices


def shown_slices(sources: Sources, settings: Settings) -> list[Slice]:
    """The slices that may be shown.

    Raises:
        CaseError: there is none.
    """
    wanted = [item for item in all_slices(sources) if settings.case in (None, item.case)]
    if not wanted:
        where = "this batch" if settings.case is None else f"case {settings.case}"
        raise CaseError(f"No slice of {where} could be used.{_reasons(sources, settings)}")
    return wanted


def choose_subject(sources: Sources, settings: Settings) -> Subject:
    """The first slice whose wanted organ has a map in every attribution file of the figure.

    Raises:
        CaseError: there is none.
    """
    wanted = shown_slices(sources, settings)
    for item in wanted:
        needed = [key for key in sources if key.startswith("attributions/")]
        if all(_rows_of(sources[key], item, settings.organ) for key in needed):
            return Subject(item, settings.organ)
    where = "this batch" if settings.case is None else f"case {settings.case}"
    raise CaseError(f"The {settings.organ} is not explained in {where}."
                    f"{_reasons(sources, settings)}")  # fmt: skip


def attributions(path: Path, item: Slice, organ: str) -> list[Attribution]:
    """The maps of one organ in one slice, without their standard errors; reads no other."""
    stored = _Stored(path)
    return [
        Attribution(
            map=stored[f"{i}"],
            plans=tuple(row["plans"]),
            **{key: row[key] for key in ("organ", "variant", "value", "primary", "details")},
        )
        for i, row in _rows_of(path, item, organ)
    ]


def primary(maps: Iterable[Attribution]) -> Attribution:
    """The map that the tables show."""
    chosen = next((one for one in maps if one.primary), None)
    if chosen is None:
        raise CaseError("The study has no primary map of this organ.")
    return chosen


def variant(maps: Iterable[Attribution], name: str) -> Attribution | None:
    """The map of a variant, for the value function that the tables show; None if there is none."""
    maps = list(maps)
    value = primary(maps).value
    return next((one for one in maps if (one.variant, one.value) == (name, value)), None)


def plan(path: Path, subject: Subject, name: str | None = None) -> dict[str, NDArray[Any]]:
    """The arrays of a stored plan (the slice's first without a name).

    ``members`` is cut down to the organ, (N,), and ``n_full`` is a number in an array.

    Raises:
        CaseError: the slice or the organ has no plan.
    """
    stored = _Stored(path)
    for i, row in enumerate(stored.meta["scores"]):
        if (row["case"], row["slice"]) != (subject.item.case, subject.item.index):
            continue
        name = name or next(iter(row["plans"]))
        if subject.organ in row["organs"] and name in row["plans"]:
            arrays = stored.below(f"{i}/plans/{name}/")
            arrays["members"] = arrays["members"][:, row["organs"].index(subject.organ)]
            return arrays
    raise CaseError(f"The study has no perturbations of {subject.words}.")


def segmentation(path: Path, item: Slice, organ: str, prompt: str) -> NDArray[np.bool_]:
    """The segmenter's mask, bool (H, W); empty where there is none."""
    stored, name = _Stored(path), f"{item.key}/{organ}/{prompt}"
    return stored[name] if name in stored else np.zeros(item.image.shape, dtype=bool)


def probabilities(path: Path, item: Slice) -> NDArray[np.float32]:
    """The localizer's maps on the slice's own grid: float32 (C, H, W)."""
    maps = _Stored(path)[item.key].astype(np.float32)
    return np.asarray(Letterbox.fit(item.image.shape, maps.shape[-1]).invert(maps))


def roi(path: Path, subject: Subject) -> Roi:
    """The localizer's ROI of the organ."""
    return load_rois(path)[0][subject.item.key][subject.organ]["localizer"]


class _Stored:
    """A file of `files.save_arrays` whose arrays are read one by one: batches can be large."""

    def __init__(self, path: Path) -> None:
        with np.load(path, allow_pickle=False) as file:
            self.meta = json.loads(file["__meta__"].tobytes())
            self._names = frozenset(file.files)
        self._path = path

    def __contains__(self, name: str) -> bool:
        return name in self._names

    def __getitem__(self, name: str) -> NDArray[Any]:
        with np.load(self._path, allow_pickle=False) as file:
            return np.asarray(file[name])

    def below(self, prefix: str) -> dict[str, NDArray[Any]]:
        """The arrays whose names start so, without that start."""
        names = sorted(name for name in self._names if name.startswith(prefix))
        return {name.removeprefix(prefix): self[name] for name in names}


def _rows_of(path: Path, item: Slice, organ: str) -> list[tuple[int, Mapping[str, Any]]]:
    return [
        (i, row)
        for i, row in enumerate(_Stored(path).meta)
        if (row["case"], row["slice"], row["organ"]) == (item.case, item.index, organ)
    ]


def _reasons(sources: Sources, settings: Settings) -> str:
    """Why, as far as the files tell: the first reasons, as a sentence that begins with a space."""
    found: dict[str, None] = {}
    for path in sources.values():
        meta = _Stored(path).meta if path.suffix == ".npz" else None
        for skip in meta.get("skips", []) if isinstance(meta, dict) else []:
            if skip["case"] == (settings.case or skip["case"]) and skip["organ"] in (
                None,
                settings.organ,
            ):
                found[f"{skip['case']}: {skip['reason'].rstrip('.')}"] = None
    return f" Left out: {'; '.join(list(found)[:3])}." if found else ""
