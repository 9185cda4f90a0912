"""What tests of the one-call API share."""

import numpy as np

import xaiclip
from explain_fakes import FakeSegmenter
from xaiclip.resources import shipped

SCAN = shipped("compact", "example_ct.nii.gz")
LABEL = shipped("compact", "example_ct_labels.nii.gz")
BOXES = {"spleen": (80, 40, 120, 75), "liver": (10, 20, 60, 70), "pancreas": (50, 30, 90, 60)}
FEW = {"window": 256, "stride": 256}


def slice_image(height=97, width=131, seed=3):
    rows, columns = np.mgrid[:height, :width]
    image = 60 + 80 * np.exp(-((rows - 45) ** 2 + (columns - 40) ** 2) / 500)
    image += 50 * np.exp(-((rows - 60) ** 2 + (columns - 95) ** 2) / 300)
    return (
        (image + np.random.default_rng(seed).normal(0, 6, image.shape))
        .clip(0, 255)
        .astype(np.uint8)
    )


def explain(image=None, boxes=BOXES, method="occlusion", model=None, **given):
    if method == "occlusion":
        given = {**FEW, **given}
    image = slice_image() if image is None else image
    return xaiclip.explain(model or FakeSegmenter(), image, boxes, method, **given)
