"""Procedural abdomen phantoms: labelled CT-like and MR-like volumes drawn from a seed.

The anatomy is written down once, in millimetres, in the frame of a standard patient: x towards the
patient's right, y anterior, z superior, origin in the first lumbar vertebra. Every voxel of the
output grid is mapped into that frame through a random affine and a smooth warp, and implicit
shapes (ellipsoids, tubes, polar outlines) are painted there in order, back to front. Nothing is
resampled, so the label map agrees with the image by construction.
"""

from compact.phantom.settings import DEFAULTS, MODALITIES, ORGANS, WIDE, PhantomSettings
from compact.phantom.volume import PhantomVolume, generate, write

__all__ = [
    "DEFAULTS",
    "MODALITIES",
    "ORGANS",
    "WIDE",
    "PhantomSettings",
    "PhantomVolume",
    "generate",
    "write",
]
