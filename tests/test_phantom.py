"""The procedural abdomen: reproducible, anatomically the right way round, and not too easy."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from xaiclip.data.phantom import ORGANS, PhantomSettings, PhantomVolume, generate, write

SMALL = PhantomSettings(
    spacing=(4.0, 4.0), thickness=(6.0, 6.0), slices=(14, 16), missing={}, truncated=0.0
)


def canonical(volume: PhantomVolume) -> tuple[np.ndarray, np.ndarray]:
    """Image and label with axes towards right, anterior, superior."""
    image, label = (
        nib.as_closest_canonical(nib.Nifti1Image(data, volume.affine))
        for data in (volume.image, volume.label)
    )
    return np.asarray(image.dataobj), np.asarray(label.dataobj)


def centre(label: np.ndarray, organ: str) -> np.ndarray:
    return np.argwhere(label == ORGANS[organ]).mean(0)


@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_same_seed_same_volume(modality: str) -> None:
    first, again, other = (generate(s, modality, SMALL) for s in (3, 3, 4))
    assert np.array_equal(first.image, again.image)
    assert np.array_equal(first.label, again.label)
    assert np.array_equal(first.affine, again.affine)
    assert first.description == again.description
    assert first.image.shape != other.image.shape or not np.array_equal(first.image, other.image)


@pytest.mark.parametrize("modality", ["CT", "MR"])
@pytest.mark.parametrize("seed", range(4))
def test_types_and_ranges(seed: int, modality: str) -> None:
    volume = generate(seed, modality, SMALL)
    assert volume.image.dtype == np.int16
    assert volume.label.dtype == np.uint8
    assert volume.image.shape == volume.label.shape
    assert 14 <= min(volume.image.shape) <= 16
    assert volume.affine.shape == (4, 4)
    assert set(np.unique(volume.label)) <= {0, *ORGANS.values()}
    assert volume.image.min() >= (-1024 if modality == "CT" else 0)
    assert json.loads(json.dumps(volume.description)) == volume.description


@pytest.mark.parametrize("code", ["RAS", "LPS", "LAS", "RPI", "LPI"])
def test_sides_survive_every_stored_orientation(code: str) -> None:
    volume = generate(11, "CT", replace(SMALL, orientations=(code,)))
    assert "".join(nib.aff2axcodes(volume.affine)) == code
    assert volume.description["orientation"] == code
    _, label = canonical(volume)
    aorta = centre(label, "aorta")
    assert centre(label, "liver")[0] > aorta[0] > centre(label, "spleen")[0]
    assert centre(label, "right kidney")[0] > aorta[0] > centre(label, "left kidney")[0]
    assert centre(label, "inferior vena cava")[0] > aorta[0]
    assert centre(label, "stomach")[1] > centre(label, "left kidney")[1]
    assert centre(label, "liver")[2] > centre(label, "right kidney")[2]


def test_orientation_only_permutes_the_array() -> None:
    one, two = (generate(5, "CT", replace(SMALL, orientations=(c,))) for c in ("RAS", "LPI"))
    assert np.array_equal(canonical(one)[0], canonical(two)[0])
    assert np.array_equal(canonical(one)[1], canonical(two)[1])
    corner = np.array([*np.array(two.image.shape) - 1, 1])
    assert np.allclose((two.affine @ corner)[:3], one.affine[:3, 3])


def test_middle_slices_show_the_main_organs() -> None:
    wanted = ("liver", "right kidney", "spleen", "pancreas", "left kidney")
    hits = 0
    for seed in range(10):
        _, label = canonical(generate(seed, "CT", SMALL))
        middle = label.shape[2] // 2
        seen = np.unique(label[:, :, middle - 1 : middle + 2])
        hits += all(ORGANS[name] in seen for name in wanted)
    assert hits >= 7


def test_no_intensity_interval_finds_the_liver() -> None:
    settings = replace(SMALL, phases=(1.0, 0.0, 0.0, 0.0))
    best = []
    for seed in range(8):
        image, label = canonical(generate(seed, "CT", settings))
        liver = label == ORGANS["liver"]
        edges = np.arange(-20, 121, 5)
        every, inside = (np.histogram(v, edges)[0].cumsum() for v in (image, image[liver]))
        dice = [
            2 * (inside[j] - inside[i]) / (every[j] - every[i] + liver.sum())
            for i in range(len(every))
            for j in range(i + 1, len(every))
        ]
        best.append(max(dice))
    assert np.mean(np.array(best) < 0.7) >= 0.75


def test_organs_look_like_themselves_on_plain_ct() -> None:
    settings = replace(SMALL, phases=(1.0, 0.0, 0.0, 0.0))
    for seed in range(3):
        image, label = canonical(generate(seed, "CT", settings))
        for organ in ("liver", "spleen", "aorta", "right kidney"):
            assert -20 < np.median(image[label == ORGANS[organ]]) < 90, (seed, organ)
        assert (label == ORGANS["liver"]).sum() > 3 * (label == ORGANS["spleen"]).sum()


def test_missing_organs_are_absent_and_reported() -> None:
    gone = {"gallbladder": 1.0, "spleen": 1.0, "left kidney": 1.0, "pancreas": 1.0}
    volume = generate(2, "CT", replace(SMALL, missing=gone))
    assert volume.description["missing"] == sorted(gone)
    assert not np.isin(volume.label, [ORGANS[name] for name in gone]).any()
    assert (volume.label == ORGANS["right kidney"]).any()


def test_bad_requests_are_explained() -> None:
    with pytest.raises(ValueError, match="use one of CT, MR"):
        generate(0, "PET", SMALL)
    with pytest.raises(ValueError, match="appendix"):
        generate(0, "CT", replace(SMALL, missing={"appendix": 1.0}))


def test_write_round_trip(tmp_path: Path) -> None:
    volume = generate(7, "MR", replace(SMALL, orientations=("LPS",)))
    paths = [tmp_path / "sub" / name for name in ("a.nii.gz", "a_label.nii.gz")]
    write(volume, *paths)
    first = [p.read_bytes() for p in paths]
    image, label = (nib.load(p) for p in paths)
    assert np.array_equal(np.asarray(image.dataobj), volume.image)
    assert np.array_equal(np.asarray(label.dataobj), volume.label)
    assert image.get_data_dtype() == np.int16
    assert label.get_data_dtype() == np.uint8
    assert np.allclose(image.affine, volume.affine, atol=1e-3)
    assert int(image.header["qform_code"]) == int(image.header["sform_code"]) == 1
    write(volume, *paths)
    assert [p.read_bytes() for p in paths] == first
    assert sorted(p.name for p in (tmp_path / "sub").iterdir()) == sorted(p.name for p in paths)
    with pytest.raises(ValueError, match=r"\.nii\.gz"):
        write(volume, tmp_path / "a.nii", paths[1])
