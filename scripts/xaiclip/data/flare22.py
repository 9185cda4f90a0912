"""FLARE22's labelled cases: an archive of NIfTI files.

``…/images/FLARE22_Tr_0001_0000.nii.gz`` and ``…/labels/FLARE22_Tr_0001.nii.gz``, 50 of each.
"""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

from xaiclip.data.volumes import read_volume, write_volume
from xaiclip.errors import CaseError
from xaiclip.published.archive import extract


def prepare(case: str, source: Path, image: Path, label: Path | None) -> None:
    """Take a case's two files out of the archive.

    The voxels and where they lie are kept; headers are written anew, for theirs may hold more than
    anyone has looked at (descriptions, names, extensions).

    Args:
        case: name as published.
        source: ``FLARE22Train.zip``.
        image, label: the NIfTI files to write.

    Raises:
        ConfigError: the archive cannot be used.
        CaseError: it does not hold the case, or damaged.
    """
    targets = {f"images/{case}_0000.nii.gz": image, f"labels/{case}.nii.gz": label}

    def pick(name: str) -> str | None:
        match = re.search(r"(?:^|/)((?:images|labels)/[^/]+)$", name)
        return match[1] if match and match[1] in targets else None

    image.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=image.parent, prefix=".tmp-") as folder:
        extract(source, folder, pick)
        for name, target in targets.items():
            file = Path(folder) / name
            if not file.is_file():
                raise CaseError(f"holds no '{name}'; fetch the archive again.", source)
            if target is None:
                continue
            try:
                volume = read_volume(file, label=target is label)
            except CaseError as error:  # the archive stays, the extracted file does not
                raise CaseError(f"'{name}': {error.reason}", source) from error
            geometry = volume.geometry
            write_volume(target, geometry.from_canonical(volume.array), geometry.affine)
