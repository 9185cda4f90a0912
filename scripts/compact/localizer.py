"""The shipped localizer: the demo's, in half precision."""

from __future__ import annotations

import shutil
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file

from xaiclip.files import atomic, sha256, write_text

WEIGHTS, LOG = "localizer.safetensors", "training_localizer.csv"


def ship(weights: Path, history: Path, target: Path) -> None:
    """Put a trained localizer and the log of its training beside the compact models.

    Its numbers are halved, its header (classes, settings, backbone and its fingerprint) kept.

    Args:
        weights: what `save_localizer` wrote.
        history: its training.csv.
        target: resources/compact.
    """
    with safe_open(weights, framework="pt") as stored:
        about = stored.metadata()
        tensors = {name: stored.get_tensor(name).half() for name in stored.keys()}  # noqa: SIM118
    with atomic(target / WEIGHTS) as temporary:
        save_file(tensors, temporary, metadata=about)
    with atomic(target / LOG) as temporary:
        shutil.copyfile(history, temporary)
    write_sums(target)


def write_sums(folder: Path) -> int:
    """Write ``SHA256SUMS`` of everything but the page that describes it; how many files."""
    names = sorted(path.name for path in folder.iterdir() if path.suffix != ".md")
    names = [name for name in names if name != "SHA256SUMS"]
    sums = "".join(f"{sha256(folder / name)}  {name}\n" for name in names)
    write_text(folder / "SHA256SUMS", sums)
    return len(names)
