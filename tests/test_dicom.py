"""DICOM scans: every voxel with the value and in the place that its own slice's header says."""

import logging
import os
import shutil
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import dicom_files as make
from dicom_files import ENCODINGS, HU, OBLIQUE, SHAPE, STRAIGHT, enhanced, plane, save, series
from xaiclip.data.dicom import read_dicom, read_slices
from xaiclip.data.volumes import read_volume
from xaiclip.errors import CaseError

ROOT = Path(__file__).parents[1]
REUSED = settings(
    deadline=None,
    max_examples=60,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
CANONICAL = HU[::-1, ::-1]  # of straight slices: LPS to RAS


def assert_read(path, wanted=HU, directions=STRAIGHT, step=None, dtype=np.int16, atol=1e-6):
    array, affine = read_dicom(path)
    assert array.dtype == dtype
    np.testing.assert_allclose(array, wanted, rtol=0, atol=0 if dtype == np.int16 else 1e-3)
    np.testing.assert_allclose(affine, make.affine(directions, step=step), atol=atol)


@pytest.mark.parametrize("directions", [STRAIGHT, OBLIQUE, np.eye(3)[[0, 2]] * [[1], [-1]]])
def test_places(tmp_path, directions):
    """Axial, oblique and coronal: a pixel lies where the standard's equation puts it."""
    folder = series(tmp_path / "scan ü", lambda k: plane(k, directions=directions))
    assert_read(folder, directions=directions)
    column, row, k = 4, 1, 5
    x, y, z = (
        make.position(k, directions)
        + column * make.SPACING[0] * directions[0]
        + row * make.SPACING[1] * directions[1]
    )
    volume = read_volume(folder)
    place = np.linalg.inv(volume.geometry.canonical_affine) @ (-x, -y, z, 1)
    index = np.rint(place[:3]).astype(int)
    np.testing.assert_allclose(place[:3], index, atol=1e-6)
    assert volume.array[tuple(index)] == HU[column, row, k]


def test_a_tilted_gantry_shears_the_affine(tmp_path):
    step = (0, 0.8, 3)
    assert_read(series(tmp_path / "s", lambda k: plane(k, step=step)), step=step)


def spacing_lies(k):
    return plane(k, SpacingBetweenSlices="-1", SliceThickness="0.5", InstanceNumber=SHAPE[2] - k)


def rounded_cosines(k):
    return plane(k, ImageOrientationPatient=["1", f"{1e-4 * (k % 2)}", "0", "0", "1", "0"])


def implicit(k):
    file = plane(k)
    file.file_meta.TransferSyntaxUID = pydicom.uid.ImplicitVRLittleEndian
    return file


def big_endian(k):
    file = plane(k)
    file.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRBigEndian
    file.set_original_encoding(False, False)  # else pydicom refuses to write it
    file.PixelData = np.frombuffer(file.PixelData, "<u2").astype(">u2").tobytes()
    return file


def run_length(k):
    file = plane(k)
    file.compress(pydicom.uid.RLELossless)
    return file


def signed_padding(k):
    file = plane(k, RescaleIntercept="0", PixelPaddingValue=0)
    make.set_pixels(file, HU[:, :, k].T)
    return file


def twelve_bits(k):
    """Old scanners keep overlays in the four upper bits."""
    file = plane(k, BitsStored=12, HighBit=11)
    stored = np.frombuffer(file.PixelData, "<u2") | 0xA000
    file.PixelData = stored.astype("<u2").tobytes()
    return file


def private_and_odd(k):
    file = plane(k, SliceThickness=None)
    block = file.private_block(0x0029, "SOMEBODY", create=True)
    block.add_new(1, "UN", bytes(300))
    block.add_new(2, "SQ", [make.item(PatientID="x")])
    block.add_new(3, "UN", b"\xfe\xff\x00\xe0" * 20)
    file.AccessionNumber = "far longer than sixteen characters are"
    return file


def own_intercepts(k):
    file = plane(k, RescaleIntercept=str(-1000 - k))
    make.set_pixels(file, (HU[:, :, k].T.astype(np.int32) + 1000 + k).astype(np.uint16))
    return file


GOOD = [
    *(plane, spacing_lies, rounded_cosines, implicit, big_endian, run_length, signed_padding),
    *(twelve_bits, private_and_odd, own_intercepts),
    lambda k: plane(k, RescaleSlope="0.9999999975"),
    lambda k: plane(k, PhotometricInterpretation="MONOCHROME1"),
]


@pytest.mark.parametrize("one", GOOD)
def test_ways_to_write_the_same_scan(tmp_path, one):
    with pydicom.config.disable_value_validation():
        folder = series(tmp_path / "s", one)
    assert_read(folder)


def test_order_and_names_do_not_count(tmp_path):
    folder = tmp_path / "s"
    for k, other in enumerate(np.random.default_rng(1).permutation(SHAPE[2])):
        save(plane(k, InstanceNumber=int(other)), folder / f"IM.{other}")
    assert_read(folder)


@pytest.mark.slow
@pytest.mark.parametrize("syntax", ENCODINGS)
@pytest.mark.parametrize("signed", [False, True])
def test_compressed(tmp_path, syntax, signed):
    if signed and syntax == pydicom.uid.JPEG2000Lossless:
        signed = False  # Pillow writes none; the enhanced file below has several frames instead
        save(enhanced(), tmp_path / "s" / "one.dcm")
    else:
        series(tmp_path / "s", signed_padding if signed else plane)
    for file in (tmp_path / "s").iterdir():
        make.compress(file, syntax)
        assert pydicom.dcmread(file).file_meta.TransferSyntaxUID == syntax
    assert_read(tmp_path / "s")


def test_frames_of_one_file(tmp_path):
    """Enhanced CT, frames in any order, thickness wrong; as a folder, a file, and in two files."""
    order = [3, 1, 0, 2, 6, 5, 4]
    save(enhanced(order, OBLIQUE), tmp_path / "f" / "IM1")
    assert_read(tmp_path / "f", directions=OBLIQUE)
    save(enhanced(order), tmp_path / "x.dcm")
    assert_read(tmp_path / "x.dcm")
    np.testing.assert_array_equal(read_volume(tmp_path / "x.dcm").array, CANONICAL)
    for number in range(2):
        save(enhanced(order[number::2]), tmp_path / "two" / f"{number}")
    assert_read(tmp_path / "two")

    def own(number):  # where each frame has its own, what is shared does not count
        return make.rescale(1, -1000 + order[number])

    save(enhanced(order, shared=make.rescale(7, 7), own=own), tmp_path / "own.dcm")
    assert_read(tmp_path / "own.dcm", HU + np.arange(SHAPE[2]))


@pytest.mark.parametrize("slopes", [(1.5, 0.5), (0.000244, 0.000244), (1, 0.25)])
def test_each_slice_by_its_own_slope(tmp_path, slopes):
    def one(k):
        return plane(k, RescaleSlope=str(slopes[k % 2]), RescaleIntercept="-3.25")

    wanted = np.stack(
        [(HU[:, :, k] + 1000.0) * slopes[k % 2] - 3.25 for k in range(SHAPE[2])], axis=2
    )
    assert_read(series(tmp_path / "s", one), wanted, dtype=np.float32)


def test_values_beyond_16_bits(tmp_path):
    def one(k):
        file = plane(k, RescaleIntercept="0")
        stored = HU[:, :, k].T.astype(np.int32) + (61000 if k == 3 else 1000)
        make.set_pixels(file, stored.astype(np.uint16))
        return file

    wanted = HU.astype(np.int32) + 1000
    wanted[:, :, 3] += 60000
    assert_read(series(tmp_path / "s", one), wanted, dtype=np.float32)


@pytest.mark.slow
@pytest.mark.parametrize(("step", "digits"), [(0.625, 1), (0.625, 2), (0.75, 1), (0.45, 1), (3, 0)])
def test_rounded_positions(tmp_path, step, digits):
    """The line that fits best leads through them; but a missing slice is seen all the same."""

    def one(k):
        place = np.round(make.FIRST + [0, 0, step * k], digits)
        return plane(k % SHAPE[2], ImagePositionPatient=make.decimals(place), InstanceNumber=k)

    _, affine = read_dicom(series(tmp_path / "s", one, range(40)))
    np.testing.assert_allclose(affine[:3, 2], (0, 0, step), atol=2e-3)
    np.testing.assert_allclose(affine[:3, 3], make.affine()[:3, 3], atol=0.06)
    for missing in (1, 20, 38):
        folder = series(tmp_path / str(missing), one, sorted({*range(40)} - {missing}))
        with pytest.raises(CaseError, match="not evenly spaced"):
            read_dicom(folder)


@pytest.mark.slow
@REUSED
@given(
    st.integers(0, 2**32 - 1), st.floats(0.5, 10), st.integers(1, 9), st.integers(3, 12), st.data()
)
def test_any_stack(tmp_path, seed, step, digits, count, data):
    """Whatever the direction: places rounded to ``digits`` are taken, a missing slice is seen."""
    rng = np.random.default_rng(seed)
    directions = np.linalg.qr(rng.normal(size=(3, 3)))[0][:2]
    along = np.cross(*directions) * step

    def one(k):
        place = np.round(make.FIRST + k * along, digits)
        return plane(k % SHAPE[2], directions=directions, ImagePositionPatient=make.decimals(place))

    folder = tmp_path / "s"
    shutil.rmtree(folder, ignore_errors=True)
    array, affine = read_dicom(series(folder, one, range(count)))
    assert array.shape == (*SHAPE[:2], count)
    wanted = make.affine(directions, step=along)
    last = [2, 3, count - 1, 1]
    np.testing.assert_allclose(affine @ last, wanted @ last, atol=1e-6 + 1.5 * 10.0**-digits)
    missing = data.draw(st.integers(1, count - 2))
    (folder / f"IM{missing:04d}.dcm").unlink()
    if count > 3:
        with pytest.raises(CaseError, match="not evenly spaced"):
            read_dicom(folder)


@pytest.mark.parametrize("keep", [[0, 1, 3], [0, 2, 3, 4, 5, 6], [0, 1, 2, 3, 4, 6]])
def test_a_missing_slice(tmp_path, keep):
    with pytest.raises(CaseError, match="not evenly spaced"):
        read_dicom(series(tmp_path / "s", slices=keep))

    def thin(k):
        return plane(k, ImagePositionPatient=make.decimals(make.FIRST + [0, 0, 0.2 * k]))

    with pytest.raises(CaseError, match="not evenly spaced"):
        read_dicom(series(tmp_path / "thin", thin, slices=keep))


@pytest.mark.parametrize("name", ["one.dcm", "folder/IM1"])
def test_a_single_slice(tmp_path, name):
    save(plane(3, SpacingBetweenSlices="9"), tmp_path / name)
    array, affine = read_dicom(tmp_path / name.split("/")[0])
    np.testing.assert_array_equal(array, HU[:, :, 3:4])
    np.testing.assert_allclose(affine, make.affine(first=make.position(3)), atol=1e-6)
    file = pydicom.dcmread(tmp_path / name)
    file.SliceThickness = None
    save(file, tmp_path / name)
    assert read_dicom(tmp_path / name.split("/")[0])[1][2, 2] == 9
    file.SpacingBetweenSlices = None
    save(file, tmp_path / name)
    with pytest.raises(CaseError, match="without a thickness"):
        read_dicom(tmp_path / name.split("/")[0])


def test_copies_count_once(tmp_path):
    folder = series(tmp_path / "s")
    for file in sorted(folder.iterdir())[2:]:
        shutil.copy(file, folder / f"copy of {file.name}")
    assert_read(folder)


def test_what_lies_beside_a_series(tmp_path):
    """A burnt disc, a Mac's doubles, the radiologist's report and contours."""
    folder = series(tmp_path / "s")
    save(make.empty("1.2.840.10008.1.3.10"), folder / "DICOMDIR")
    for kind, sop_class in (("SR", "88.22"), ("RTSTRUCT", "481.3"), ("PR", "11.1")):
        report = make.empty(f"1.2.840.10008.5.1.4.1.1.{sop_class}", kind)
        report.SeriesInstanceUID = f"1.2.{sop_class}"
        save(report, folder / f"{kind}.dcm")
    save(plane(0, Modality="RTDOSE", SeriesInstanceUID="1.2.9"), folder / "dose.dcm")
    overlay = make.segmentation()
    overlay.SeriesInstanceUID = "1.2.3"
    save(overlay, folder / "seg.dcm")
    (folder / "README").write_text("a viewer")
    (folder / "Thumbs.db").write_bytes(b"\xd0\xcf\x11\xe0" + bytes(600))
    (folder / "._IM0001.dcm").write_bytes(b"\0\5\x16\7" + bytes(200))
    os.mkfifo(folder / "pipe.log")
    (folder / "below").mkdir()
    save(plane(0), folder / "below" / "x.dcm")
    assert_read(folder)


def test_files_without_a_preamble(tmp_path):
    folder = series(tmp_path / "s", implicit)
    for file in folder.iterdir():
        old = pydicom.dcmread(file)
        old.preamble, old.file_meta = None, pydicom.dataset.FileMetaDataset()
        old.save_as(file, implicit_vr=True, little_endian=True)
        assert file.read_bytes()[:2] == b"\x08\x00"
    assert_read(folder)


def test_slices_of_any_series(tmp_path):
    """CHAOS gave each file a series of its own; the files follow the array's last axis."""
    files = [
        save(plane(k, SeriesInstanceUID=f"1.2.{k}"), tmp_path / f"{97 * k % 11}.dcm")
        for k in range(SHAPE[2])
    ]
    volume, ordered = read_slices(files[::-1])
    assert ordered == files
    np.testing.assert_array_equal(volume.array, CANONICAL)
    np.testing.assert_allclose(volume.geometry.affine, make.affine(), atol=1e-6)
    with pytest.raises(CaseError, match="2 DICOM series"):
        read_dicom(series(tmp_path / "two", lambda k: plane(k, SeriesInstanceUID=f"1.2.{k % 2}")))
    save(enhanced(), tmp_path / "enhanced.dcm")
    with pytest.raises(CaseError, match="one slice") as caught:
        read_slices([*files, tmp_path / "enhanced.dcm"])
    assert caught.value.file == tmp_path / "enhanced.dcm"


def test_nothing_of_a_header_reaches_the_log(tmp_path, caplog, recwarn):
    with pydicom.config.disable_value_validation():
        folder = series(tmp_path / "s", private_and_odd)
    for file in folder.iterdir():
        raw = file.read_bytes()
        file.write_bytes(
            raw.replace(
                b"UI\x1c\x00" + make.SERIES.encode(), b"UI\x1c\x00" + b"1.02.x" * 4 + b"9999"
            )
        )
    caplog.set_level(logging.DEBUG)
    recwarn.clear()
    read_dicom(folder)
    assert caplog.text == ""
    assert not recwarn.list


@pytest.mark.slow
@REUSED
@given(st.integers(0, SHAPE[2] - 1), st.data())
@pytest.mark.parametrize("one", [plane, run_length, None])
def test_any_damage_ends_in_a_sentence(tmp_path, one, k, data):
    """Bytes changed, cut off or put in anywhere: refused, or read as a volume."""
    folder = tmp_path / "s"
    if folder.exists():
        shutil.rmtree(folder)
    if one is None:
        save(enhanced(), folder / "IM0000.dcm")
        k = 0
    else:
        series(folder, one)
    file = folder / f"IM{k:04d}.dcm"
    raw = bytearray(file.read_bytes())
    at = data.draw(st.integers(0, 4000)) % len(raw)
    match data.draw(st.sampled_from(["cut", "insert", "change"])):
        case "cut":
            raw = raw[:at]
        case "insert":
            raw[at:at] = data.draw(st.binary(min_size=1, max_size=9))
        case "change":
            raw[at] = data.draw(st.integers(0, 255))
    file.write_bytes(raw)
    try:
        shape, reason = read_dicom(folder)[0].shape, "."
    except CaseError as error:
        shape, reason = SHAPE, error.reason
    assert shape == SHAPE
    assert reason.endswith(".")
    assert reason.isprintable()
    assert "Doe" not in reason
    assert make.SERIES not in reason
