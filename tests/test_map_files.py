"""The maps of a case as NIfTI: where they lie, what they are called, and what is blank."""

from __future__ import annotations

import shutil
from contextlib import ExitStack
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from xaiclip.data.geometry import Geometry
from xaiclip.data.record import Slice, load_slices, save_slices
from xaiclip.errors import Skip
from xaiclip.explain.attribution import Attribution, open_attributions, save_attributions
from xaiclip.export import nifti
from xaiclip.organs import file_stem

#: Axes in another order, unequal spacing, a shift: (Z, X, Y) are stored.
AFFINE = np.array([[0, 2.0, 0, -30], [0, 0, -1.5, 40], [5.0, 0, 0, 7], [0, 0, 0, 1]])
GEOMETRY = Geometry(AFFINE, (4, 31, 45))
ORGANS = ["spleen", "right kidney", "liver"]
SHAPE = (45, 31)  # rows anterior to posterior, columns right to left


def slices(*indices: int) -> dict[int, Slice]:
    image = np.arange(SHAPE[0] * SHAPE[1]).reshape(SHAPE).astype(np.uint8)
    return {i: Slice("a", i, "CT", image, None, GEOMETRY) for i in indices}


def attribution(organ: str, level: float, variant: str = "plain", primary: bool = True):
    """Grows to the right of the picture; ``level`` at its left edge."""
    one = np.broadcast_to(level + np.linspace(0, 1, 512, dtype=np.float32), (512, 512)).copy()
    one[:40] = np.nan
    return Attribution(organ, variant, "soft_dice", one, ("p",), primary)


def write(tmp_path: Path, stored, own=None, organs=ORGANS) -> tuple[Path, list[Skip]]:
    with ExitStack() as stack:
        files = {}
        for (method, guidance), maps in stored.items():
            path = tmp_path / f"{method}_{guidance}.npz"
            save_attributions(path, maps)
            files[method, guidance] = stack.enter_context(open_attributions(path))
        folder = tmp_path / "maps" / "a"
        skips = nifti.write_maps(
            folder, "a", slices(1, 3) if own is None else own, files, organs, 2
        )
    return folder, skips


def test_each_organ_method_and_guidance_has_its_file(tmp_path):
    """Whatever was made: another case's maps, a variant, an organ that was left out."""
    stored = {
        ("lime", "full"): [
            ("b", 1, attribution("spleen", 5)),
            ("a", 1, attribution("spleen", 1)),
            ("a", 1, attribution("spleen", 2, "slic", primary=False)),
            ("a", 3, attribution("spleen", 3)),
        ],
        ("lime", "roi"): [],
    }
    folder, skips = write(tmp_path, stored)
    assert skips == []
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*.nii.gz")}
    assert names == {
        f"{organ}_lime_{guidance}.nii.gz"
        for organ in ("spleen", "right_kidney", "liver")
        for guidance in ("full", "roi")
    } | {"variants/spleen_lime_full_slic_soft_dice.nii.gz"}
    with_values = {
        path.name for path in folder.rglob("*.nii.gz")
        if np.isfinite(nib.load(path).get_fdata()).any()
    }  # fmt: skip
    assert with_values == {
        "spleen_lime_full.nii.gz",
        "spleen_lime_full_slic_soft_dice.nii.gz",
    }


def test_a_map_lies_where_its_slices_do(tmp_path):
    maps = [("a", 1, attribution("liver", 1)), ("a", 3, attribution("liver", 3))]
    folder, _ = write(tmp_path, {("rise", "roi"): maps}, organs=["liver"])
    image = nib.load(folder / "liver_rise_roi.nii.gz")
    np.testing.assert_allclose(image.affine, AFFINE)
    assert image.shape == GEOMETRY.shape
    assert image.get_data_dtype() == np.float32
    assert image.header.get_xyzt_units()[0] == "mm"
    values = np.asarray(image.dataobj)  # (superior, right, posterior)
    assert np.isnan(values[[0, 2]]).all()
    for index in (1, 3):
        # the picture's right is the patient's left; its upper rows are anterior, and undefined
        assert values[index, 0, 20] == pytest.approx(index + 1, abs=0.05)
        assert values[index, 30, 20] == pytest.approx(index, abs=0.05)
        assert np.isnan(values[index, :, :3]).all()
        assert np.isfinite(values[index, :, 5:]).all()


@pytest.mark.parametrize(("own", "shape"), [(None, (4, 31, 45)), ({}, (1, 1, 1))])
def test_what_was_left_out_has_no_value_and_says_so(tmp_path, own, shape):
    folder, skips = write(tmp_path, {("rise", "full"): []}, own)
    assert skips == []
    for organ in ("spleen", "right_kidney", "liver"):
        image = nib.load(folder / f"{organ}_rise_full.nii.gz")
        assert image.shape == shape
        assert np.isnan(image.get_fdata()).all()
        assert bytes(image.header["descrip"]).rstrip(b"\0") == nifti.LEFT_OUT
    assert list((folder / nifti.VARIANTS).iterdir()) == []


def test_a_map_that_fails_costs_itself(tmp_path, monkeypatch):
    original, calls = nifti._restored, []

    def planted(maps, of):
        maps = dict(maps)
        calls.append(maps)
        if np.nanmin(maps[1]) == 2:
            raise RuntimeError("planted")
        return original(maps.items(), of)

    monkeypatch.setattr(nifti, "_restored", planted)
    stored = {("rise", "roi"): [("a", 1, attribution(o, i)) for i, o in enumerate(ORGANS, start=1)]}
    folder, (skip,) = write(tmp_path, stored)
    assert (skip.case, skip.organ, skip.stage) == ("a", "right kidney", "maps (rise, roi)")
    assert skip.reason.startswith("unexpected: RuntimeError")
    blank = [np.isnan(nib.load(path).get_fdata()).all() for path in sorted(folder.glob("*.nii.gz"))]
    assert blank == [False, True, False]  # liver, right kidney, spleen
    assert len(calls) == 3


def test_variants_that_fail_leave_no_file_and_skips_have_an_order(tmp_path, monkeypatch):
    def planted(maps, of):
        raise RuntimeError("planted")

    monkeypatch.setattr(nifti, "_restored", planted)
    both = [attribution(organ, 1, "other", primary=False) for organ in ORGANS]
    stored = {
        (method, "full"): [("a", 1, one) for one in both] for method in ("rise", "lime")
    }  # fmt: skip
    folder, skips = write(tmp_path, stored)
    assert [path.name for path in (folder / nifti.VARIANTS).iterdir()] == []
    assert len(list(folder.glob("*.nii.gz"))) == 2 * len(ORGANS)  # blank, each in its place
    found = [(skip.stage.split()[1], skip.organ) for skip in skips]
    assert found == [(method, organ) for method in ("(lime,", "(rise,") for organ in sorted(ORGANS)]


def test_another_cases_maps_are_its_own(tmp_path):
    """A batch's file holds many cases: what this one lacks stays blank."""
    maps = [("b", 1, attribution(organ, 5)) for organ in ORGANS]
    maps += [("a", 1, attribution(ORGANS[-1], 2)), ("b", 3, attribution(ORGANS[-1], 5))]
    folder, skips = write(tmp_path, {("rise", "roi"): maps})
    assert not skips
    for organ in ORGANS:
        voxels = nib.load(folder / f"{file_stem(organ)}_rise_roi.nii.gz").get_fdata()
        if organ == ORGANS[-1]:
            assert np.nanmax(voxels) <= 3
            assert np.isnan(voxels[:, :, 3]).all()
        else:
            assert np.isnan(voxels).all()


def test_files_hang_on_the_maps_alone(tmp_path):
    stored = {("rise", "roi"): [("a", 1, attribution("liver", 1))]}
    folder, _ = write(tmp_path, stored, organs=["liver"])
    first = (folder / "liver_rise_roi.nii.gz").read_bytes()
    shutil.rmtree(folder)
    write(tmp_path, stored, organs=["liver"])
    assert (folder / "liver_rise_roi.nii.gz").read_bytes() == first


def test_slices_of_one_case_are_read_alone(tmp_path, monkeypatch):
    """A map or a slice of a large batch costs its own arrays, not the batch's."""
    path = tmp_path / "batch.npz"
    one = slices(1, 3)[1]
    others = [Slice(case, 2, "CT", one.image, one.image, GEOMETRY) for case in ("b", "c")]
    save_slices(path, [*slices(1, 3).values(), *others], [Skip("x", "slices", "why")])
    read: list[str] = []
    load = np.lib.npyio.NpzFile.__getitem__
    monkeypatch.setattr(
        np.lib.npyio.NpzFile,
        "__getitem__",
        lambda self, name: read.append(name) or load(self, name),
    )
    got, skips = load_slices(path, ["b"])
    assert [item.key for item in got] == ["b/2"]
    assert skips == [Skip("x", "slices", "why")]
    assert read == ["__meta__", "b/2/image", "b/2/label"]
    save_attributions(path, [(case, 1, attribution("liver", 1)) for case in ("a", "b", "c")])
    read.clear()
    with open_attributions(path) as stored:
        ((number, row),) = stored.find(case="b", organ="liver")
        assert (row["case"], row["slice"], number) == ("b", 1, 1)
        assert read == ["__meta__"]
        stored.read(number)
    assert set(read) == {"__meta__", "1/packed", "1/error"}  # which is not there
