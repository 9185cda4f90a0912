"""What a figure is drawn from: files of a study, and one slice and organ in them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xaiclip.data import record
from xaiclip.data.record import Slice, SliceName
from xaiclip.errors import CaseError
from xaiclip.explain.attribution import Attribution, open_attributions
from xaiclip.explain.store import load_plan
from xaiclip.files import load_meta
from xaiclip.localizer.probabilities import localized_keys, open_probabilities
from xaiclip.masks.roi import Roi, load_roi, roi_keys
from xaiclip.masks.segmented import open_masks
from xaiclip.organs import organs_of
from xaiclip.preprocess import Letterbox, preprocessed_keys

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
    case: str | None
    organ: str
    prompt: str
    dpi: float

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


def slice_names(sources: Sources) -> list[SliceName]:
    """The slices of the batch that every stage behind the figure has finished; none is read."""
    names = record.slice_names(sources["slices"])
    for key, path in sources.items():
        if key == "preprocessed":
            finished = preprocessed_keys(path)
        elif key.startswith("localization/"):
            finished = localized_keys(path)
        elif key == "roi":
            finished = roi_keys(path)
        else:
            continue
        names = [name for name in names if name.key in finished]
    return names


def shown_names(sources: Sources, settings: Settings) -> list[SliceName]:
    """The slices that may be shown.

    Raises:
        CaseError: there is none.
    """
    wanted = [name for name in slice_names(sources) if settings.case in (None, name.case)]
    if not wanted:
        where = "this batch" if settings.case is None else f"case {settings.case}"
        raise CaseError(f"No slice of {where} could be used.{_reasons(sources, settings)}")
    return wanted


def slice_of(sources: Sources, name: SliceName) -> Slice:
    """One slice of the batch."""
    return record.load_slice(sources["slices"], name)


def choose_subject(sources: Sources, settings: Settings) -> Subject:
    """The first slice whose wanted organ has a map in every attribution file of the figure.

    Raises:
        CaseError: there is none.
    """
    wanted = shown_names(sources, settings)
    explained = []
    for key in sources:
        if key.startswith("attributions/"):
            with open_attributions(sources[key]) as stored:
                rows = stored.find(organ=settings.organ)
                explained.append({(row["case"], row["slice"]) for _, row in rows})
    for name in wanted:
        if all((name.case, name.index) in slices for slices in explained):
            return Subject(slice_of(sources, name), settings.organ)
    where = "this batch" if settings.case is None else f"case {settings.case}"
    raise CaseError(f"The {settings.organ} is not explained in {where}."
                    f"{_reasons(sources, settings)}")  # fmt: skip


def attributions(path: Path, name: SliceName, organ: str) -> list[Attribution]:
    """The maps of one organ in one slice; reads no other."""
    with open_attributions(path) as stored:
        return [
            stored.read(i) for i, _ in stored.find(case=name.case, slice=name.index, organ=organ)
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
    try:
        return load_plan(path, subject.item, subject.organ, name)
    except KeyError as error:
        raise CaseError(f"The study has no perturbations of {subject.words}.") from error


def segmentation(path: Path, item: Slice, organ: str, prompt: str) -> NDArray[np.bool_]:
    """The segmenter's mask, bool (H, W); empty where there is none."""
    with open_masks(path) as masks:
        mask = masks.of(item, organ, prompt)
    return np.zeros(item.image.shape, dtype=bool) if mask is None else mask


def probabilities(path: Path, item: Slice) -> NDArray[np.float32]:
    """The localizer's maps on the slice's own grid: float32 (C, H, W)."""
    with open_probabilities(path) as stored:
        maps = stored[item.key].astype(np.float32)
    return np.asarray(Letterbox.fit(item.image.shape, maps.shape[-1]).invert(maps))


def roi(path: Path, subject: Subject) -> Roi:
    """The localizer's ROI of the organ."""
    return load_roi(path, subject.item.key, subject.organ, "localizer")


def _reasons(sources: Sources, settings: Settings) -> str:
    """Why, as far as the files tell: the first reasons, as a sentence that begins with a space."""
    found: dict[str, None] = {}
    for path in sources.values():
        meta = load_meta(path) if path.suffix == ".npz" else None
        for skip in meta.get("skips", []) if isinstance(meta, dict) else []:
            if skip["case"] == (settings.case or skip["case"]) and skip["organ"] in (
                None,
                settings.organ,
            ):
                found[f"{skip['case']}: {skip['reason'].rstrip('.')}"] = None
    return f" Left out: {'; '.join(list(found)[:3])}." if found else ""
