"""Small data sets in the exact layout in which they are published."""

import gzip
import io
import zipfile

import nibabel as nib
import numpy as np
import SimpleITK as sitk

#: From FLARE22's ids to CHAOS's grey values.
GREY = np.zeros(14, np.uint8)
GREY[[1, 2, 13, 3]] = (63, 126, 189, 252)


def dicom(folder, stored, affine, names, modality="MR"):
    """Write a stored array (x to the left, y to the back, z up) as one DICOM file a slice.

    ``names`` go with the slices from the top down, as in CHAOS. Every file has a series of its
    own, as in CHAOS's first version.
    """
    folder.mkdir(parents=True)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for number, (name, k) in enumerate(zip(names, reversed(range(stored.shape[2])), strict=True)):
        plane = sitk.GetImageFromArray(stored[:, :, k].T[None].astype(np.int16))
        plane.SetSpacing([*np.abs(np.diag(affine)[:2]), float(affine[2, 2])])
        x, y, z = affine[:3, 3] + k * affine[:3, 2]
        for tag, value in {
            "0008|0060": modality,
            "0020|000d": "1.2",
            "0020|000e": f"1.2.3.{number}",
            "0008|0018": f"1.2.3.4.{number}",
            "0020|0013": str(number + 1),
            "0020|0037": "1\\0\\0\\0\\1\\0",
            "0020|0032": f"{-x:.6f}\\{-y:.6f}\\{z:.6f}",
        }.items():
            plane.SetMetaData(tag, value)
        writer.SetFileName(str(folder / name))
        writer.Execute(plane)


def masks(folder, grey, names):
    """Write (x, y, z) grey values as PNG files, from the top down."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, k in zip(names, reversed(range(grey.shape[2])), strict=True):
        sitk.WriteImage(sitk.GetImageFromArray(grey[:, :, k].T.copy()), str(folder / name))


def chaos_mr(folder, number, stored, label, affine):
    """All three series of a patient of CHAOS below ``folder``; the label has FLARE22's ids."""
    root, depth = folder / f"Train_Sets/MR/{number}", stored.shape[2]
    first = [f"IMG-0004-{2 * k + 1:05d}" for k in range(depth)]
    second = [f"IMG-0004-{2 * k + 2:05d}" for k in range(depth)]
    t2 = [f"IMG-0002-{k + 1:05d}" for k in range(depth)]
    for path, shift, names in (
        ("T1DUAL/DICOM_anon/OutPhase", 1, first),
        ("T1DUAL/DICOM_anon/InPhase", 2, second),
        ("T2SPIR/DICOM_anon", 0, t2),
    ):
        dicom(root / path, stored + shift, affine, [f"{name}.dcm" for name in names])
    masks(root / "T1DUAL/Ground", GREY[label], [f"{name}.png" for name in second])
    masks(root / "T2SPIR/Ground", GREY[label], [f"{name}.png" for name in t2])


def chaos_ct(folder, number, stored, label, affine):
    """A CT of CHAOS, with the mask of its liver."""
    root, depth = folder / f"Train_Sets/CT/{number}", stored.shape[2]
    names = [f"i{k:04d},0000b.dcm" for k in range(depth)]
    dicom(root / "DICOM_anon", stored, affine, names, "CT")
    liver = np.where(label == 1, 255, 0).astype(np.uint8)
    masks(root / "Ground", liver, [f"liver_GT_{k:03d}.png" for k in range(depth)])


def pack(folder, target):
    """Zip a folder's content."""
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(folder.rglob("*")):
            archive.write(path, path.relative_to(folder).as_posix())
    return target


def flare22(target, numbers, stored, label, affine):
    """``FLARE22Train.zip`` with some of its cases."""
    with zipfile.ZipFile(target, "w") as archive:
        for number in numbers:
            for name, array in (
                (f"images/FLARE22_Tr_{number:04d}_0000", stored.astype(np.int16)),
                (f"labels/FLARE22_Tr_{number:04d}", label.astype(np.uint8)),
            ):
                stream = io.BytesIO(nib.Nifti1Image(array, affine).to_bytes())
                archive.writestr(
                    f"FLARE22Train/{name}.nii.gz",
                    gzip.compress(stream.getvalue(), 1),
                    zipfile.ZIP_STORED,
                )
    return target


def saros(folder, case, stored, regions, affine):
    """A case folder of SAROS as its download script leaves it."""
    (folder / case).mkdir(parents=True)
    for name, array in (("image", stored.astype(np.int16)), ("body-regions", regions)):
        nib.save(nib.Nifti1Image(array, affine), folder / case / f"{name}.nii.gz")
