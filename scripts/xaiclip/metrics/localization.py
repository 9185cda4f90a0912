"""How well the localizer's probability maps find the organs (the paper's Table II)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xaiclip.errors import Skip
from xaiclip.files import open_arrays, save_arrays
from xaiclip.metrics.overlap import dice

#: Label of a pixel that nobody has labelled; it counts nowhere.
IGNORE = 255

_BINS = 1 << 14
#: float32 knows no probability nearer to 1, nor float16, in which maps are stored, one nearer to 0.
_LOGIT_LIMIT = 17.0


def localizer_scores(
    prob: NDArray[np.floating], label: NDArray[np.integer], classes: Sequence[str]
) -> list[dict[str, Any]]:
    """Dice and AUC-ROC of each class on one slice.

    Args:
        prob: (C, H, W) probabilities in [0, 1].
        label: (H, W) class indices; 255 = not labelled, left out.
        classes: the C names.

    Returns:
        One row per class: ``class``, ``n_pixels`` (of the reference), ``dice`` of the argmax
        (NaN where the reference lacks the class) and ``auc_roc``, one against the rest over
        pixels (NaN where the reference lacks the class or has nothing else).
    """
    from sklearn.metrics import roc_auc_score

    prob, label = _labelled(prob, label, classes)
    winner = prob.argmax(axis=0) if label.size else label
    rows = []
    for index, name in enumerate(classes):
        reference = label == index
        present, mixed = bool(reference.any()), 0 < int(reference.sum()) < reference.size
        rows.append(
            {
                "class": name,
                "n_pixels": int(reference.sum()),
                "dice": dice(winner == index, reference) if present else float("nan"),
                "auc_roc": float(roc_auc_score(reference, prob[index])) if mixed else float("nan"),
            }
        )
    return rows


class PooledAuc:
    """AUC-ROC per class over the pixels of many slices, in constant memory.

    Scores are counted in fine bins of the logit, so that probabilities near 0 and 1 stay apart;
    pixels within one bin count as ties.
    """

    def __init__(self, classes: Sequence[str], counts: NDArray[np.int64] | None = None) -> None:
        """``counts``: (C, 2, bins) as another instance's ``counts`` had it; None starts empty."""
        self.classes = tuple(classes)
        shape = (len(self.classes), 2, _BINS)
        self.counts = np.zeros(shape, np.int64) if counts is None else counts.astype(np.int64)
        if self.counts.shape != shape:
            raise ValueError(f"counts of shape {self.counts.shape} instead of {shape}.")

    def update(self, prob: NDArray[np.floating], label: NDArray[np.integer]) -> None:
        """Add one slice: the arguments of `localizer_scores`."""
        prob, label = _labelled(prob, label, self.classes)
        tiny = np.finfo(np.float32).tiny
        p = prob.astype(np.float64)
        logit = np.log(np.maximum(p, tiny)) - np.log(np.maximum(1 - p, tiny))
        bins = (
            ((logit + _LOGIT_LIMIT) * (_BINS / (2 * _LOGIT_LIMIT))).clip(0, _BINS - 1).astype(int)
        )
        for index in range(len(self.classes)):
            for truth, chosen in enumerate((label != index, label == index)):
                self.counts[index, truth] += np.bincount(bins[index][chosen], minlength=_BINS)

    def __add__(self, other: PooledAuc) -> PooledAuc:
        if self.classes != other.classes:
            raise ValueError(f"other classes: {other.classes} instead of {self.classes}.")
        return PooledAuc(self.classes, self.counts + other.counts)

    def save(self, path: str | os.PathLike[str], skips: Sequence[Skip] = ()) -> None:
        """Write the counts, and what was left out of them, to one .npz file."""
        meta = {"classes": list(self.classes), "skips": [skip.to_dict() for skip in skips]}
        save_arrays(path, {"counts": self.counts}, meta)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> PooledAuc:
        """Read what `save` wrote."""
        with open_arrays(path) as stored:
            return cls(stored.meta["classes"], stored["counts"])

    def auc(self) -> dict[str, float]:
        """AUC-ROC by class; NaN for a class without pixels, or without any pixel outside it."""
        result = {}
        for name, (negative, positive) in zip(self.classes, self.counts, strict=True):
            pairs = float(negative.sum()) * float(positive.sum())
            below = np.cumsum(negative) - negative / 2
            result[name] = float(positive @ below / pairs) if pairs else float("nan")
        return result


def _labelled(
    prob: NDArray[np.floating], label: NDArray[np.integer], classes: Sequence[str]
) -> tuple[NDArray[np.floating], NDArray[np.integer]]:
    """The labelled pixels: prob (C, N) and label (N,)."""
    if prob.shape != (len(classes), *label.shape):
        raise ValueError(
            f"probabilities of shape {prob.shape} do not fit {len(classes)} classes "
            f"and a label of shape {label.shape}."
        )
    keep = label != IGNORE
    return prob[:, keep], label[keep]
