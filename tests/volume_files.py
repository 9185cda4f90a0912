"""What several tests of volumes use."""

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from nibabel.orientations import axcodes2ornt

from xaiclip.data.volumes import read_volume
from xaiclip.errors import CaseError

SHAPE = (5, 6, 7)


RAS = np.array([[1.5, 0, 0, -20], [0, 2, 0, 30], [0, 0, 3, -40], [0, 0, 0, 1.0]])


VOXELS = np.random.default_rng(0).integers(-1000, 1000, SHAPE).astype(np.int16)


def oriented(code):
    """`VOXELS` as stored with the axes ``code``, and the affine that goes with it."""
    ras = nib.Nifti1Image(VOXELS, RAS)
    to = nib.orientations.ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(code))
    image = ras.as_reoriented(to)
    return np.asarray(image.dataobj), image.affine


def write(path, array, affine=RAS, **header):
    image = nib.Nifti1Image(array, affine)
    for key, value in header.items():
        image.header[key] = value
    nib.save(image, path)
    return path


def sentence(path, **options):
    """The one sentence with which a file is refused."""
    with pytest.raises(CaseError) as caught:
        read_volume(path, **options)
    text = str(caught.value)
    assert str(path) in text
    assert text.endswith((".", "?"))
    assert "\n" not in text
    return text


def itk_image():
    """`VOXELS`, for ITK: axes reversed by numpy's view, LPS."""
    image = sitk.GetImageFromArray(VOXELS.T)
    image.SetSpacing((1.5, 2, 3))
    image.SetDirection((-1, 0, 0, 0, -1, 0, 0, 0, 1))
    image.SetOrigin((20, -30, -40))
    return image


def pair(tmp_path, affine, array=VOXELS):
    image = read_volume(write(tmp_path / "image.nii", VOXELS))
    return image, read_volume(write(tmp_path / "label.nii", np.abs(array), affine), label=True)
