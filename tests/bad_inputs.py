"""Bad scans and sample sheets from a seed, and what reading them came to.

Each input is read in a process of its own, with little memory and a time limit. The outcome is
``refused`` (one sentence), ``read`` (checked against nibabel, and against the way back), ``wrong``
(another map than nibabel's), ``traceback`` (any other error, or a crash) or ``hang``.
"""

import gzip
import multiprocessing
import resource
import shutil
import struct
import tempfile
import traceback
import warnings
from collections import Counter
from pathlib import Path

import nibabel as nib
import numpy as np
import SimpleITK as sitk

from bad_files import KINDS
from xaiclip.config.names import NAME
from xaiclip.data.geometry import display
from xaiclip.data.sheet import Case, read_sheet
from xaiclip.data.slices import take_slices
from xaiclip.data.volumes import read_volume, restore
from xaiclip.errors import CaseError, ConfigError

#: A reader may take this much more memory than the libraries have already.
MEMORY = 2**30
#: Seconds for one input; a good one takes milliseconds.
LIMIT = 20.0
SETTINGS = {
    "classes": ["background", "liver"],
    "labels": {1: "liver"},
    "window": {"level": 40, "width": 400},
    "percentiles": {"low": 0.5, "high": 99.5},
    "policy": "middle_labelled",
}


def _sentence(error):
    text = str(error)
    good = "\n" not in text and "\r" not in text and text.endswith((".", "?")) and len(text) < 20000
    return "refused" if good else f"traceback: not a sentence: {text!r}"


def _as_nibabel(path):
    """Voxels of a NIfTI file, packed or not, and the affines that its header has."""
    content = path.read_bytes()
    content = gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
    kind = nib.Nifti2Image if 540 in struct.unpack("<i", content[:4]) else nib.Nifti1Image
    if content[:4] in (b"\x00\x00\x02\x1c", b"\x00\x00\x01\x5c"):
        kind = nib.Nifti2Image if content[3] == 0x1C else nib.Nifti1Image
    image = kind.from_bytes(content)
    unit = {1: 1000, 3: 0.001}.get(int(image.header["xyzt_units"]) & 7, 1)
    affines = []
    for form in (image.get_sform, image.get_qform):
        affine, code = form(coded=True)
        if code > 0:
            affines.append(np.diag([unit, unit, unit, 1]) @ affine)
    return image.get_fdata(dtype=np.float32), affines


def _as_itk(path):
    """The same of ITK's formats; None where ITK does not read the file."""
    try:
        image = sitk.ReadImage(str(path))
    except RuntimeError:
        return None
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return sitk.GetArrayFromImage(image).T, [np.diag([-1, -1, 1, 1]) @ affine]


def _same_as_others(path):
    """Whether a scan has the voxels and places that others give it, and leads back to them."""
    volume = read_volume(path)
    geometry = volume.geometry
    assert volume.array.ndim == 3
    assert sum(size > 1 for size in volume.array.shape) > 1
    assert volume.array.shape[2] > 1 or volume.array.shape == geometry.canonical_shape
    assert np.isfinite(volume.array).all()
    assert all(0.009 < size < 101 for size in geometry.spacing)
    stored = geometry.from_canonical(volume.array)
    corner = np.array(volume.array.shape) - 1
    first = np.linalg.inv(geometry.affine) @ geometry.canonical_affine @ [*corner, 1]
    i, j, k = np.rint(first[:3]).astype(int)
    assert stored[i, j, k] == volume.array[tuple(corner)]
    name = path.name.lower()
    if not path.is_dir() and name.endswith((".nii", ".nii.gz", ".mha", ".mhd", ".nrrd", ".nhdr")):
        others = (_as_nibabel if ".nii" in name else _as_itk)(path)
    else:
        others = None
    if others is not None:
        truth, affines = others
        np.testing.assert_array_equal(np.squeeze(stored), np.squeeze(truth))
        if min(stored.shape) > 1:
            assert any(
                np.allclose(geometry.affine, affine, rtol=1e-5, atol=1e-4) for affine in affines
            )
    depth = volume.array.shape[2]
    back = restore({k: display(volume.array[:, :, k]) for k in range(depth)}, geometry)
    np.testing.assert_allclose(back.affine, geometry.affine, rtol=1e-5, atol=1e-4)
    np.testing.assert_array_equal(back.get_fdata(dtype=np.float32), stored.astype(np.float32))


def read(sample):
    """Read a sample as the workflow would; the outcome."""
    try:
        if isinstance(sample, Case):
            slices, skips, _ = take_slices(sample, SETTINGS)
            assert slices or skips
            for skip in skips:
                if skip.organ is None and (bad := _sentence(skip.reason)) != "refused":
                    return bad
            assert sample.label is not None
            truth = np.squeeze(nib.Nifti1Image.from_filename(sample.label).get_fdata())
            assert not slices or set(np.unique(truth)) <= {0, 1}, "a label was misread"
            return "read" if slices else "refused"
        if sample.name.endswith(".tsv"):
            for case in read_sheet(sample):
                _, skips, _ = take_slices(case, SETTINGS)  # no cell of them is a scan
                assert [_sentence(skip.reason) for skip in skips] == ["refused"]
                assert NAME.fullmatch(case.name)
                assert ".." not in Path(case.name).parts
            return "read"
        _same_as_others(sample)
        return "read"
    except (CaseError, ConfigError) as error:
        return _sentence(error)
    except AssertionError:
        return f"wrong: {traceback.format_exc()}"
    except BaseException:
        return f"traceback: {traceback.format_exc()}"


def _reader(pipe):
    warnings.simplefilter("ignore")
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY, taken + MEMORY))
    while True:
        pipe.send(read(pipe.recv()))


class Reader:
    """A process that reads samples, started again when it died or had to be killed."""

    def __init__(self):
        self.process = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()

    def stop(self):
        if self.process is not None:
            self.process.kill()
            self.process.join()
            self.process = None

    def outcome(self, sample):
        if self.process is None:
            context = multiprocessing.get_context("fork")
            self.pipe, theirs = context.Pipe()
            self.process = context.Process(target=_reader, args=(theirs,), daemon=True)
            self.process.start()
            theirs.close()
        self.pipe.send(sample)
        try:
            if self.pipe.poll(LIMIT):
                return self.pipe.recv()
            self.stop()
            return "hang"
        except EOFError:
            self.process.join()
            code = self.process.exitcode
            self.process = None
            return f"traceback: the process died ({code})"


def fuzz(count, seed, keep=None):
    """Make and read ``count`` bad inputs.

    Args:
        count: of inputs; the kinds take turns.
        seed: of all of them.
        keep: folder for the inputs that were not treated well, or None.

    Returns:
        ``bad_inputs``, ``refused``, ``read``, ``wrong``, ``tracebacks``, ``hangs``, and
        ``failures``: (kind, seed, outcome) of the last three.
    """
    totals: Counter[str] = Counter()
    failures = []
    with Reader() as reader:
        for number in range(count):
            kind = KINDS[number % len(KINDS)]
            rng = np.random.default_rng([seed, number])
            with tempfile.TemporaryDirectory(prefix="bad ü ") as name:
                outcome = reader.outcome(kind(rng, Path(name)))
                word = outcome.split(":")[0]
                totals[word] += 1
                if word not in ("refused", "read"):
                    failures.append((kind.__name__, [seed, number], outcome))
                    if keep:
                        shutil.copytree(name, Path(keep) / f"{kind.__name__}_{seed}_{number}")
    return {
        "bad_inputs": count,
        **{word: totals[word] for word in ("refused", "read", "wrong")},
        "tracebacks": totals["traceback"],
        "hangs": totals["hang"],
        "failures": failures,
    }
