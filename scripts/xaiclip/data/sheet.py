"""The sample sheet: which scans a study has."""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from xaiclip.errors import ConfigError
from xaiclip.files import write_text

REQUIRED = ("case", "image", "label", "modality", "split")
OPTIONAL = ("batch",)
MODALITIES = ("CT", "MR")
SPLITS = ("train", "test")

_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")
#: Names are parts of file names, of which no file system takes more than 255 characters.
MAX_NAME = 100


@dataclass(frozen=True)
class Case:
    """One patient's scan.

    Attributes:
        name: of the case; part of file names.
        image, label: files (or a DICOM folder); no label = no reference.
        modality: ``CT`` or ``MR``.
        split: ``train`` or ``test``.
        batch: a batch that the user chose, or None.
        problem: a text that says why the volumes could not be made; empty if they could. None
            for volumes that the workflow does not prepare.
    """

    name: str
    image: Path
    label: Path | None
    modality: str
    split: str
    batch: str | None = None
    problem: Path | None = None


def write_sheet(path: str | os.PathLike[str], cases: Iterable[Case]) -> None:
    """Write a sample sheet that `read_sheet` reads; its paths are relative to it."""
    folder = Path(path).parent
    lines = ["\t".join(REQUIRED)]
    for case in cases:
        image, label = (
            os.path.relpath(file, folder) if file else "" for file in (case.image, case.label)
        )
        lines.append("\t".join((case.name, image, label, case.modality, case.split)))
    write_text(path, "\n".join(lines) + "\n")


def read_sheet(path: str | os.PathLike[str]) -> list[Case]:
    """Read a tab-separated sample sheet; its paths are relative to it.

    Raises:
        ConfigError: anything in it is wrong; one sentence with the row and the column.
    """
    path = Path(path)
    if path.exists() and not path.is_file():  # reading a pipe or a device may never end
        raise ConfigError(f"the sample sheet '{path}' is not a file.")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"the sample sheet '{path}' does not exist.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the sample sheet '{path}' is not a UTF-8 text file.") from error
    if "\0" in text:
        raise ConfigError(f"the sample sheet '{path}' is not a text file.")
    try:
        lines = io.StringIO(text, newline=None)
        rows = [
            [cell.strip() for cell in row]
            for row in csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
        ]
    except csv.Error as error:
        raise ConfigError(f"the sample sheet '{path}' is not a table ({error}).") from error
    if not rows or not any(rows[0]):
        raise ConfigError(f"the sample sheet '{path}' is empty.")
    header = rows[0]
    for column in REQUIRED:
        if column not in header:
            raise ConfigError(
                f"the sample sheet '{path}' lacks the column '{column}'; it needs "
                f"{', '.join(REQUIRED)}, separated by tabs."
            )
    for column in header:
        if column not in REQUIRED + OPTIONAL or header.count(column) > 1:
            raise ConfigError(
                f"the sample sheet '{path}' has the unknown or repeated column '{column}'."
            )
    cases: dict[str, Case] = {}
    folded: dict[str, str] = {}
    for number, row in enumerate(rows[1:], start=2):
        if not any(row):
            continue
        where = f"the sample sheet '{path}', row {number}"
        if len(row) > len(header):
            raise ConfigError(f"{where}: has {len(row)} cells instead of {len(header)}.")
        cells = dict(zip(header, row + [""] * (len(header) - len(row)), strict=True))
        case = _case(cells, path.parent, where)
        if case.name in cases:
            raise ConfigError(f"{where}: the case '{case.name}' stands there twice.")
        twin = folded.setdefault(case.name.casefold(), case.name)
        if twin != case.name:  # one file, where the file system does not tell them apart
            raise ConfigError(f"{where}: '{case.name}' differs from '{twin}' in upper case only.")
        cases[case.name] = case
    if not cases:
        raise ConfigError(f"the sample sheet '{path}' lists no case.")
    return list(cases.values())


def _case(cells: dict[str, str], folder: Path, where: str) -> Case:
    for column in ("case", "batch"):
        name = cells.get(column, "")
        if (name or column == "case") and not _NAME.fullmatch(name):
            raise ConfigError(
                f"{where}, column '{column}': '{name}' must be made of letters, digits, '.', '_' "
                "and '-', and not begin with '.'."
            )
        if len(name) > MAX_NAME:
            raise ConfigError(
                f"{where}, column '{column}': '{name[:20]}…' has {len(name)} characters; "
                f"{MAX_NAME} are the most."
            )
    for column, allowed in (("modality", MODALITIES), ("split", SPLITS)):
        if cells[column] not in allowed:
            raise ConfigError(
                f"{where}, column '{column}': '{cells[column]}' must be {' or '.join(allowed)}."
            )
    files: dict[str, Path | None] = {}
    for column in ("image", "label"):
        file = folder / cells[column] if cells[column] else None
        if file is None and column == "image":
            raise ConfigError(f"{where}, column 'image': is empty.")
        if file is not None and not os.path.exists(file):
            raise ConfigError(f"{where}, column '{column}': there is no file '{file}'.")
        files[column] = file
    image = files["image"]
    assert image is not None
    return Case(
        name=cells["case"],
        image=image,
        label=files["label"],
        modality=cells["modality"],
        split=cells["split"],
        batch=cells.get("batch") or None,
    )
