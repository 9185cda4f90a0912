# mypy: ignore-errors
"""What several tests of datasets use."""

import nibabel as nib
import numpy as np

SHAPE = (14, 11, 7)


LPS = np.array([[-1.5, 0, 0, 20], [0, -2, 0, 30], [0, 0, 3, -40], [0, 0, 0, 1.0]])


def anatomy():
    """An image and a label, stored LPS, in which no two directions are alike."""
    image = np.random.default_rng(0).integers(0, 900, SHAPE).astype(np.int16)
    label = np.zeros(SHAPE, np.uint8)
    label[1:6, 1:5, 3:7] = 1  # liver: right, front, up
    label[2:4, 7:9, 0:3] = 2  # right kidney: right, back, down
    label[10:12, 7:10, 1:4] = 13  # left kidney: left, higher than the right one
    label[11:13, 5:7, 5:7] = 3  # spleen: left, up
    return image, label


def sides(label):
    """Mean position (right, anterior, superior; mm) of each organ in a NIfTI label."""
    nifti = nib.load(label)
    array = np.asarray(nifti.dataobj)
    return {
        organ: nib.affines.apply_affine(nifti.affine, np.argwhere(array == number)).mean(0)
        for number, organ in ((1, "liver"), (2, "right"), (13, "left"), (3, "spleen"))
        if (array == number).any()
    }
