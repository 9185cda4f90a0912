"""Hundreds of bad inputs: `python tests/soak.py results/soak/soak.json`.

The exit status is 1 if one of them is not treated well.
"""

import json
import sys
from pathlib import Path

from bad_inputs import fuzz
from xaiclip.files import write_json

if __name__ == "__main__":
    out = Path(sys.argv[1])
    counts = fuzz(570, seed=1, keep=out.parent / "bad_inputs")
    failures = counts.pop("failures")
    write_json(out, counts)
    print(json.dumps(counts))
    for kind, seed, outcome in failures:
        print(kind, seed, outcome, sep="\n")
    sys.exit(1 if failures else 0)
