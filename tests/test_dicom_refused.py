"""DICOM that cannot be trusted: a sentence, the file that it is about, nothing of a patient."""

import os
import struct

import numpy as np
import pydicom
import pytest
from pydicom.uid import RLELossless

import dicom_files as make
from dicom_files import HU, SHAPE, enhanced, item, plane, save, series
from xaiclip.data.dicom import pixels, read_dicom
from xaiclip.errors import CaseError

ODD = "IM0003.dcm"
#: Beginnings of elements in a file.
COMMENTS = b"\x20\x00\x00\x40LT"
SLOPE, ROWS, FRAMES = b"\x28\x00\x53\x10DS", b"\x28\x00\x10\x00US", b"\x28\x00\x08\x00IS"


def refused(path):
    """Reason and file; the reason is fit to be published."""
    with pytest.raises(CaseError) as caught:
        read_dicom(path)
    reason = caught.value.reason
    assert reason.endswith(".")
    assert reason.isprintable()
    for secret in ("Doe", "4711", make.SERIES):
        assert secret not in reason
    return reason, caught.value.file


def changed(**elements):
    """A scan of which one slice is different."""

    def make_folder(folder):
        with pydicom.config.disable_value_validation():
            series(folder, lambda k: plane(k, **(elements if k == 3 else {})))

    return make_folder


def added(**elements):
    """A scan, and one more image in its series."""

    def make_folder(folder):
        series(folder, slices=[0, 1, 2])
        save(plane(3, **elements), folder / ODD)

    return make_folder


def spoilt(change):
    """A scan of which one file's bytes are changed."""

    def make_folder(folder):
        series(folder)
        file = folder / ODD
        file.write_bytes(change(file.read_bytes()))

    return make_folder


def other(put):
    """A scan with something else in place of a slice."""

    def make_folder(folder):
        series(folder)
        (folder / ODD).unlink()
        put(folder / ODD)

    return make_folder


def smaller(folder):
    series(folder)
    make_one = plane(3)
    make.set_pixels(make_one, np.zeros((4, 6), np.uint16))
    save(make_one, folder / ODD)


def fewer_bits(folder):
    series(folder)
    make_one = plane(3)
    make.set_pixels(make_one, np.zeros((5, 6), np.uint8))
    save(make_one, folder / ODD)


def another_scale(folder):
    """The same stored values twice, of which one file makes others."""
    series(folder, slices=[0, 1, 2])
    save(plane(0, RescaleIntercept="-999"), folder / ODD)


def without_end(folder):
    series(folder)
    file = folder / ODD
    make.repack(file, [run_length(b"\x1d" + bytes(30))], RLELossless)
    file.write_bytes(file.read_bytes()[:-8])


def colours(folder):
    series(folder)
    file = plane(3, PhotometricInterpretation="RGB", SamplesPerPixel=3)
    file.PlanarConfiguration, file.PixelData = 0, file.PixelData * 3
    save(file, folder / ODD)


def without_pixels(folder):
    series(folder)
    save(plane(3, PixelData=None), folder / ODD)


def cut_off(last):
    """In the last file, and in files without a suffix: nothing else is missing there."""

    def make_folder(folder):
        series(folder, name="IM{:04d}")
        file = folder / "IM0006"
        file.write_bytes(file.read_bytes()[:last])
        file.rename(folder / "ODD")

    return make_folder


def renamed(name):
    """A slice that is still packed, or did not arrive whole."""

    def make_folder(folder):
        series(folder)
        (folder / ODD).write_bytes(b"\x1f\x8b" + bytes(100))
        (folder / ODD).rename(folder / name)

    return make_folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        # what one slice says, and the others do not
        (changed(RescaleSlope=None, RescaleIntercept=None), "having a rescale slope"),
        (changed(RescaleIntercept=None), "slope without an intercept"),
        (changed(RescaleSlope="0"), "slope of 0"),
        (changed(RescaleSlope="nan"), "Rescale Slope .* is not a number"),
        (spoilt(lambda raw: raw.replace(SLOPE + b"\x02\x001 ", SLOPE + b"\x04\x001,5 ")), "Slope"),
        (changed(PixelSpacing=["2.4", "1.4"]), "pixel spacing"),
        (changed(PixelSpacing=["0.7", "1.2"]), "pixel spacing"),
        (changed(PixelSpacing=["0", "0"]), "pixel spacing is not positive"),
        (changed(PixelSpacing=None), "no pixel spacing"),
        (changed(ImagePositionPatient=None), "no image position"),
        (changed(ImagePositionPatient=["0", "0"]), "not 3 numbers"),
        (changed(ImagePositionPatient=["0", "inf", "0"]), "not 3 numbers"),
        (changed(ImageOrientationPatient=None), "no image orientation"),
        (changed(ImageOrientationPatient=["1", "0", "0", "0", "0", "-1"]), "orientation"),
        (changed(ImageOrientationPatient=["1", "0", "0", "0.1", "1", "0"]), "two unit vectors"),
        (changed(ImageOrientationPatient=["0"] * 6), "two unit vectors"),
        (changed(Modality="MR"), "modality"),
        (changed(PhotometricInterpretation="MONOCHROME1"), "photometric"),
        (changed(PhotometricInterpretation="PALETTE COLOR"), "colours"),
        (changed(SOPClassUID="1.2.840.10008.5.1.4.1.1.7"), "kind of object"),
        (
            changed(
                ModalityLUTSequence=pydicom.Sequence(
                    [item(LUTDescriptor=[1, 0, 16], LUTData=b"\0\0")]
                )
            ),
            "a table",
        ),
        (changed(NumberOfFrames="2"), "bytes of pixels|cut off"),
        (smaller, "size"),
        (fewer_bits, "number of bits"),
        (another_scale, "phases"),
        (without_end, "cut off"),
        (colours, "3 values in each voxel"),
        # scouts where the next slice would be
        (added(ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]), "scout"),
        (added(ImageOrientationPatient=["1", "0", "0", "0", "0", "-1"]), "orientation"),
        (added(RescaleIntercept="-999", ImagePositionPatient=make.decimals(make.FIRST)), "phases"),
        (added(PixelData=bytes(60), ImagePositionPatient=make.decimals(make.FIRST)), "phases"),
        (added(ImageType=["DERIVED", "SECONDARY", "MPR"]), "kind of image"),
        # more or fewer pixels than the header claims: foreign memory, or a shifted image
        (changed(Rows=10), "cut off"),
        (changed(Columns=12), "cut off"),
        (changed(Rows=4), "60 bytes of pixels where"),
        (changed(Rows=0), "claims"),
        (changed(BitsAllocated=8), "60 bytes of pixels where"),
        (changed(BitsAllocated=12), "12 bits"),
        (changed(SamplesPerPixel=2), "2 values"),
        (changed(NumberOfFrames="1000000000"), "claims"),
        (
            spoilt(lambda raw: raw.replace(ROWS, FRAMES + b"\x04\x00many" + ROWS)),
            "Number of Frames",
        ),
        (spoilt(lambda raw: raw[:-5]), "cut off"),
        (spoilt(lambda raw: raw[:-70]), "cut off"),
        (spoilt(lambda raw: raw[:300]), "cut off"),
        (spoilt(lambda raw: raw[:167]), "cut off"),
        (spoilt(lambda raw: raw[:140]), "cut off"),
        (spoilt(lambda raw: raw[:100]), "is no DICOM file"),
        (spoilt(lambda raw: b""), "is no DICOM file"),
        (spoilt(lambda raw: bytes(len(raw))), "is no DICOM file"),
        (spoilt(lambda raw: b"<html>404 Not Found</html>"), "is no DICOM file"),
        (
            spoilt(lambda raw: raw.replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.9\0")),
            "way",
        ),
        (spoilt(lambda raw: raw.replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.4.90")), "."),
        (
            spoilt(lambda raw: raw.replace(b"OW\0\0\x3c\0\0\0", b"OW\0\0\xff\xff\xff\xff")),
            "unknown",
        ),
        (cut_off(-5), "cut off"),
        (cut_off(200), "cut off"),
        (cut_off(0), "is no DICOM file"),
        (renamed("IM0003.dcm.gz"), "is no DICOM file"),
        (renamed("IM0003.dcm.part"), "is no DICOM file"),
        (without_pixels, "never had pixels"),
        # what is no file at all
        (other(os.mkfifo), "is no DICOM file"),
        (other(lambda path: path.symlink_to("nowhere")), "is no DICOM file"),
        (other(lambda path: path.symlink_to("/dev/zero")), "is no DICOM file"),
    ],
)
def test_a_bad_slice_is_named(tmp_path, spoil, words):
    folder = tmp_path / "4711 Doe"
    spoil(folder)
    reason, file = refused(folder)
    with pytest.raises(CaseError, match=words):
        raise CaseError(reason)
    assert file.name in (ODD, "ODD", f"{ODD}.gz", f"{ODD}.part")


@pytest.mark.parametrize("inside", [SLOPE, COMMENTS])
def test_a_header_cut_off_in_a_class_of_a_vendor(tmp_path, inside):
    """Nobody knows whether such a class has pixels; it is seen that an element has no end."""

    def one(k):
        with pydicom.config.disable_value_validation():
            return plane(k, SOPClassUID="1.3.12.2.1107.5.9.99", ImageComments="far away" * 5)

    folder = series(tmp_path / "s", one)
    file = folder / "IM0006.dcm"
    raw = file.read_bytes()
    file.write_bytes(raw[: raw.index(inside) + 9])
    reason, named = refused(folder)
    assert "cut off" in reason
    assert named == file


@pytest.mark.parametrize("odd", [0, SHAPE[2] - 1])
def test_the_odd_one_is_named_not_the_others(tmp_path, odd):
    folder = series(tmp_path / "s", lambda k: plane(k, Modality="MR" if k == odd else "CT"))
    assert refused(folder)[1] == folder / f"IM{odd:04d}.dcm"


def contours(folder):
    report = make.empty("1.2.840.10008.5.1.4.1.1.481.3", "RTSTRUCT")
    save(report, folder / "rs.dcm")


def below(folder):
    series(folder / "SE000001")


def two_series(folder):
    series(folder)
    series(folder, lambda k: plane(k, SeriesInstanceUID="9.8.7"), name="other{}.dcm")


def two_phases(folder):
    series(folder)
    series(folder, lambda k: plane(k, HU + 1), name="other{}.dcm")


def screenshot(folder):
    file = plane(0, ImagePositionPatient=None, ImageOrientationPatient=None, NumberOfFrames="7")
    stored = np.zeros((7, 5, 6), np.uint16)
    make.set_pixels(file, stored)
    save(file, folder / "sc.dcm")


def time_points(folder):
    save(enhanced([*range(SHAPE[2]), *range(SHAPE[2])]), folder / "e.dcm")


def places_missing(folder):
    file = enhanced()
    file.PerFrameFunctionalGroupsSequence = file.PerFrameFunctionalGroupsSequence[:-1]
    save(file, folder / "e.dcm")


def deflated(folder):
    def one(k):
        file = plane(k)
        file.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
        return file

    series(folder, one)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda folder: folder.mkdir(), "holds no DICOM series"),
        (below, "a folder in it does"),
        (contours, "holds no scan"),
        (lambda folder: save(make.segmentation(), folder / "s.dcm"), "holds no scan"),
        (two_series, "holds 2 DICOM series"),
        (two_phases, "phases, echoes or time points"),
        (time_points, "phases, echoes or time points"),
        (screenshot, "7 frames, but the places of 0"),
        (places_missing, "7 frames, but the places of 6"),
        (deflated, "deflated"),
    ],
)
def test_no_single_scan(tmp_path, spoil, words):
    spoil(tmp_path / "scan")
    with pytest.raises(CaseError, match=words):
        raise CaseError(refused(tmp_path / "scan")[0])


def test_a_file_without_permission(tmp_path, monkeypatch):
    folder = series(tmp_path / "s")
    opened = open

    def forbidding(path, *args, **options):
        if str(path).endswith(ODD):
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *args, **options)

    monkeypatch.setattr("builtins.open", forbidding)
    assert refused(folder) == ("cannot be read; correct its permissions.", folder / ODD)


def test_no_memory(tmp_path, monkeypatch):
    def exhausted(*_, **__):
        raise MemoryError

    monkeypatch.setattr(pixels.np, "zeros", exhausted)
    assert "too large for the memory" in refused(series(tmp_path / "s"))[0]


def run_length(content):
    """One frame in which both bytes of each pixel come from ``content``."""
    segments = [content, content]
    offsets = [64, 64 + len(content)]
    return struct.pack("<16L", 2, *offsets, *[0] * 13) + b"".join(segments)
