"""DICOM files: which of a folder's belong to it, and what their headers say.

Nothing of a patient goes into a message: no value of a header, no UID, no name.
"""

from __future__ import annotations

import io
import logging
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.filereader import read_partial
from pydicom.multival import MultiValue
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    MediaStorageDirectoryStorage,
    SegmentationStorage,
)

from xaiclip.errors import CaseError

#: A header takes one read or more an element; real ones, of thousands of frames, stay far below.
MAX_READS = 1_000_000
#: Items of the sequences of a header, likewise.
MAX_ITEMS = 500_000

#: Ends of names of what is not there yet, or packed.
_WRAPPED = (".gz", ".bz2", ".xz", ".part", ".partial", ".filepart", ".crdownload", ".tmp")
_MAGIC = b"DICM"
_ITEM = b"\xfe\xff\x00\xe0"
_PIXELS = (0x7FE00008, 0x7FE00009, 0x7FE00010)
_KEYWORDS = (
    *("SOPClassUID", "SeriesInstanceUID", "Modality", "ImageType", "NumberOfFrames"),
    *("Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation"),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"),
    *("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"),
    *("SliceThickness", "SpacingBetweenSlices"),
    *("RescaleSlope", "RescaleIntercept", "ModalityLUTSequence"),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
    *("SegmentSequence", "SegmentationType", "MaximumFractionalValue"),
)
_TAGS = [pydicom.tag.Tag(keyword) for keyword in _KEYWORDS]
#: The second is Label Map Segmentation Storage, which is younger than pydicom's list of names.
_SEGMENTATIONS = (SegmentationStorage.name, "1.2.840.10008.5.1.4.1.1.66.7")
#: They have pixels, but are no scans.
_DERIVED = ("SEG", "RTDOSE", "RTIMAGE")


@dataclass(frozen=True, eq=False)
class Header:
    """What reading needs of a file.

    Attributes:
        file: the file.
        elements: those of the header that are read at all.
        syntax: how the file is encoded.
        pixels: where its pixel data begin and how many bytes they claim, -1 for an unknown number;
            None if there are none.
    """

    file: Path
    elements: Dataset
    syntax: UID
    pixels: tuple[int, int] | None

    @property
    def kind(self) -> str:
        """The name of the class of objects that it belongs to."""
        return UID(self.text("SOPClassUID")).name

    @property
    def modality(self) -> str:
        """As the file says it: CT, MR, SEG, RTSTRUCT, …; segmentations are ``SEG`` always."""
        return "SEG" if self.kind in _SEGMENTATIONS else self.text("Modality").upper()

    @property
    def kind_of_image(self) -> str:
        """AXIAL, LOCALIZER, MPR, …: the third value of the image type."""
        values = value_of(self.elements, "ImageType", self.file)
        return str(values[2]) if isinstance(values, MultiValue) and len(values) > 2 else ""

    @property
    def is_scan(self) -> bool:
        """Whether its pixels are measured values."""
        return self.pixels is not None and self.modality not in _DERIVED

    @property
    def is_other(self) -> bool:
        """Whether it is a whole object of a kind that has no pixels (a report, a directory)."""
        if self.kind == MediaStorageDirectoryStorage.name:
            return True
        pictured = "Image" in self.kind or self.kind in _SEGMENTATIONS
        return bool(self.text("SeriesInstanceUID") and self.kind and not pictured)

    def text(self, keyword: str) -> str:
        """An element as text, empty where it is missing."""
        return str(value_of(self.elements, keyword, self.file) or "").strip()

    def whole(self, keyword: str, default: int | None = None) -> int:
        """A whole number.

        Raises:
            CaseError: it is none, or missing without a default.
        """
        value = value_of(self.elements, keyword, self.file)
        if value is None and default is not None:
            return default
        try:
            return int(value)
        except (TypeError, ValueError, OverflowError):
            raise CaseError(
                f"its DICOM header has no whole number as {_words(keyword)}; export it again.",
                self.file,
            ) from None

    def items(self, keyword: str) -> list[Dataset]:
        """The items of a sequence; none if it is missing."""
        return items_of(self.elements, keyword, self.file)


def value_of(elements: Dataset, keyword: str, file: Path) -> Any:
    """An element's value, None where it is missing or empty."""
    try:
        value = elements.get(keyword)
        return None if value is None or (hasattr(value, "__len__") and not len(value)) else value
    except Exception as error:  # any value may be malformed, in any way
        raise CaseError(
            f"its DICOM header has a damaged {_words(keyword)}; export it again.", file
        ) from error


def items_of(elements: Dataset, keyword: str, file: Path) -> list[Dataset]:
    """The items of a sequence; none if it is missing."""
    value = value_of(elements, keyword, file)
    if value is None:
        return []
    if not isinstance(value, pydicom.Sequence):
        raise CaseError(f"its {_words(keyword)} is no sequence; export it again.", file)
    return list(value)


def numbers_of(elements: Dataset, keyword: str, count: int, file: Path) -> list[float] | None:
    """An element of ``count`` finite numbers; None where it is missing or empty.

    Raises:
        CaseError: there are others.
    """
    value = value_of(elements, keyword, file)
    if value is None:
        return None
    try:
        parts = [value] if count == 1 else list(value)
        numbers = [float(part) for part in parts]
    except (TypeError, ValueError):
        numbers = []
    if len(numbers) != count or not np.isfinite(numbers).all():
        what = "a number" if count == 1 else f"{count} numbers"
        raise CaseError(
            f"the {_words(keyword)} in its DICOM header is not {what}; export it again.", file
        )
    return numbers


def read_headers(path: Path) -> list[Header]:
    """The headers of a DICOM file, or of all DICOM files that lie in a folder, by name.

    What clearly is something else (a DICOMDIR, texts, thumbnails, hidden files, folders) is passed
    over. What should be DICOM and cannot be read is not: a slice would be missing.

    Raises:
        CaseError: such a file, by its path; or there is no DICOM file.
    """
    if not path.is_dir():
        return [read_header(path)]
    try:
        entries = [entry for entry in sorted(path.iterdir()) if not entry.name.startswith(".")]
        folders = {entry for entry in entries if entry.is_dir()}
    except OSError as error:
        raise CaseError("cannot be listed; correct its permissions.", path) from error
    files = [entry for entry in entries if entry not in folders and _is_dicom(entry)]
    endings = {_ending(file) for file in files} | {".dcm", ".dicom"}
    for entry in sorted({*entries} - {*files} - folders):
        if _ending(entry) in endings and not _is_text(entry):
            raise CaseError(
                "is no DICOM file, but lies and is named like one (empty, damaged, compressed, or "
                "a broken link); copy it again, or take it out.",
                entry,
            )
    headers = [read_header(file) for file in files]
    headers = [header for header in headers if header.kind != MediaStorageDirectoryStorage.name]
    if headers:
        return headers
    raise CaseError(
        "holds no DICOM series itself, but a folder in it does; give that one."
        if any(map(_holds_dicom, folders))
        else "holds no DICOM series; give the folder of the .dcm files.",
        path,
    )


def read_header(file: Path) -> Header:
    """The header of a DICOM file, with or without its preamble.

    Raises:
        CaseError: it is none, or damaged, or is cut off before its end.
    """
    if not file.is_file():
        raise CaseError("is no regular file; give a DICOM file.", file)
    found: list[tuple[int, int]] = []

    def stop(tag: int, vr: str | None, length: int) -> bool:
        if tag in _PIXELS:
            found.append((stream.tell(), -1 if length == 0xFFFFFFFF else length))
        return tag in _PIXELS

    try:
        with open(file, "rb", buffering=0) as raw, _Patient(raw) as stream:
            if _syntax(stream) == DeflatedExplicitVRLittleEndian:
                raise CaseError(
                    "is a deflated DICOM file, which is not read; convert it (dcmconv +te).", file
                )
            elements = read_partial(stream, stop, force=True, specific_tags=list(_TAGS))
            parts = list(elements.elements())
            cut = stream.tell() > file.stat().st_size or any(map(_is_short, parts))
            if sum(map(_count_items, parts)) > MAX_ITEMS:
                raise ValueError("too many items")
            syntax = UID(str(elements.file_meta.get("TransferSyntaxUID") or "")) or (
                ImplicitVRLittleEndian if elements.original_encoding[0] else ExplicitVRLittleEndian
            )
            if "SOPClassUID" not in elements:
                elements.SOPClassUID = elements.file_meta.get("MediaStorageSOPClassUID", "")
    except CaseError:
        raise
    except Exception as error:  # a damaged header raises nearly anything
        raise CaseError("is not a readable DICOM file; copy it again.", file) from error
    if not syntax.is_transfer_syntax:
        raise CaseError(
            "is encoded in a way that is not read; convert it (dcmconv, gdcmconv --raw).", file
        )
    header = Header(file, elements, syntax, found[0] if found else None)
    if not header.pixels and (cut or not header.is_other):
        raise CaseError(
            "is a DICOM file that was cut off, or never had pixels; copy it again, or take it out.",
            file,
        )
    return header


@contextmanager
def quiet() -> Iterator[None]:
    """pydicom tells of each odd value, with the value; neither belongs into the log."""
    logger = logging.getLogger("pydicom")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings(), pydicom.config.disable_value_validation():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


class _Patient(io.BufferedReader):
    """A file that loses its patience with a header that never ends."""

    reads = 0

    def read(self, size: int | None = -1, /) -> bytes:
        self.reads += 1
        if self.reads > MAX_READS:
            raise ValueError("too long a header")
        return super().read(size)


def _is_short(element: Any) -> bool:
    """Whether a value ended with its file."""
    value = element.value
    return isinstance(value, bytes) and len(value) < getattr(element, "length", 0) != 0xFFFFFFFF


def _count_items(element: Any) -> int:
    """Items of a sequence that pydicom has not parsed yet, and of those within it."""
    value = element.value
    return value.count(_ITEM) if isinstance(value, bytes) else 0


def _syntax(stream: io.BufferedReader) -> str:
    """The transfer syntax, if the file says it; the stream is left at its beginning."""
    try:
        if stream.seek(128) == 128 and stream.read(4) == _MAGIC:
            meta = pydicom.filereader._read_file_meta_info(stream)
            return str(meta.get("TransferSyntaxUID", ""))
        return ""
    finally:
        stream.seek(0)


def _is_dicom(file: Path) -> bool:
    head = _head(file)
    # before there was a preamble, files began with their first group
    return head[128:132] == _MAGIC or (
        head[:2] in (b"\x02\x00", b"\x08\x00") and head[3:4] == b"\x00" and len(head) > 8
    )


def _holds_dicom(folder: Path) -> bool:
    try:
        return any(map(_is_dicom, folder.iterdir()))
    except (CaseError, OSError):
        return False


def _is_text(file: Path) -> bool:
    head = _head(file)
    return bool(head) and b"\0" not in head and file.suffix.lower() not in (".dcm", ".dicom")


def _head(file: Path) -> bytes:
    """The first bytes of a regular file; none of anything else, which may never end."""
    try:
        if not stat.S_ISREG(file.stat().st_mode):
            return b""
        with open(file, "rb") as stream:
            return stream.read(4096)
    except FileNotFoundError:  # a link that leads nowhere
        return b""
    except OSError as error:
        raise CaseError("cannot be read; correct its permissions.", file) from error


def _ending(file: Path) -> str:
    """The suffix of a file's name; numbers are none (``IM.0001``, ``1.2.840.5``)."""
    suffix = file.suffix.lower()
    if suffix in _WRAPPED:
        return _ending(file.with_suffix(""))
    return "" if suffix[1:].rstrip("_~").isdigit() else suffix.rstrip("_~")


def _words(keyword: str) -> str:
    """PixelSpacing → Pixel Spacing."""
    return pydicom.datadict.dictionary_description(keyword)
