"""DICOM segmentations as labels: each organ's voxels where the image has them."""

import numpy as np
import pydicom
import pytest

import dicom_files as make
from dicom_files import OBLIQUE, ORGANS, SHAPE, STRAIGHT, item, save, segmentation, series
from xaiclip.data.dicom import read_dicom_label
from xaiclip.data.geometry import Geometry
from xaiclip.data.sheet import Case
from xaiclip.data.slices import take_slices
from xaiclip.errors import CaseError
from xaiclip.organs import FLARE22

#: Ids of a study, in another order than the segments'.
TABLE = {7: "right kidney", 4: "spleen", 9: "liver"}
IDS = np.array([0, 9, 7, 4])
#: All of the image's slices are those of `dicom_files`, stored in another order.
GRID = Geometry(make.affine(), SHAPE)


def read(path, image=GRID, labels=TABLE):
    array, affine = read_dicom_label(path, image, labels)
    np.testing.assert_array_equal(affine, image.affine)
    assert array.shape == image.shape
    return array


@pytest.mark.parametrize("kind", ["BINARY", "FRACTIONAL", "LABELMAP"])
@pytest.mark.parametrize("directions", [STRAIGHT, OBLIQUE])
def test_kinds(tmp_path, kind, directions):
    file = save(segmentation(kind=kind, directions=directions), tmp_path / "s" / "seg")
    image = Geometry(make.affine(directions), SHAPE)
    np.testing.assert_array_equal(read(file.parent, image), IDS[ORGANS])


@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
@pytest.mark.parametrize("flips", [(1, 1, 1), (-1, 1, -1), (1, -1, 1)])
def test_an_image_stored_in_another_order(tmp_path, axes, flips):
    file = save(segmentation(), tmp_path / "seg.dcm")
    flip = np.eye(4)
    for axis, sign in enumerate(flips):
        if sign < 0:
            flip[axis, axis], flip[axis, 3] = -1, SHAPE[axis] - 1
    affine = (make.affine() @ flip)[:, [*axes, 3]]
    wanted = IDS[ORGANS][tuple(slice(None, None, sign) for sign in flips)].transpose(axes)
    image = Geometry(affine, wanted.shape)
    np.testing.assert_array_equal(read(file, image), wanted)


def test_a_cropped_segmentation(tmp_path):
    """3D Slicer may leave out rows, columns and slices without anything in them."""
    file = segmentation(kind="LABELMAP", organs=ORGANS[1:, :4])
    shift = make.SPACING[0] * STRAIGHT[0]
    for frame in file.PerFrameFunctionalGroupsSequence:
        place = frame.PlanePositionSequence[0]
        place.ImagePositionPatient = make.decimals(np.array(place.ImagePositionPatient) + shift)
    wanted = IDS[ORGANS]
    np.testing.assert_array_equal(read(save(file, tmp_path / "seg.dcm")), wanted)


@pytest.mark.parametrize(
    "names",
    [
        {1: "LIVER", 2: "Kidney, right", 3: "Spleen"},
        {1: "liver", 2: "kidney_right", 3: "spleen"},
        {1: "Segment 1", 2: "Segment 2", 3: "Segment 3"},
    ],
)
def test_segments_are_told_by_name(tmp_path, names):
    """Of the label, or of the coded anatomy; never by number, which each tool counts anew."""
    file = segmentation(names=names)
    if names[1] == "Segment 1":
        for segment, words in zip(
            file.SegmentSequence, (["Liver"], ["Kidney", "Right"], ["Spleen"]), strict=True
        ):
            kind = item(CodeMeaning=words[0])
            if len(words) > 1:
                kind.SegmentedPropertyTypeModifierCodeSequence = pydicom.Sequence(
                    [item(CodeMeaning=words[1])]
                )
            segment.SegmentedPropertyTypeCodeSequence = pydicom.Sequence([kind])
    array = read(save(file, tmp_path / "seg.dcm"), labels=FLARE22)
    np.testing.assert_array_equal(array, np.array([0, 1, 2, 3])[ORGANS])


def test_only_the_segmentation_of_a_folder_counts(tmp_path):
    folder = series(tmp_path / "s")
    save(segmentation(), folder / "seg.dcm")
    np.testing.assert_array_equal(read(folder), IDS[ORGANS])
    save(segmentation(), folder / "again.dcm")
    with pytest.raises(CaseError, match="holds 2 segmentations"):
        read(folder)


def test_a_series_of_label_ids(tmp_path):
    """A label map that was exported as if it were a scan."""
    folder = series(tmp_path / "s", lambda k: make.plane(k, ORGANS))
    np.testing.assert_array_equal(read(folder), ORGANS)


def test_a_segmentation_as_the_label_of_a_case(tmp_path):
    """From the files to the slice as it is shown."""
    settings = {
        "classes": ["background", "right kidney", "liver"],
        "labels": TABLE,
        "window": {"level": 40, "width": 2000},
        "percentiles": {"low": 0.5, "high": 99.5},
        "policy": "index",
        "index": 3,
    }
    image, label = series(tmp_path / "ct"), save(segmentation(), tmp_path / "seg.dcm")
    (one,), skips, *_ = take_slices(Case("a", image, label, "CT", "test"), settings)
    assert not skips
    # columns of a straight axial slice run to the patient's left, rows to the back, as displayed
    np.testing.assert_array_equal(one.label, np.array([0, 2, 1, 0])[ORGANS[:, :, 3].T])


def overlapping():
    file = segmentation(kind="FRACTIONAL")
    stored = np.frombuffer(file.PixelData, np.uint8)[: 6 * 30].reshape(6, 30)
    both = np.where(stored.max(axis=0) > 100, 150, 0).astype(np.uint8)
    file.PixelData = np.tile(both, 6).tobytes()
    return file


def coarser():
    """Every slice of it meets one of the image's; those between would stay empty."""
    doubled = np.repeat(ORGANS[:, :, 2:4], 2, axis=2)
    doubled = np.concatenate([doubled, doubled[:, :, :3]], axis=2)
    file = segmentation(kind="LABELMAP", organs=doubled)
    for number, frame in enumerate(file.PerFrameFunctionalGroupsSequence[:4]):
        place = frame.PlanePositionSequence[0]
        place.ImagePositionPatient = make.decimals(make.position(2 * number))
    file.PerFrameFunctionalGroupsSequence = file.PerFrameFunctionalGroupsSequence[:4]
    file.NumberOfFrames = 4
    file.PixelData = file.PixelData[: 4 * 30]
    return file


def unlisted(kind):
    file = segmentation(kind=kind)
    file.SegmentSequence = file.SegmentSequence[1:]
    return file


def fine_rows():
    """Half the image's pixel spacing: every other pixel meets a voxel's centre."""
    file = segmentation()
    measures = file.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    measures.PixelSpacing = make.decimals(make.SPACING[1::-1] / 2)
    return file


def contours(kind="RTSTRUCT"):
    return make.empty("1.2.840.10008.5.1.4.1.1.481.3", kind)


@pytest.mark.parametrize(
    ("make_file", "words"),
    [
        (
            lambda: segmentation(names={1: "liver", 2: "tumour of Doe", 3: "x"}),
            "segments 2, 3 bear",
        ),
        (lambda: segmentation(SegmentSequence=pydicom.Sequence()), "lists no segments"),
        (
            lambda: segmentation(SegmentSequence=pydicom.Sequence([item(SegmentLabel="liver")])),
            "not numbered",
        ),
        (lambda: unlisted("BINARY"), "a segment that it does not list"),
        (lambda: unlisted("LABELMAP"), "a segment that it does not list"),
        (overlapping, "overlap"),
        (coarser, "further apart"),
        (fine_rows, "do not lie on the image's voxels"),
        (lambda: segmentation(shift=(0.2, 0, 0)), "do not lie on the image's voxels"),
        (lambda: segmentation(shift=(0, 0, 1.5)), "do not lie on the image's voxels"),
        (lambda: segmentation(shift=(0, 0, 30)), "do not lie on the image's voxels"),
        (lambda: segmentation(directions=OBLIQUE), "do not lie on the image's voxels"),
        (lambda: segmentation(PixelData=bytes(10)), "cut off"),
        (lambda: segmentation(NumberOfFrames=7), "cut off|bytes of pixels where|places"),
        (contours, "contours"),
        (lambda: contours("SR"), "no label map"),
        (lambda: contours("SEG"), "surfaces"),
    ],
)
def test_refused(tmp_path, make_file, words):
    file = save(make_file(), tmp_path / "seg.dcm")
    with pytest.raises(CaseError, match=words) as caught:
        read(file)
    assert caught.value.file == file
    assert caught.value.reason.endswith(".")
    assert "Doe" not in caught.value.reason
