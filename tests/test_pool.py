"""The pool of slices that the compact models learn from."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from compact import phantom
from compact.pool import MR_WHITE, add_volume, build_pool, load_pool, modalities
from xaiclip.errors import ConfigError

SMALL = phantom.PhantomSettings(spacing=(6.0, 7.0), thickness=(12.0, 14.0), slices=(8, 9))


@pytest.mark.parametrize(("volumes", "share"), [(1, 0.35), (20, 0.35), (20, 0), (7, 1), (3, 0.5)])
def test_modalities_keep_the_share(volumes: int, share: float) -> None:
    drawn = modalities(volumes, share)
    assert len(drawn) == volumes
    for n in range(1, volumes + 1):
        assert abs(drawn[:n].count("MR") - share * n) < 1


@pytest.mark.slow
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


def test_which_slices_are_kept_and_in_what_order(tmp_path: Path) -> None:
    """Those with an organ, and the first and the last without, from the feet to the head."""
    image = np.tile(np.arange(8, dtype=np.int16) * 100, (5, 6, 1))
    label = np.zeros((5, 6, 8), np.uint8)
    label[1, 2, 3:6] = 4
    add_volume(tmp_path, "x", image, label, np.diag([2.0, 3.0, 5.0, 1.0]), "CT", "late")
    pieces = load_pool(tmp_path)
    assert [int(p.image[0, 0]) for p in pieces] == [0, 300, 400, 500, 700]
    assert [bool(p.label.any()) for p in pieces] == [False, True, True, True, False]
    assert {(p.modality, p.detail, p.volume, p.spacing) for p in pieces} == {
        ("CT", "late", "x", (3.0, 2.0))
    }
    # x towards the patient's right and y anterior: the far end of both is the first pixel
    assert [tuple(at) for at in np.argwhere(pieces[2].label)] == [(3, 3)]


def test_ct_values_are_kept_from_air_to_bone(tmp_path: Path) -> None:
    image = np.tile(np.array([-2000, -1024, -100, 40, 900, 1500, 3000], np.int16), (4, 1, 1))
    add_volume(tmp_path, "x", image, np.ones_like(image), np.eye(4), "CT", "")
    assert np.unique([p.image for p in load_pool(tmp_path)]).tolist() == [
        *(-1024, -100, 40, 900, 1500),
    ]


def test_volumes_are_the_phantoms_of_their_seeds(tmp_path: Path) -> None:
    build_pool(tmp_path, 2, seed=31, mr_fraction=0.5, settings=SMALL)
    pieces = load_pool(tmp_path)
    for seed, modality in ((31, "CT"), (32, "MR")):
        drawn = phantom.generate(seed, modality, SMALL)
        mine = [p for p in pieces if p.volume == f"{seed:08d}_{modality.lower()}"]
        assert {p.detail for p in mine} == {drawn.description["protocol"]}
        assert {p.modality for p in mine} == {modality}
        labels = np.stack([p.label for p in mine])
        wanted = nib.as_closest_canonical(nib.Nifti1Image(drawn.label, drawn.affine))
        whole = np.asarray(wanted.dataobj)[::-1, ::-1].transpose(2, 1, 0)
        np.testing.assert_array_equal(labels[labels.any((1, 2))], whole[whole.any((1, 2))])


def test_mr_is_stored_by_percentiles_of_its_tissue(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 700, (16, 16, 6)).astype(np.int16)
    label = np.ones(image.shape, np.uint8)
    add_volume(tmp_path, "x", image, label, np.eye(4), "MR", "T1")
    stored = np.stack([p.image for p in load_pool(tmp_path)])
    low, high = np.percentile(image[image > 0], (0.5, 99.5))
    back = np.clip((image - low) / (high - low) * MR_WHITE, 0, None)
    assert abs(np.sort(stored.ravel()) - np.sort(back.ravel())).max() <= 0.51


def test_what_shines_in_mr_is_cut_at_twice_the_white(tmp_path: Path) -> None:
    """And what a scanner stores below 0 is no tissue."""
    image = np.tile(np.arange(-50, 200, dtype=np.int16), (20, 2, 1)).transpose(2, 1, 0).copy()
    image[3, 1, 4] = 30000
    add_volume(tmp_path, "x", image, np.ones(image.shape, np.uint8), np.eye(4), "MR", "T1")
    (tmp_path / ".tmp-y.npz").write_bytes(b"half a file")  # another one is being written
    stored = np.stack([p.image for p in load_pool(tmp_path)])
    assert (stored.min(), stored.max()) == (0, 2 * MR_WHITE)
    low, high = np.percentile(image[image > 0], (0.5, 99.5))
    back = np.clip((image - low) / (high - low) * MR_WHITE, 0, 2 * MR_WHITE)
    assert abs(np.sort(stored.ravel()) - np.sort(back.ravel())).max() <= 0.51


@pytest.mark.filterwarnings("error")
def test_mr_of_a_single_value_is_black(tmp_path: Path) -> None:
    image = np.full((5, 6, 4), 7, np.int16)
    add_volume(tmp_path, "x", image, np.ones(image.shape, np.uint8), np.eye(4), "MR", "T1")
    assert not np.stack([p.image for p in load_pool(tmp_path)]).any()


def test_an_empty_folder_is_no_pool(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no pool"):
        load_pool(tmp_path)
