"""What is shipped of the compact models: weights, logs, curves, a slice, checksums."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np

from compact import phantom
from xaiclip.data.volumes import write_volume
from xaiclip.files import atomic, sha256, write_text
from xaiclip.seeds import derived

EXAMPLE, EXAMPLE_LABEL = "example_ct.nii.gz", "example_ct_labels.nii.gz"
LOG, CURVES = "training_localizer.csv", "training_localizer.png"
_SUFFIXES = (".json", ".safetensors", ".csv", ".gz")
#: What the demo's first CT phantom is drawn from.
_SEED, _CASE = 2026, "test_ct_000"


def ship(folder: Path, target: Path) -> None:
    """Copy what a training left in its folder, but for its checkpoint."""
    for source in sorted(folder.iterdir()):
        if source.suffix in _SUFFIXES:
            with atomic(target / source.name) as temporary:
                shutil.copyfile(source, temporary)


def draw_curves(folder: Path) -> None:
    """The log of the localizer's training as a picture: the loss, and each organ's Dice."""
    from matplotlib.figure import Figure

    with open(folder / LOG, newline="") as stream:
        rows = list(csv.DictReader(stream))
    minutes = [float(row["seconds"]) / 60 for row in rows]
    figure = Figure(figsize=(9, 3), layout="constrained")
    axes = figure.subplots(1, 3)
    axes[0].plot(minutes, [float(row["loss"]) for row in rows], color="black")
    axes[0].set_ylabel("loss of the training")
    for ax, kind in zip(axes[1:], ("CT", "MR"), strict=True):
        for name in rows[-1]:
            if name.startswith(f"{kind}_"):
                organ = name.removeprefix(f"{kind}_").replace("_", " ")
                ax.plot(minutes, [float(row[name]) for row in rows], label=organ)
        ax.set_ylim(0, 1)
        ax.set_ylabel(f"Dice, {kind} phantoms held out")
    axes[1].legend(fontsize="small")
    for ax in axes:
        ax.set_xlabel("minutes")
    with atomic(folder / CURVES) as temporary:
        figure.savefig(temporary, dpi=80, format="png", metadata={"Software": None})


def ship_example(target: Path) -> None:
    """Draw the demo's first CT phantom; put the slice with most organs, and its labels, there."""
    drawn = phantom.generate(derived(_SEED, "phantom", _CASE), "CT")
    counts = [len(np.unique(drawn.label[:, :, k])) for k in range(drawn.label.shape[2])]
    areas = (drawn.label > 0).sum((0, 1))
    best = max(range(len(counts)), key=lambda k: (counts[k], areas[k]))
    affine = drawn.affine.astype(np.float32).astype(np.float64)  # as the demo's file holds it
    for voxels, name in ((drawn.image, EXAMPLE), (drawn.label, EXAMPLE_LABEL)):
        cut = nib.Nifti1Image(voxels, affine).slicer[:, :, best : best + 1]
        write_volume(target / name, np.asarray(cut.dataobj), cut.affine)


def write_sums(folder: Path) -> int:
    """Write ``SHA256SUMS`` of everything but the page that describes it; how many files."""
    names = sorted(path.name for path in folder.iterdir() if path.suffix != ".md")
    names = [name for name in names if name != "SHA256SUMS"]
    sums = "".join(f"{sha256(folder / name)}  {name}\n" for name in names)
    write_text(folder / "SHA256SUMS", sums)
    return len(names)
