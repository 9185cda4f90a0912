"""The pool of slices that the compact models learn from."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from xaiclip.data import phantom
from xaiclip.data.pool import MR_WHITE, add_volume, build_pool, load_pool, modalities
from xaiclip.errors import ConfigError

SMALL = phantom.PhantomSettings(spacing=(6.0, 7.0), thickness=(12.0, 14.0), slices=(8, 9))


@pytest.mark.parametrize(("volumes", "share"), [(1, 0.35), (20, 0.35), (20, 0), (7, 1), (3, 0.5)])
def test_modalities_keep_the_share(volumes: int, share: float) -> None:
    drawn = modalities(volumes, share)
    assert len(drawn) == volumes
    for n in range(1, volumes + 1):
        assert abs(drawn[:n].count("MR") - share * n) < 1


def test_a_pool_is_repeatable_resumable_and_independent_of_workers(tmp_path: Path) -> None:
    build_pool(tmp_path / "a", 3, seed=5, mr_fraction=0.5, settings=SMALL)
    build_pool(tmp_path / "b", 2, seed=5, mr_fraction=0.5, settings=SMALL, workers=2)
    kept = sorted((tmp_path / "b").iterdir())[0]
    before = kept.stat().st_mtime_ns
    build_pool(tmp_path / "b", 3, seed=5, mr_fraction=0.5, settings=SMALL)
    assert kept.stat().st_mtime_ns == before
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "b").iterdir())
    assert names == ["00000005_ct.npz", "00000006_mr.npz", "00000007_ct.npz"]
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    (tmp_path / "a" / ".tmp-x.npz").write_bytes(b"half a file")
    pieces = load_pool(tmp_path / "a")
    assert {p.volume for p in pieces} == {name.removesuffix(".npz") for name in names}
    for p in pieces:
        assert p.image.shape == p.label.shape
        assert (p.image.dtype, p.label.dtype) == (np.int16, np.uint8)
        low, high = (-1024, 1500) if p.modality == "CT" else (0, 2 * MR_WHITE)
        assert low <= p.image.min() <= p.image.max() <= high
    assert sum(not p.label.any() for p in pieces) <= 2 * len(names)


@pytest.mark.parametrize("code", ["RAS", "LPS", "PIR"])
def test_slices_are_in_display_order_whatever_the_storage(code: str, tmp_path: Path) -> None:
    """Row 0 is anterior and column 0 the patient's right, at the spacing of that axis."""
    image, label = np.zeros((4, 6, 5), np.int16), np.zeros((4, 6, 5), np.uint8)
    image[3, 5, 2], label[3, 5, 2] = 900, 2  # the far corner: anterior, right
    canonical = nib.Nifti1Image(label, np.diag([1.0, 2.0, 3.0, 1.0]))
    turn = nib.orientations.ornt_transform(
        nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(code)
    )
    stored = canonical.as_reoriented(turn)
    grey = nib.orientations.apply_orientation(image, turn)
    add_volume(tmp_path, "x", grey, np.asarray(stored.dataobj), stored.affine, "CT", "non-contrast")
    pieces = load_pool(tmp_path)
    (one,) = [p for p in pieces if p.label.any()]
    assert one.label.shape == (6, 4)
    assert one.spacing == (2.0, 1.0)
    assert one.label[0, 0] == 2
    assert one.image[0, 0] == 900
    assert len(pieces) == 3


def test_mr_is_stored_by_percentiles_of_its_tissue(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 700, (16, 16, 6)).astype(np.int16)
    label = np.ones(image.shape, np.uint8)
    add_volume(tmp_path, "x", image, label, np.eye(4), "MR", "T1")
    stored = np.stack([p.image for p in load_pool(tmp_path)])
    low, high = np.percentile(image[image > 0], (0.5, 99.5))
    back = np.clip((image - low) / (high - low) * MR_WHITE, 0, None)
    assert abs(np.sort(stored.ravel()) - np.sort(back.ravel())).max() <= 0.51


def test_an_empty_folder_is_no_pool(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no pool"):
        load_pool(tmp_path)
