"""Small DICOM files, made with pydicom: good ones, to be spoilt by tests."""

import io

import gdcm
import numpy as np
import pydicom
from PIL import Image
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.pixels.utils import pack_bits
from pydicom.sequence import Sequence
from pydicom.uid import (
    UID,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
)

#: Columns, rows, slices: no two alike, and no plane is a whole number of bytes in bits.
SHAPE = (6, 5, 7)
HU = np.random.default_rng(0).integers(-1000, 1500, SHAPE).astype(np.int16)
ORGANS = np.zeros(SHAPE, np.uint8)
ORGANS[1:3, 1:4, 2:5] = 1
ORGANS[4:5, 0:3, 3:6] = 2
NAMES = {1: "liver", 2: "right kidney", 3: "spleen"}
#: Between columns, rows and slices, mm.
SPACING = np.array([0.7, 1.2, 3.0])
FIRST = np.array([-20.0, 30.0, -40.0])
#: (2, 3): along a row, along a column, LPS; oblique about two axes.
_TILT, _TURN = np.deg2rad([12, 7])
OBLIQUE = np.array(
    [
        [np.cos(_TURN), np.sin(_TURN), 0],
        [
            -np.sin(_TURN) * np.cos(_TILT),
            np.cos(_TURN) * np.cos(_TILT),
            np.sin(_TILT),
        ],
    ]
)
STRAIGHT = np.eye(3)[:2]
CT = UID("1.2.840.10008.5.1.4.1.1.2")
ENHANCED_CT = UID("1.2.840.10008.5.1.4.1.1.2.1")
SEG = UID("1.2.840.10008.5.1.4.1.1.66.4")
LABELMAP = UID("1.2.840.10008.5.1.4.1.1.66.7")
SERIES = "1.2.826.0.1.3680043.8.498.77"
PATIENT = "Doe^Jane\x1b[31m"
_GDCM = {
    JPEGLosslessSV1: "JPEGLosslessProcess14_1",
    JPEGLSLossless: "JPEGLSLossless",
}
#: The compressed encodings that hospitals use.
ENCODINGS = (*_GDCM, JPEG2000Lossless)


def affine(directions=STRAIGHT, first=FIRST, step=None):
    """From (column, row, slice) to RAS, as the files below say it."""
    matrix = np.eye(4)
    matrix[:3, :2] = directions.T * SPACING[:2]
    matrix[:3, 2] = np.cross(*directions) * SPACING[2] if step is None else step
    matrix[:3, 3] = first
    return np.diag([-1, -1, 1, 1]) @ matrix


def position(k, directions=STRAIGHT, step=None):
    return FIRST + k * (np.cross(*directions) * SPACING[2] if step is None else np.array(step))


def decimals(values):
    return [f"{value:.9f}"[:16] for value in np.ravel(values)]


def empty(sop_class=CT, modality="CT", number=0, syntax=ExplicitVRLittleEndian):
    """A file without pixels and place."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = syntax
    meta.MediaStorageSOPClassUID = sop_class
    meta.MediaStorageSOPInstanceUID = UID(f"{SERIES}.{number + 1}")
    file = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
    file.SOPClassUID, file.SOPInstanceUID = sop_class, meta.MediaStorageSOPInstanceUID
    file.Modality, file.SeriesInstanceUID, file.StudyInstanceUID = modality, SERIES, SERIES + ".0"
    with pydicom.config.disable_value_validation():
        file.PatientName, file.PatientID = PATIENT, "4711"
    return file


def set_pixels(file, stored):
    """Pixels (frames, rows, columns) or (rows, columns), uncompressed."""
    stored = np.asarray(stored)
    file.Rows, file.Columns = stored.shape[-2:]
    file.SamplesPerPixel, file.PhotometricInterpretation = 1, "MONOCHROME2"
    bits = stored.dtype.itemsize * 8
    file.BitsAllocated, file.BitsStored, file.HighBit = bits, bits, bits - 1
    file.PixelRepresentation = int(stored.dtype.kind == "i")
    file.PixelData = stored.tobytes() + bytes(stored.nbytes % 2)
    file["PixelData"].VR = "OB" if bits == 8 else "OW"


def plane(k, hu=HU, directions=STRAIGHT, step=None, **elements):
    """The file of slice k: stored + 1000 = unsigned, so that the rescale tags matter."""
    file = empty(number=k)
    file.ImagePositionPatient = decimals(position(k, directions, step))
    file.ImageOrientationPatient = decimals(directions)
    file.PixelSpacing, file.SliceThickness = decimals(SPACING[1::-1]), str(SPACING[2])
    file.RescaleSlope, file.RescaleIntercept = "1", "-1000"
    set_pixels(file, (hu[:, :, k].T.astype(np.int32) + 1000).astype(np.uint16))
    for name, value in elements.items():
        if value is None:
            delattr(file, name)
        else:
            setattr(file, name, value)
    return file


def save(file, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    file.save_as(path, enforce_file_format=True)
    return path


def series(folder, make=plane, slices=range(SHAPE[2]), name="IM{:04d}.dcm"):
    """One file a slice."""
    for k in slices:
        save(make(k), folder / name.format(k))
    return folder


def item(**elements):
    one = Dataset()
    for name, value in elements.items():
        setattr(one, name, value)
    return one


def multiframe(
    stored, places, sop_class, modality, directions=STRAIGHT, own=lambda n: {}, shared=None
):
    """A file with functional groups: (frames, rows, columns) at positions ``places``."""
    file = empty(sop_class, modality)
    set_pixels(file, stored)
    file.NumberOfFrames = len(places)
    measures = item(PixelSpacing=decimals(SPACING[1::-1]), SliceThickness="1.5")
    groups = item(
        PixelMeasuresSequence=Sequence([measures]),
        PlaneOrientationSequence=Sequence([item(ImageOrientationPatient=decimals(directions))]),
        **(shared or {}),
    )
    file.SharedFunctionalGroupsSequence = Sequence([groups])
    file.PerFrameFunctionalGroupsSequence = Sequence(
        [
            item(
                PlanePositionSequence=Sequence([item(ImagePositionPatient=decimals(place))]),
                **own(number),
            )
            for number, place in enumerate(places)
        ]
    )
    return file


def rescale(slope, intercept):
    one = item(RescaleSlope=str(slope), RescaleIntercept=str(intercept), RescaleType="HU")
    return {"PixelValueTransformationSequence": Sequence([one])}


def enhanced(order=range(SHAPE[2]), directions=STRAIGHT, **options):
    """Enhanced CT whose frames come in ``order``."""
    options = {"shared": rescale(1, -1000), **options}
    stored = np.stack([(HU[:, :, k].T.astype(np.int32) + 1000).astype(np.uint16) for k in order])
    places = [position(k, directions) for k in order]
    return multiframe(stored, places, ENHANCED_CT, "CT", directions, **options)


def segmentation(
    organs=ORGANS, kind="BINARY", names=NAMES, directions=STRAIGHT, shift=(0, 0, 0), **changes
):
    """DICOM SEG of the slices that hold something; a frame for each segment and slice."""
    held = [k for k in range(organs.shape[2]) if organs[:, :, k].any()]
    if kind == "LABELMAP":
        frames = [(organs[:, :, k].T, k, None) for k in held]
    else:
        frames = [
            (np.equal(organs[:, :, k].T, number).astype(np.uint8), k, number)
            for number in names
            for k in held
            if (organs[:, :, k] == number).any()
        ]
    stored = np.stack([one for one, _, _ in frames]).astype(np.uint8)
    if kind == "FRACTIONAL":  # around one half of 200
        stored = np.where(stored, 101, 100).astype(np.uint8)

    def own(number):
        if kind == "LABELMAP":
            return {}
        segment = item(ReferencedSegmentNumber=frames[number][2])
        return {"SegmentIdentificationSequence": Sequence([segment])}

    places = [position(k, directions) + shift for _, k, _ in frames]
    file = multiframe(
        stored, places, LABELMAP if kind == "LABELMAP" else SEG, "SEG", directions, own
    )
    file.SegmentationType = kind
    if kind == "FRACTIONAL":
        file.MaximumFractionalValue = 200
    if kind == "BINARY":
        file.BitsAllocated, file.BitsStored, file.HighBit = 1, 1, 0
        file.PixelData = pack_bits(stored)
    file.SegmentSequence = Sequence(
        [item(SegmentNumber=number, SegmentLabel=name) for number, name in names.items()]
    )
    for name, value in changes.items():
        setattr(file, name, value)
    return file


def compress(path, syntax):
    """Compress a file in place: JPEG 2000 by Pillow, the others by gdcm."""
    if syntax == JPEG2000Lossless:
        stored = pydicom.dcmread(path).pixel_array
        stored = stored.reshape(-1, *stored.shape[-2:])
        repack(path, [jpeg2000(frame) for frame in stored], syntax)
        return
    reader = gdcm.ImageReader()
    reader.SetFileName(str(path))
    assert reader.Read()
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, _GDCM[syntax])))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer = gdcm.ImageWriter()
    writer.SetFileName(str(path.with_suffix(".tmp")))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()
    repack(path, fragments(path.with_suffix(".tmp")), syntax)
    path.with_suffix(".tmp").unlink()


def jpeg2000(frame):
    stream = io.BytesIO()
    Image.fromarray(frame).save(stream, "JPEG2000", no_jp2=True, num_resolutions=1)
    return stream.getvalue()


def fragments(path):
    """The compressed frames of a file."""
    file = pydicom.dcmread(path)
    count = int(file.get("NumberOfFrames", 1))
    return list(generate_frames(file.PixelData, number_of_frames=count))


def repack(path, frames, syntax):
    """The same file with other compressed frames."""
    file = pydicom.dcmread(path)
    file.file_meta.TransferSyntaxUID = syntax
    file.PixelData = encapsulate(list(frames))
    file["PixelData"].VR = "OB"
    file["PixelData"].is_undefined_length = True
    file.save_as(path, enforce_file_format=True)
