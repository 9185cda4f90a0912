"""The sample sheet: which scans a study has."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from xaiclip.config.names import MAX_NAME, NAME, check_path
from xaiclip.data.changes import twins
from xaiclip.errors import ConfigError
from xaiclip.files import write_text

REQUIRED = ("case", "image", "label", "modality", "split")
OPTIONAL = ("batch",)
MODALITIES = ("CT", "MR")
SPLITS = ("train", "test")

_SEPARATORS = {",": "commas", ";": "semicolons", "|": "bars", " ": "spaces"}


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
        ConfigError: anything in it is wrong; one sentence with the row and the column. Also where
            two cases are one scan: a copy among the training cases would flatter the test.
    """
    path = Path(path)
    text = _read(path)
    try:
        lines = io.StringIO(text, newline=None)
        rows = [
            [_unquoted(cell.strip()) for cell in row]
            for row in csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
        ]
    except csv.Error as error:
        raise ConfigError(f"the sample sheet '{path}' is not a table ({error}).") from error
    if not rows or not any(rows[0]):
        raise ConfigError(f"the sample sheet '{path}' is empty.")
    header = rows[0]
    _check_header(header, path)
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
    _check_scans(list(cases.values()), path)
    return list(cases.values())


def _read(path: Path) -> str:
    """The sheet's text."""
    check_path(str(path), "the sample sheet")
    if path.exists() and not path.is_file():  # reading a pipe or a device may never end
        raise ConfigError(f"the sample sheet '{path}' is not a file.")
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise ConfigError(f"the sample sheet '{path}' does not exist.") from None
    except OSError as error:
        raise ConfigError(f"the sample sheet '{path}' cannot be read ({error.strerror}).") from None
    words = f"the sample sheet '{path}' is not a UTF-8 text file"
    if content.startswith(b"PK\3\4"):
        raise ConfigError(f"{words} but a spreadsheet: save it as text, separated by tabs.")
    # every second byte of UTF-16's plain letters is zero
    if content[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\0" in content[:4]:
        raise ConfigError(
            f"{words} but UTF-16 (a spreadsheet's 'Unicode text'): save it as UTF-8, for instance "
            "by `iconv -f UTF-16 -t UTF-8`."
        )
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ConfigError(f"{words}: save it as UTF-8.") from None
    if "\0" in text:
        raise ConfigError(f"{words}.")
    return text


def _unquoted(cell: str) -> str:
    """A cell without the quotes around it, which spreadsheets and R write."""
    inner = cell[1:-1]
    return inner.strip() if cell == f'"{inner}"' and '"' not in inner else cell


def _check_header(header: list[str], path: Path) -> None:
    for column in REQUIRED:
        if column in header:
            continue
        for mark, name in _SEPARATORS.items():
            words = {_unquoted(word.strip()) for cell in header for word in cell.split(mark)}
            if words.issuperset(REQUIRED):
                raise ConfigError(
                    f"the sample sheet '{path}' is separated by {name}: save it with tabs between "
                    "the columns."
                )
        raise ConfigError(
            f"the sample sheet '{path}' lacks the column '{column}'; it needs "
            f"{', '.join(REQUIRED)}, separated by tabs."
        )
    for column in header:
        if column not in REQUIRED + OPTIONAL or header.count(column) > 1:
            raise ConfigError(
                f"the sample sheet '{path}' has the unknown or repeated column {column!r}."
            )


def _check_scans(cases: list[Case], sheet: Path) -> None:
    """Every case is a scan of its own."""
    places: dict[str, Case] = {}
    for case in cases:
        twin = places.setdefault(os.path.realpath(case.image), case)
        if twin is not case:
            raise ConfigError(
                f"the sample sheet '{sheet}': the cases '{twin.name}' ({twin.split}) and "
                f"'{case.name}' ({case.split}) are one scan; keep one of them."
            )
    named = {case.image: case for case in cases}
    train, test = ([case.image for case in cases if case.split == split] for split in SPLITS)
    if found := twins(train, test):
        one, other = (named[image] for image in found)
        raise ConfigError(
            f"the sample sheet '{sheet}': the training case '{one.name}' and the test case "
            f"'{other.name}' hold the same scan; keep one of them."
        )


def _case(cells: dict[str, str], folder: Path, where: str) -> Case:
    for column in ("case", "batch"):
        name = cells.get(column, "")
        if (name or column == "case") and not NAME.fullmatch(name):
            raise ConfigError(
                f"{where}, column '{column}': {name!r} must be made of letters, digits, '.', '_' "
                "and '-', and not begin with '.'."
            )
        if len(name) > MAX_NAME:
            raise ConfigError(
                f"{where}, column '{column}': {name[:20]!r}… has {len(name)} characters; "
                f"{MAX_NAME} are the most."
            )
    for column, allowed in (("modality", MODALITIES), ("split", SPLITS)):
        if cells[column] not in allowed:
            raise ConfigError(
                f"{where}, column '{column}': {cells[column]!r} must be {' or '.join(allowed)}."
            )
    files: dict[str, Path | None] = {}
    for column in ("image", "label"):
        file = folder / cells[column] if cells[column] else None
        if file is None and column == "image":
            raise ConfigError(f"{where}, column 'image': is empty.")
        if file is not None:
            check_path(str(file), f"{where}, column '{column}'")
        if file is not None and not os.path.exists(file):
            raise ConfigError(f"{where}, column '{column}': there is no file '{file}'.")
        files[column] = file
    image, label = files["image"], files["label"]
    assert image is not None
    if label is not None and os.path.realpath(image) == os.path.realpath(label):
        raise ConfigError(f"{where}: the label is the image itself.")
    return Case(
        name=cells["case"],
        image=image,
        label=label,
        modality=cells["modality"],
        split=cells["split"],
        batch=cells.get("batch") or None,
    )
