"""Reading pictures of one slice (PNG, TIFF, JPEG, BMP) and MedSAM's npz files.

A picture has no geometry: it lies as it is shown, row 0 in front, column 0 on the patient's right.
"""

from __future__ import annotations

import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from xaiclip.data.geometry import Stored, check_shape, check_size, times
from xaiclip.data.voxels import blocks_of, open_regular, read_voxels
from xaiclip.errors import CaseError

#: Ends of the names of pictures, in lower case.
PICTURES = (".png", ".tif", ".tiff", ".jpg", ".jpeg", ".bmp")
#: More pixels are no slice of a patient.
MAX_PIXELS = 2**26

_LOSSY = (".jpg", ".jpeg")
_FORMATS = ("PNG", "TIFF", "JPEG", "BMP")


def read_picture(path: Path, *, label: bool = False) -> Stored:
    """One slice from a picture: grey, or colours that are all grey.

    Args:
        path: the file.
        label: whether its values (or the indices of its palette) are label ids.

    Returns:
        (columns, rows), of the picture's type: 8 bits, 16 bits or float32.

    Raises:
        CaseError: it is damaged, too large, coloured, or has several pages.
    """
    if label and path.name.lower().endswith(_LOSSY):
        raise CaseError("JPEG changes the ids of a label; store it as PNG.", path)
    with open_regular(path) as stream:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)
                image: Image.Image = Image.open(stream, formats=_FORMATS)
                check_shape(image.size, path)
                if image.size[0] * image.size[1] > MAX_PIXELS:
                    raise Image.DecompressionBombError
                if getattr(image, "n_frames", 1) != 1:
                    raise CaseError("has several pages; give one slice in each file.", path)
                if (
                    any(";16" in str(tile) for tile in getattr(image, "tile", ()))
                    and image.mode[:1] != "I"
                ):
                    raise CaseError("has colours of 16 bits; save it in grey.", path)
                if not label:
                    ImageOps.exif_transpose(image, in_place=True)
                pixels = _grey(image, path, label)
        except CaseError:
            raise
        except Image.DecompressionBombError as error:
            raise CaseError(
                "its header claims more pixels than a slice has; scale it down.", path
            ) from error
        except Exception as error:  # a damaged picture raises nearly anything
            raise CaseError(
                "damaged, truncated or not a picture of its name's format; save it again.", path
            ) from error
    return Stored(np.asfortranarray(pixels.T), None, None, shown=True)


def _grey(image: Image.Image, path: Path, label: bool) -> NDArray[Any]:
    """The pixels (rows, columns) of a picture."""
    if image.mode == "P" and not label:
        image = image.convert("RGBA" if "transparency" in image.info else "RGB")
    if image.mode in ("P", "L"):
        return np.asarray(image, dtype=np.uint8)
    if image.mode == "1":
        return np.asarray(image).astype(np.uint8) * (1 if label else 255)
    if image.mode.startswith("I;16"):
        return np.asarray(image).astype(np.uint16)
    if image.mode in ("I", "F"):
        return np.asarray(image)
    if image.mode in ("LA", "RGB", "RGBA"):
        return grey_of(np.asarray(image), path)
    raise CaseError(f"its pixels are of the kind '{image.mode}'; save it in grey.", path)


def grey_of(pixels: NDArray[Any], path: Path) -> NDArray[Any]:
    """One channel of pixels (rows, columns, channels) that are all grey.

    Args:
        pixels: grey and alpha, three colours, or three colours and alpha.
        path: the file.

    Raises:
        CaseError: the channels differ, or parts are transparent.
    """
    count = pixels.shape[2]
    if count in (2, 4) and pixels[..., -1].min() != np.iinfo(pixels.dtype).max:
        raise CaseError("is transparent in parts; save it without transparency.", path)
    colours = pixels[..., : 3 if count >= 3 else 1]
    if any((colours[..., 0] != colours[..., k]).any() for k in range(1, colours.shape[2])):
        raise CaseError("is coloured; save the slice in grey, and a label as ids.", path)
    return np.ascontiguousarray(colours[..., 0])


def read_npz(path: Path, *, label: bool = False) -> Stored:
    """A slice or a volume in MedSAM's npz files: ``imgs``, ``gts`` and, of a volume, ``spacing``.

    A volume (slices, rows, columns) tells no directions; ``spacing`` counts x, y, z.

    Args:
        path: the file.
        label: whether ``gts`` is wanted, instead of ``imgs``.

    Returns:
        (columns, rows) of a slice, which lies as it is shown; (columns, rows, slices) of a volume.

    Raises:
        CaseError: it is damaged, too large, coloured, or has other arrays.
    """
    wanted = "gts" if label else "imgs"
    with open_regular(path) as stream:
        try:
            with zipfile.ZipFile(stream) as archive:
                names = [name.removesuffix(".npy") for name in archive.namelist()]
                if wanted not in names:
                    raise CaseError(
                        f"holds no array '{wanted}' as MedSAM's files do, but "
                        f"{len(names)} others; name it so.",
                        path,
                    )
                array = _member(archive, wanted, path)
                spacing = None
                if "spacing" in names:
                    spacing = tuple(float(size) for size in _member(archive, "spacing", path))
        except CaseError:
            raise
        except Exception as error:  # a damaged archive raises nearly anything
            raise CaseError("damaged or not an npz file; write it again.", path) from error
    if array.dtype.kind not in "iufb":
        raise CaseError("its voxels are no real numbers; give one real number each.", path)
    if array.ndim == 3 and array.shape[2] in (3, 4) and spacing is None:
        array = grey_of(array, path)
    check_shape(array.shape, path)
    if array.ndim > 3:
        raise CaseError(f"has the shape {times(array.shape)}; give a slice or a volume.", path)
    if spacing is not None and len(spacing) not in (2, 3):
        raise CaseError("its 'spacing' is not one of x, y and z; correct it.", path)
    return Stored(array.T, None, spacing, shown=array.ndim == 2)


def _member(archive: zipfile.ZipFile, name: str, path: Path) -> NDArray[Any]:
    """An array of an npz file, whose header is asked for its size first."""
    with archive.open(f"{name}.npy") as stream:
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0
        if version == (2, 0):
            read = np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(stream, max_header_size=10_000)
        if dtype.hasobject or dtype.kind not in "iufb":
            raise CaseError(f"its '{name}' holds no real numbers; give one real number each.", path)
        if name == "spacing":
            if shape not in ((2,), (3,)):
                raise CaseError("its 'spacing' is not one of x, y and z; correct it.", path)
        else:
            check_size(
                shape or (1,), dtype.itemsize, path, archive.getinfo(f"{name}.npy").file_size
            )
        voxels = read_voxels(blocks_of(stream), shape if fortran else shape[::-1], dtype)
    return voxels if fortran else voxels.T
