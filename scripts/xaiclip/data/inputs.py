"""The files that reading a scan touches."""

from __future__ import annotations

import os
from pathlib import Path

from xaiclip.data.itk import _DATA_FILE


def input_files(path: Path) -> list[Path]:
    """The file itself and the data files that its header names; all files of a folder."""
    if path.is_dir():
        return sorted(file for file in path.rglob("*") if file.is_file())
    files = [path]
    if path.name.lower().endswith((".mhd", ".nhdr")):
        head = path.read_bytes()[: 2**16]
        if named := _DATA_FILE.search(head):
            files.append(path.parent / os.fsdecode(named["name"].strip()))
    return files
