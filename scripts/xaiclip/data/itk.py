"""From ITK's images to arrays and affines."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from xaiclip.errors import CaseError


def image_voxels(image: sitk.Image) -> NDArray[np.float32]:
    """SimpleITK has the axes reversed."""
    return np.asarray(sitk.GetArrayViewFromImage(image).T, dtype=np.float32)


def image_affine(image: sitk.Image) -> NDArray[np.float64]:
    """SimpleITK counts from LPS."""
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine


def check_components(count: int, path: Path) -> None:
    if count != 1:
        raise CaseError(f"has {count} values in each voxel; give one channel.", path)
