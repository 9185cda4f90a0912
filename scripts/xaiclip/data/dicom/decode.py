"""Decode compressed DICOM files, as a program: what it does to itself costs no one else.

Standard input is a JSON list of files and their transfer syntaxes. Standard output gets the stored
values of all frames of all files, one after the other, as little-endian int32. It ends at the first
that cannot be decoded, in whatever way.
"""

from __future__ import annotations

import json
import os
import sys

import numpy as np
from pydicom.pixels.utils import iter_pixels

#: Bytes, and seconds of one processor for each file besides a minute.
MEMORY, SECONDS = 4 * 2**30, 60


def main() -> None:
    files = json.load(sys.stdin)
    limit("RLIMIT_AS", MEMORY)
    limit("RLIMIT_CPU", (1 + len(files)) * SECONDS)
    limit("RLIMIT_CORE", 0)
    # C libraries print to standard output, too
    with os.fdopen(os.dup(1), "wb") as output:
        os.dup2(2, 1)
        for file, syntax in files:
            for plane in iter_pixels(file, raw=True, transfer_syntax_uid=syntax):
                output.write(np.ascontiguousarray(plane, dtype="<i4").tobytes())


def limit(name: str, most: int) -> None:
    """Lower a limit of this process, where the system has it."""
    try:
        import resource

        kind = getattr(resource, name)
        hard = resource.getrlimit(kind)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (most, most))
    except (ImportError, AttributeError, ValueError, OSError):
        pass


if __name__ == "__main__":
    main()
