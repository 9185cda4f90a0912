"""The maps of a batch's file, all of them."""

from __future__ import annotations

from pathlib import Path

from xaiclip.explain.attribution import Attribution, open_attributions


def load_attributions(path: Path) -> list[tuple[str, int, Attribution]]:
    with open_attributions(path) as stored:
        return [(row["case"], row["slice"], stored.read(i)) for i, row in stored.find()]
