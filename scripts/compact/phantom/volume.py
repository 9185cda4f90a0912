"""A phantom from seed to file."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from compact.phantom import digestive, organs, trunk
from compact.phantom.acquisition import finish_ct, finish_mr
from compact.phantom.canvas import Canvas
from compact.phantom.patient import Patient
from compact.phantom.settings import DEFAULTS, MODALITIES, ORGANS, PhantomSettings
from compact.phantom.tissues import intensities
from xaiclip.data.volumes import write_volume

#: The painters, deepest layers first: each paints over what the earlier ones left.
ANATOMY: tuple[Callable[[Patient], None], ...] = (
    trunk.torso,
    digestive.bowel,
    organs.liver,
    digestive.stomach,
    organs.spleen,
    organs.kidneys,
    digestive.gallbladder,
    digestive.duodenum_and_pancreas,
    organs.great_vessels,
    organs.adrenal_glands,
    digestive.oesophagus,
    trunk.spine,
)


@dataclass(frozen=True)
class PhantomVolume:
    """One phantom as it would be stored on disk.

    ``image`` is int16 (X, Y, Z): HU of -1024..3071 for CT, arbitrary units >= 0 for MR.
    ``label`` is uint8 on the same grid, ids of ``ORGANS`` and 0 for background.
    ``affine`` maps voxel indices to RAS millimetres; ``description`` can be written as JSON.
    """

    image: NDArray[np.int16]
    label: NDArray[np.uint8]
    affine: NDArray[np.float64]
    modality: str
    description: dict[str, Any]


def generate(seed: int, modality: str, settings: PhantomSettings = DEFAULTS) -> PhantomVolume:
    """Draw one phantom.

    Args:
        seed: non-negative; the same seed, modality and settings give identical arrays.
        modality: ``"CT"`` or ``"MR"``.
        settings: ranges to draw from.

    Returns:
        The volume in a randomly chosen stored orientation, with the affine that belongs to it.

    Raises:
        ValueError: unknown modality, or an unknown organ name in ``settings.missing``.
    """
    if modality not in MODALITIES:
        raise ValueError(f"Unknown modality {modality!r}: use one of {', '.join(MODALITIES)}.")
    unknown = sorted(set(settings.missing) - set(ORGANS))
    if unknown:
        raise ValueError(f"Unknown organs in settings.missing: {unknown}; known: {list(ORGANS)}.")
    rng = np.random.default_rng((seed, MODALITIES.index(modality)))
    values, unit, protocol = intensities(rng, modality, settings)
    outline = trunk.outlines(rng, settings)

    scale = rng.uniform(*settings.habitus) * rng.uniform(0.95, 1.05, 3)
    t = np.linspace(-np.pi, np.pi, 1024, endpoint=False)
    skin, front = outline["skin"], trunk.CENTRE_Y
    span_x = np.array([(skin * np.cos(t)).min(), (skin * np.cos(t)).max()]) * scale[0]
    span_y = (np.array([(skin * np.sin(t)).min(), (skin * np.sin(t)).max()]) + front) * scale[1]
    margin = rng.uniform(*settings.margin)
    truncated = bool(rng.random() < settings.truncated)
    if truncated:
        margin = -rng.uniform(5, 25)
    grow = np.array([-margin, margin])
    lift = rng.normal(0, 8, 2)
    fov_x, fov_y = span_x + grow + lift[0], span_y + grow + lift[1]
    if rng.random() < 0.5:  # many scanners reconstruct square images
        half = np.ptp(fov_x) / 2
        fov_y = fov_y.mean() + np.array([-half, half])
    step = max(rng.uniform(*settings.spacing), np.ptp(fov_x) / settings.max_inplane)
    count = int(rng.integers(settings.slices[0], settings.slices[1] + 1))
    thick = float(np.clip(rng.uniform(*settings.extent) * scale[2] / count, *settings.thickness))
    middle = rng.normal(4, 9) * scale[2]  # the kidneys' hila: most organs meet there
    sizes = (int(np.ptp(fov_x) / step) + 1, int(np.ptp(fov_y) / step) + 1, count)
    spacing = (float(step), float(step), thick)
    starts = (float(fov_x[0]), float(fov_y[0]), middle - 0.5 * thick * (count - 1))
    axes = [
        ((s + v * np.arange(n)) / k).astype(np.float32)
        for s, v, n, k in zip(starts, spacing, sizes, scale, strict=True)
    ]
    roll = float(np.deg2rad(np.clip(rng.normal(0, 1.5), -5, 5)))
    frame = [v / k for v, k in zip(spacing, scale, strict=True)]
    canvas = Canvas(rng, axes, frame, roll, settings, values, unit, modality)
    patient = Patient(canvas, rng, settings, outline, modality)
    for paint in ANATOMY:
        paint(patient)
    if modality == "CT":
        image = finish_ct(rng, canvas.image, patient.rho, spacing, settings)
    else:
        image = finish_mr(rng, canvas.image, spacing, settings)

    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = np.asarray(starts) + rng.uniform(-150, 150, 3)
    code = str(rng.choice(settings.orientations))
    turn = nib.orientations.ornt_transform(
        nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(code)
    )
    affine = affine @ nib.orientations.inv_ornt_aff(turn, sizes)

    def store(array: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(nib.orientations.apply_orientation(array, turn))

    present = [name for name, label in ORGANS.items() if (canvas.label == label).any()]
    return PhantomVolume(
        image=store(np.rint(image).astype(np.int16)),
        label=store(canvas.label),
        affine=affine,
        modality=modality,
        description={
            "seed": int(seed),
            "protocol": protocol,
            "orientation": code,
            "spacing_mm": [round(v, 4) for v in spacing],
            "truncated": truncated,
            "missing": patient.missing,
            "present": present,
            "lesions": patient.lesion_count,
        },
    )


def write(
    volume: PhantomVolume, image_path: str | os.PathLike[str], label_path: str | os.PathLike[str]
) -> None:
    """Write image (int16) and label (uint8) as ``.nii.gz``, byte for byte reproducible.

    Files appear only when complete; parent folders are created.

    Raises:
        ValueError: a path does not end in ``.nii.gz``.
    """
    for data, target in ((volume.image, Path(image_path)), (volume.label, Path(label_path))):
        if not target.name.endswith(".nii.gz"):
            raise ValueError(f"{target} should end in .nii.gz.")
        write_volume(target, data, volume.affine)
