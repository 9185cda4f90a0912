"""Files that come with the library: beside it in a clone, inside it where it is installed."""

from __future__ import annotations

from pathlib import Path

#: Where an installed package holds them (setup.py puts them there).
_INSTALLED = Path(__file__).parent / "_shipped"
#: Where a clone does.
_CLONE = Path(__file__).parents[2]
_PLACES = {"compact": "resources/compact", "config": "config"}


def shipped(kind: str, *parts: str) -> Path:
    """The path of what is shipped; whether it is there is for its reader to say.

    Args:
        kind: ``compact``, the weights of the compact models; ``config``, the schemas of the
            configuration and of the sample sheet.
        parts: a file below that folder; the folder itself without.
    """
    inside = _INSTALLED / kind
    return (inside if inside.is_dir() else _CLONE / _PLACES[kind]).joinpath(*parts)
