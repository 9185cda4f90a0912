"""Seeds: one for each thing that is drawn, all from the study's own."""

from __future__ import annotations

import hashlib


def derived(seed: int, *parts: object) -> int:
    """A seed of its own, 32 bits, for what ``parts`` name, from a study's ``seed``."""
    text = ":".join(str(part) for part in (seed, *parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")
