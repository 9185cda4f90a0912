"""The procedural abdomen: reproducible, anatomically the right way round, and not too easy."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from compact.phantom import ORGANS, PhantomSettings, PhantomVolume, generate, write

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


@pytest.mark.slow
def test_middle_slices_show_the_main_organs() -> None:
    wanted = ("liver", "right kidney", "spleen", "pancreas", "left kidney")
    hits = 0
    for seed in range(10):
        _, label = canonical(generate(seed, "CT", SMALL))
        middle = label.shape[2] // 2
        seen = np.unique(label[:, :, middle - 1 : middle + 2])
        hits += all(ORGANS[name] in seen for name in wanted)
    assert hits >= 7


@pytest.mark.slow
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


#: FLARE22's label ids, from the challenge.
IDS = {
    "liver": 1,
    "right kidney": 2,
    "spleen": 3,
    "pancreas": 4,
    "aorta": 5,
    "inferior vena cava": 6,
    "right adrenal gland": 7,
    "left adrenal gland": 8,
    "gallbladder": 9,
    "oesophagus": 10,
    "stomach": 11,
    "duodenum": 12,
    "left kidney": 13,
}


def test_labels_are_flare22s_and_the_description_lists_them() -> None:
    assert ORGANS == IDS
    for seed, gone in ((0, {}), (1, {"spleen": 1.0, "duodenum": 1.0})):
        volume = generate(seed, "CT", replace(SMALL, missing=gone))
        held = {name for name, label in IDS.items() if (volume.label == label).any()}
        assert set(volume.description["present"]) == held
        assert not held & set(gone)
        assert held >= {"liver", "right kidney", "left kidney", "pancreas", "aorta"}


def test_each_organ_lies_where_it_does_in_people() -> None:
    """Against the aorta, in mm: to the patient's right, to anterior, to superior."""
    for seed in (21, 22):
        volume = generate(seed, "MR", replace(SMALL, thickness=(6.0, 14.0)))
        label = nib.as_closest_canonical(nib.Nifti1Image(volume.label, volume.affine))
        ids, mm = np.asarray(label.dataobj), np.array(label.header.get_zooms())
        at = {name: np.argwhere(ids == number).mean(0) * mm for name, number in IDS.items()}
        right, anterior, superior = 0, 1, 2
        for name in (
            *("liver", "right kidney", "right adrenal gland", "gallbladder", "duodenum"),
            "inferior vena cava",
        ):
            assert at[name][right] > at["aorta"][right] + 8, name
        for name in ("spleen", "left kidney", "left adrenal gland", "stomach"):
            assert at[name][right] < at["aorta"][right] - 8, name
        for name in ("liver", "gallbladder", "stomach", "pancreas", "duodenum"):
            assert at[name][anterior] > at["aorta"][anterior], name
        for name in ("right kidney", "left kidney", "spleen"):
            assert at[name][anterior] < at["gallbladder"][anterior], name
        for side in ("right", "left"):
            gland, kidney = at[f"{side} adrenal gland"], at[f"{side} kidney"]
            assert gland[superior] > kidney[superior] + 10
            assert abs(gland[right] - at["aorta"][right]) < abs(kidney[right] - at["aorta"][right])
        assert at["oesophagus"][superior] > at["pancreas"][superior] + 30


def test_the_affine_is_in_millimetres_of_the_body() -> None:
    """Pixels are square and slices thick, and the organs are as large as people's."""
    settings = replace(SMALL, spacing=(3.0, 4.0), thickness=(7.0, 9.0), orientations=("PIR",))
    volume = generate(4, "CT", settings)
    assert nib.aff2axcodes(volume.affine) == ("P", "I", "R")
    canonical_label = nib.as_closest_canonical(nib.Nifti1Image(volume.label, volume.affine))
    ids, affine = np.asarray(canonical_label.dataobj), canonical_label.affine
    mm = np.diag(affine)[:3]
    np.testing.assert_allclose(mm, volume.description["spacing_mm"], atol=1e-3)
    assert mm[0] == pytest.approx(mm[1])
    assert 3 <= mm[0] <= 4
    assert 7 <= mm[2] <= 9

    def extent(organ: str) -> np.ndarray:
        return np.ptp(np.argwhere(ids == IDS[organ]), axis=0) * mm + mm

    width, depth, height = extent("liver")
    assert 100 < width < 260
    assert 80 < depth < 230
    assert 60 < height < 220
    for side in ("right kidney", "left kidney"):
        width, depth, height = extent(side)
        assert 35 < width < 95
        assert 35 < depth < 95
        assert 70 < height < 140


#: Median HU of what an atlas gives for each phase, widely.
HU = {
    "non-contrast": {"liver": (25, 75), "spleen": (25, 62), "aorta": (28, 60)},
    "arterial": {"liver": (40, 95), "spleen": (75, 155), "aorta": (180, 380)},
    "portal venous": {"liver": (70, 135), "spleen": (85, 150), "aorta": (110, 185)},
    "late": {"liver": (65, 120), "spleen": (75, 120), "aorta": (80, 130)},
}


@pytest.mark.parametrize(("index", "phase"), list(enumerate(HU)))
def test_each_contrast_phase_has_its_hounsfield_units(index: int, phase: str) -> None:
    weights = tuple(float(i == index) for i in range(4))
    settings = replace(SMALL, phases=weights, lesions=0.0, noise=(4.0, 5.0))
    medians: dict[str, list[float]] = {}
    for seed in range(3):
        volume = generate(seed, "CT", settings)
        assert volume.description["protocol"] == phase
        image, label = canonical(volume)
        for organ in HU[phase]:
            medians.setdefault(organ, []).append(float(np.median(image[label == IDS[organ]])))
        # fat is the commonest soft value below water, and there is bone and air
        counts, edges = np.histogram(image, np.arange(-200, -9, 10))
        assert -130 <= edges[counts.argmax()] <= -80
        assert np.count_nonzero(image > 300) > 300
        assert np.mean(image < -850) > 0.05
    for organ, (low, high) in HU[phase].items():
        assert low < np.median(medians[organ]) < high, (organ, medians[organ])


@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_image_and_label_lie_on_each_other(modality: str) -> None:
    """A voxel beside, in any direction, the aorta is less of one piece."""
    settings = replace(SMALL, phases=(0.0, 1.0, 0.0, 0.0), mr_noise=(0.0, 0.001), blur=(0.4, 0.41))
    image, label = canonical(generate(5, modality, settings))
    organ = "aorta" if modality == "CT" else "liver"
    mask = label == IDS[organ]
    spread = image[mask].std()
    for axis in (0, 1):
        for step in (-1, 1):
            assert image[np.roll(mask, step, axis)].std() > 1.05 * spread, (axis, step)


def test_noise_is_as_strong_as_it_is_said_to_be() -> None:
    """The same draw with two strengths: the difference is noise of known deviation."""
    fine = replace(SMALL, spacing=(1.5, 1.6), slices=(4, 4), streaks=0.0)  # grain over pixels
    weak, strong = (
        generate(3, "CT", replace(fine, noise=(n, n))).image.astype(float) for n in (5.0, 25.0)
    )
    body = (weak > -150) & (weak < 200)
    assert 0.75 * 20 < (strong - weak)[body].std() < 1.25 * 20
    assert abs((strong - weak)[body].mean()) < 1


def test_mr_noise_is_rician() -> None:
    """The air of a magnitude image is bright by its noise, never cut off at zero."""
    noisy = generate(3, "MR", replace(SMALL, mr_noise=(0.08, 0.08), margin=(30.0, 40.0)))
    assert np.mean(noisy.image == 0) < 0.05


def test_every_seed_and_modality_is_another_patient() -> None:
    labels = [generate(s, m, SMALL).label for s in range(4) for m in ("CT", "MR")]
    different = {(label.shape, label.tobytes()) for label in labels}
    assert len(different) == 8


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
