"""What the library gives one after the other, all of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from xaiclip.errors import Skip
from xaiclip.explain.attribution import Attribution, open_attributions
from xaiclip.explain.runner import Request, Run, score_each
from xaiclip.explain.store import SliceScores
from xaiclip.masks.roi import SliceRois, open_rois
from xaiclip.targets import Model


def load_attributions(path: Path) -> list[tuple[str, int, Attribution]]:
    with open_attributions(path) as stored:
        return [(row["case"], row["slice"], stored.read(i)) for i, row in stored.find()]


def load_rois(path: Path) -> tuple[dict[str, SliceRois], list[Skip]]:
    with open_rois(path) as stored:
        return dict(stored), stored.skips


def score_batch(
    model: Model, requests: Sequence[Request], run: Run
) -> tuple[list[SliceScores], list[Skip]]:
    skips: list[Skip] = []
    return list(score_each(model, requests, len(requests), run, skips)), skips
