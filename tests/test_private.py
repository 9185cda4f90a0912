"""A study of scans whose paths and headers name a patient, with cases that fail: what it publishes.

One run through Snakemake; everything below is looked up in it.
"""

import gzip
import io
import json
import os
import re
import stat
import subprocess
import sys
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pydicom
import pytest
import yaml
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from compact import phantom
from test_workflow import planned, snakemake
from xaiclip.localizer.backbone import BackboneSettings, load_backbone
from xaiclip.localizer.model import Localizer, save_localizer
from xaiclip.organs import SIX_CLASSES

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
PATIENT = "DOE_JANE_19700101"
SERIES = "1.2.826.0.1.3680043.8.498.17"
#: Nothing that is published holds one of these, in upper or lower case.
SECRETS = ("doe_jane", "doe^jane", "doe jane", "19700101", "mrn0815", SERIES)

#: Takes every slice but one with a bright border, and tells the world whose it is.
SEGMENTER = """
from xaiclip.models.segmenters.loading import load_segmenter

def make(device, precision):
    model = load_segmenter({{"model": "compact"}}, str(device), precision)
    prepare = model.prepare
    def picky(image):
        if min(edge.min() for edge in (image[0], image[-1], image[:, 0], image[:, -1])) == 255:
            raise RuntimeError("cannot take {folder}/c4.nii.gz\\n00:00:00 INFO all is well")
        return prepare(image)
    model.prepare = picky
    return model
"""


def write_dicom(folder, volume):
    """A series with all that a scanner writes about a patient; file names, too."""
    folder.mkdir()
    array = np.flip(volume.image, (0, 1)).astype(np.int16)  # RAS to LPS
    for k in range(array.shape[2]):
        meta = pydicom.dataset.FileMetaDataset()
        meta.MediaStorageSOPClassUID = CTImageStorage
        meta.MediaStorageSOPInstanceUID = f"{SERIES}.{k + 1}"
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        one = pydicom.Dataset()
        one.file_meta = meta
        one.SOPClassUID, one.SOPInstanceUID = CTImageStorage, f"{SERIES}.{k + 1}"
        one.PatientName, one.PatientID, one.PatientBirthDate = "DOE^JANE", "MRN0815", "19700101"
        one.StudyInstanceUID, one.SeriesInstanceUID = SERIES + ".0", SERIES
        one.FrameOfReferenceUID = SERIES + ".9"
        one.Modality, one.InstanceNumber = "CT", k + 1
        one.ImagePositionPatient = [0, 0, 5 * k]
        one.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        one.PixelSpacing, one.SliceThickness = [3, 3], 5
        one.Rows, one.Columns = array.shape[1], array.shape[0]
        one.SamplesPerPixel, one.PhotometricInterpretation = 1, "MONOCHROME2"
        one.BitsAllocated = one.BitsStored = 16
        one.HighBit, one.PixelRepresentation = 15, 1
        one.RescaleSlope, one.RescaleIntercept = 1, 0
        one.PixelData = array[:, :, k].T.tobytes()
        one.save_as(folder / f"DOE JANE {k:03d}.dcm", enforce_file_format=True)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """The finished study's folder; its scans lie in another."""
    directory = tmp_path_factory.mktemp("study")
    scans = tmp_path_factory.mktemp("archive") / PATIENT
    scans.mkdir()
    settings = phantom.PhantomSettings(max_inplane=96, slices=(24, 24), orientations=("RAS",))
    volumes = {name: phantom.generate(seed, "CT", settings) for seed, name in enumerate("1345")}
    for name, volume in volumes.items():
        array = volume.image.copy()
        if name == "4":  # a bright border, whichever way it is turned
            array[:2], array[-2:], array[:, :2], array[:, -2:] = 3000, 3000, 3000, 3000
        image = nib.Nifti1Image(array, volume.affine)
        image.header["descrip"], image.header["db_name"] = b"DOE^JANE", b"MRN0815"
        image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"DOE^JANE 19700101"))
        nib.save(image, scans / f"c{name}.nii.gz")
        nib.save(nib.Nifti1Image(volume.label, volume.affine), scans / f"c{name}_seg.nii.gz")
    write_dicom(scans / "DOE_JANE series", volumes["5"])
    broken = scans / "DOE_JANE cut off.nii.gz"
    broken.write_bytes((scans / "c1.nii.gz").read_bytes()[:9000])
    rows = [
        "case\timage\tlabel\tmodality\tsplit\tbatch",
        "c1\tc1.nii.gz\tc1_seg.nii.gz\tCT\ttest\ta",
        f"c2\t{broken.name}\tc1_seg.nii.gz\tCT\ttest\ta",
        "c3\tc3.nii.gz\tc3_seg.nii.gz\tCT\ttest\ta",
        "c4\tc4.nii.gz\tc4_seg.nii.gz\tCT\ttest\ta",
        "c5\tDOE_JANE series\t\tCT\ttest\tb",
        "c6\tDOE_JANE empty\t\tCT\ttest\tb",
    ]
    (scans / "DOE_JANE empty").mkdir()
    (scans / "DOE_JANE.tsv").write_text("\n".join(rows) + "\n")
    localizer = Localizer(load_backbone(BackboneSettings()), list(SIX_CLASSES))
    save_localizer(scans / "DOE_JANE.safetensors", localizer)
    (scans / "DOE_JANE.py").write_text(SEGMENTER.format(folder=scans))
    config = {
        "run": "x",
        "data": {
            "source": "sheet",
            "sheet": str(scans / "DOE_JANE.tsv"),
            "slices": {"test": {"policy": "middle"}},
        },
        "downloads": str(scans),
        "localizer": {"weights": str(scans / "DOE_JANE.safetensors")},
        "segmenter": {"factory": f"{scans / 'DOE_JANE.py'}:make"},
        "explain": {"prompt": "reference", "methods": ["occlusion"], "guidances": ["full"]},
        "methods": {"occlusion": {"window": 128, "stride": 128}},
        "statistics": {"resamples": 100},
        "figures": {"dpi": 40},
        "device": "cpu",
    }
    (directory / "study.yaml").write_text(yaml.safe_dump(config))
    snakemake(directory, "--configfile", str(directory / "study.yaml"))
    snakemake(directory, "--configfile", str(directory / "study.yaml"), "--report", "report.html")
    return directory, scans


def contents(path):
    """All bytes of a file that may hold words, unpacked."""
    raw = path.read_bytes()
    yield raw
    if path.suffix == ".gz":
        yield gzip.decompress(raw)
    elif path.suffix == ".npz":
        with zipfile.ZipFile(io.BytesIO(raw)) as archive:
            for name in archive.namelist():
                yield name.encode() + archive.read(name)
    elif path.suffix == ".parquet":
        yield pd.read_parquet(path).to_csv().encode()


def told(path):
    """The secrets that a file tells."""
    found = set()
    for content in contents(path):
        lower = content.lower()
        # as text, as UTF-16, and as JSON or HTML writes a caret
        found |= {s for s in SECRETS if s.encode() in lower or s.encode("utf-16-le") in lower}
    return found


def published(directory):
    files = [path for path in (directory / "results").rglob("*") if path.is_file()]
    return [path for path in files if "private" not in path.parts] + [directory / "report.html"]


def test_nothing_of_a_patient_is_published(study):
    directory, _ = study
    files = published(directory)
    assert len(files) > 40
    assert {str(path): told(path) for path in files if told(path)} == {}


def test_what_looks_for_secrets_finds_them(study):
    directory, scans = study
    assert told(directory / "results/x/private/test-a.json") >= {"doe_jane", "19700101"}
    assert told(scans / "c1.nii.gz") >= {"doe^jane", "mrn0815"}
    assert SERIES in told(scans / "DOE_JANE series/DOE JANE 000.dcm")


def test_the_private_files_say_where_things_lie_to_their_owner_alone(study):
    directory, scans = study
    private = directory / "results/x/private"
    assert stat.S_IMODE(private.stat().st_mode) == 0o700
    assert {path.name for path in private.iterdir()} == {"test-a.json", "test-b.json", "study.json"}
    for path in private.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    cases = json.loads((private / "test-b.json").read_text())
    assert cases["c5"] == {"image": str(scans / "DOE_JANE series")}
    kept = json.loads((private / "study.json").read_text())
    assert kept["config"]["data"]["sheet"] == str(scans / "DOE_JANE.tsv")
    assert kept["weights"]["localizer"] == [str(scans / "DOE_JANE.safetensors")]


def test_each_bad_case_is_left_out_with_its_reason(study):
    directory, _ = study
    results = directory / "results/x"
    skips = pd.read_csv(results / "skipped.tsv", sep="\t", keep_default_na=False)
    whole = skips[skips.organ == ""].set_index("case")
    assert set(whole.index) == {"c2", "c4", "c6"}
    assert whole.stage["c2"] == whole.stage["c6"] == "slices"
    assert whole.reason["c2"].startswith("image: ")
    assert set(whole.stage[["c4"]]) == {"segment"}
    rows = pd.read_parquet(results / "metrics/explanations.parquet")
    for case, reason in {
        "c2": whole.reason["c2"],
        "c4": "unexpected: RuntimeError; the log of the stage has the details.",
        "c6": whole.reason["c6"],
    }.items():
        assert set(rows[rows.case == case].skipped) == {reason}
    assert rows[rows.case.isin(["c1", "c3"])].skipped.isna().any()


def test_the_log_has_the_traceback_and_no_line_of_another(study):
    directory, _ = study
    log = (directory / "results/x/logs/segment/test-a.log").read_text()
    assert "c4, slice 12: unexpected, left out\nTraceback" in log
    assert r"\n00:00:00 INFO all is well" in log
    assert not re.search("^00:00:00", log, re.M)


def test_provenance_is_keyed_by_case_and_role(study):
    directory, _ = study
    provenance = json.loads((directory / "results/x/provenance.json").read_text())
    assert set(provenance["data"]) == {"c1", "c2", "c3", "c4", "c5", "c6"}
    assert set(provenance["data"]["c1"]) == {"image", "label"}
    assert set(provenance["weights"]) == {"localizer", "resources/compact/clip.safetensors"}
    assert re.fullmatch("[0-9a-f]{64}", provenance["backbone"]["fingerprint"])
    assert provenance["config"]["data"]["sheet"] == "(private)"


def test_the_finished_study_can_be_checked(study):
    directory, scans = study
    command = [sys.executable, ROOT / "scripts/verify.py", "results/x"]

    def verify():
        done = subprocess.run(
            command,
            capture_output=True,
            encoding="utf-8",
            cwd=directory,
            env={"PYTHONPATH": str(ROOT / "scripts"), "PATH": "/usr/bin:/bin", "PYTHONUTF8": "1"},
        )
        return [line for line in done.stdout.splitlines() if line.startswith("differs")]

    assert verify() == []
    last = scans / "DOE_JANE series/DOE JANE 023.dcm"
    content, before = last.read_bytes(), last.stat()
    last.write_bytes(content[:-2] + b"\1\1")
    found = verify()
    last.write_bytes(content)
    os.utime(last, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert any("data c5/image: has SHA-256" in line for line in found)


def test_a_scan_that_is_written_again_reruns_its_batch(study):
    """One slice of a series, in place."""
    directory, scans = study
    arguments = ("--configfile", str(directory / "study.yaml"))
    one = scans / "DOE_JANE series/DOE JANE 003.dcm"
    before = one.stat()
    assert "slices" not in planned(directory, *arguments)
    one.write_bytes(one.read_bytes())
    assert planned(directory, *arguments)["slices"] == 1
    # as it was, to the nanosecond
    os.utime(one, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert "slices" not in planned(directory, *arguments)


def test_a_scan_dated_in_the_future_is_read_once(study):
    """On a disk that nobody may write to, its time cannot be mended."""
    directory, scans = study
    arguments = ("--configfile", str(directory / "study.yaml"))
    os.utime(scans / "c1.nii.gz", (4e9, 4e9))
    assert planned(directory, *arguments)["slices"] == 1
    snakemake(directory, *arguments, "--until", "slices")
    assert (directory / "results/x/slices/test-a.npz").exists()
    assert "slices" not in planned(directory, *arguments)


def test_weights_dated_in_the_future_are_refused_in_a_sentence(study):
    directory, scans = study
    os.utime(scans / "DOE_JANE.safetensors", (4e9, 4e9))
    arguments = ("--configfile", str(directory / "study.yaml"), "--dry-run")
    output = snakemake(directory, *arguments, check=False)
    assert "is dated in the future (2096-10-02" in output
    assert "Traceback" not in output
    os.utime(scans / "DOE_JANE.safetensors")
