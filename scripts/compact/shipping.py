"""What is shipped beside the compact models: the demo's localizer, and one slice of a phantom."""

from __future__ import annotations

import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
from safetensors import safe_open
from safetensors.torch import save_file

from xaiclip.data.volumes import write_volume
from xaiclip.files import atomic, sha256, write_text

WEIGHTS, LOG = "localizer.safetensors", "training_localizer.csv"
EXAMPLE, EXAMPLE_LABEL = "example_ct.nii.gz", "example_ct_labels.nii.gz"


def ship_localizer(weights: Path, history: Path, target: Path) -> None:
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


def ship_example(image: Path, label: Path, target: Path) -> None:
    """Put the slice of a phantom in which most organs show, and its reference, there as well."""
    volumes = [nib.Nifti1Image.from_filename(str(path)) for path in (image, label)]
    voxels = np.asarray(volumes[1].dataobj)
    counts = [len(np.unique(voxels[:, :, k])) for k in range(voxels.shape[2])]
    areas = (voxels > 0).sum((0, 1))
    best = max(range(len(counts)), key=lambda k: (counts[k], areas[k]))
    for volume, name in zip(volumes, (EXAMPLE, EXAMPLE_LABEL), strict=True):
        cut = volume.slicer[:, :, best : best + 1]
        write_volume(target / name, np.asarray(cut.dataobj), cut.affine)


def write_sums(folder: Path) -> int:
    """Write ``SHA256SUMS`` of everything but the page that describes it; how many files."""
    names = sorted(path.name for path in folder.iterdir() if path.suffix != ".md")
    names = [name for name in names if name != "SHA256SUMS"]
    sums = "".join(f"{sha256(folder / name)}  {name}\n" for name in names)
    write_text(folder / "SHA256SUMS", sums)
    return len(names)
