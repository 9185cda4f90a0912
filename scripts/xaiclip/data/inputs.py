"""Which files are read with a case's image or label: its own, and those that a header names."""

from __future__ import annotations

import os
import re
from pathlib import Path


def input_files(path: str | os.PathLike[str]) -> list[Path]:
    """Every file that reading an image or a label touches; no voxel is read.

    A folder stands for all files below it, a header (``.mhd``, ``.nhdr``, ``.hdr``) for itself and
    its data file.

    Args:
        path: the file or folder of a sample sheet.
    """
    path = Path(path)
    if path.is_dir():
        return sorted(file for file in path.rglob("*") if file.is_file())
    found = [path]
    if path.suffix.lower() in (".mhd", ".nhdr") and path.is_file():
        text = path.read_bytes()[: 1 << 16].decode("latin-1")
        match = re.search(r"^\s*(?:ElementDataFile\s*=|data ?file:)\s*(.+?)\s*$", text, re.M | re.I)
        if (
            match
            and match[1].upper() not in ("LOCAL", "LIST")
            and (path.parent / match[1]).is_file()
        ):
            found.append(path.parent / match[1])
    if path.suffix.lower() == ".hdr" and path.with_suffix(".img").is_file():
        found.append(path.with_suffix(".img"))
    return found
