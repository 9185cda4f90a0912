"""Cases of several slices, from their scans to one map a volume, and to their tables."""

from __future__ import annotations

import json
from statistics import fmean

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

import markdown_page
from in_process import Named
from isolation_study import BATCH, CASES, CLASSES, ORGANS, FakeLocalizer, Study, plant_models
from stored_maps import load_attributions
from xaiclip.explain.runner import attribute_slice
from xaiclip.explain.store import load_scores
from xaiclip.files import load_meta
from xaiclip.metrics.statistics import case_means

#: Stored with the slices first, from the head to the feet.
AFFINE = np.array([[0, -2.0, 0, 60], [0, 0, 3.0, -40], [-5.0, 0, 0, 90], [0, 0, 0, 1]])
DEPTH = 7


class Volumes(Study):
    """Three volumes, whose organs are in the slices 1 to 5 of seven, counted from the feet."""

    def write_scans(self):
        rng = np.random.default_rng(0)
        for number, case in enumerate(CASES):
            label = np.zeros((40, 32, DEPTH), np.uint8)
            label[6:18, 8:20, 1:6], label[22:34, 10:24, 1:5] = 1, 2
            image = rng.normal(40, 10, label.shape) + 60.0 * label + number
            for name, array in ((case, image.astype(np.float32)), (f"{case}_labels", label)):
                # canonical (R, A, S) to stored (I, L, A)
                stored = np.transpose(array[::-1, :, ::-1], (2, 0, 1))
                nib.save(nib.Nifti1Image(stored, AFFINE), self.scan(name))


@pytest.fixture(scope="module")
def patched():
    with pytest.MonkeyPatch.context() as patch:
        plant_models(patch)
        patch.setattr("xaiclip.localizer.locating.Localizer", FakeLocalizer)

        def seen(_, images, *, shifts):
            """As much of the organs as the slice is bright."""
            found = np.zeros((len(images), 3, 224, 224), np.float32)
            for one, image in zip(found, images, strict=True):
                one[1], one[2] = image > 150, image > 200
            return found

        patch.setattr("xaiclip.localizer.locating.predict", seen)
        yield patch


@pytest.fixture(scope="module")
def whole(patched, tmp_path_factory):
    """Every second slice of all that hold an organ."""
    study = Volumes(tmp_path_factory.mktemp("whole"), policy="all", every=2)
    study.write_scans()
    return study.run(end="tables")


def test_each_slice_has_its_rows_and_a_case_is_one_draw(whole):
    rows = whole.explained()
    assert len(rows) == 3 * 3 * 2
    for case in CASES:
        assert sorted(set(rows[rows["case"] == case]["slice"])) == [1, 3, 5]
    done = rows[rows["skipped"].isna()]
    assert len(done) > 9
    means = case_means(done, "fidelity_dice", "organ")
    assert sorted(means.index) == sorted(CASES)
    for case in CASES:
        own = done[done["case"] == case]
        by_organ = [fmean(own[own["organ"] == organ]["fidelity_dice"]) for organ in set(own.organ)]
        assert means[case] == pytest.approx(fmean(by_organ))
    table = pd.read_csv(whole.results / "tables/table3.csv")
    (record,) = table[
        (table["measure"] == "fidelity_dice")
        & (table["guidance"] == "roi")
        & (table["method"] == "occlusion")
    ].to_dict("records")
    assert record["n_cases"] == 3
    assert record["mean"] == pytest.approx(means.mean())


def test_the_maps_of_a_slice_are_of_its_own_scores(whole):
    at = f"occlusion/roi/{BATCH}.npz"
    scores, _ = load_scores(whole.results / "scores" / at)
    assert len(scores) == 9
    maps = {
        (case, index, one.organ): one.map
        for case, index, one in load_attributions(whole.results / "attributions" / at)
        if one.primary
    }
    assert len({found.tobytes() for found in maps.values()}) == len(maps)
    wanted = {
        (one.case, one.index, each.organ): each.map
        for one in scores
        for each in attribute_slice(one)[0]
        if each.primary
    }
    assert maps.keys() == wanted.keys()
    for key, found in maps.items():
        np.testing.assert_array_equal(found, wanted[key])


def test_the_slices_of_a_case_are_one_volume_where_they_lie(whole):
    maps = load_attributions(whole.results / f"attributions/occlusion/roi/{BATCH}.npz")
    seen = 0
    for case in CASES:
        for organ in ORGANS:
            image = nib.load(whole.results / f"maps/{case}/{organ}_occlusion_roi.nii.gz")
            np.testing.assert_allclose(image.affine, AFFINE)
            assert image.shape == (DEPTH, 40, 32)
            own = {
                index: one.map
                for name, index, one in maps
                if (name, one.organ) == (case, organ) and one.primary
            }
            assert set(own) <= {1, 3, 5}
            values = np.asarray(image.dataobj)[::-1]  # from the feet
            for index in range(DEPTH):
                if index not in own:
                    assert np.isnan(values[index]).all()
                    continue
                seen += 1
                # display: rows from the front, columns from the patient's right; stored from the
                # right to the left as well, and from the back to the front
                grid = own[index]
                shown = values[index].T[::-1]
                rows = np.linspace(0, 511, 2 * 32 + 1).round().astype(int)[1::2]
                columns = np.linspace(0, 511, 2 * 40 + 1).round().astype(int)[1::2]
                same = np.isclose(shown, grid[np.ix_(rows, columns)], equal_nan=True)
                assert same.mean() > 0.95
    assert seen > 9


def test_the_tables_are_of_each_slice_and_of_each_case(whole):
    frame = pd.read_csv(whole.results / "tables/slices.csv")
    assert len(frame) == 18
    assert frame[["case", "slice", "organ"]].drop_duplicates().shape[0] == 18
    ((heads, lines),) = markdown_page.read(
        (whole.results / "tables/slices.md").read_text(encoding="utf-8")
    ).tables
    assert heads[:5] == ["case", "slice", "method", "guidance", "organs"]
    assert [(line[0], int(line[1])) for line in lines] == [
        (case, index) for case in sorted(CASES) for index in (1, 3, 5)
    ]
    cases = pd.read_csv(whole.results / "tables/cases.csv")
    assert sorted(set(cases["case"])) == sorted(CASES)


# --- found -------------------------------------------------------------------------------------


def found_study(root, **policy):
    study = Volumes(root, policy="found", **policy)
    study.write_scans()
    # one scan brightens from slice to slice; in one there is nothing; one has a label
    image = np.full((40, 32, DEPTH), -100, np.float32)
    nib.save(nib.Nifti1Image(image, np.diag([-2, -3, 5, 1.0])), study.scan("bad"))
    image[5:30, 5:25] = -60
    for index in range(DEPTH):
        image[5:15, 5 : 6 + 2 * index, index] = 300
    nib.save(nib.Nifti1Image(image, np.diag([-2, -3, 5, 1.0])), study.scan("a"))
    return study


def choose(study):
    """The two jobs that take slices; what was found, and the slices and reasons of each case."""
    rows = [
        {
            "name": case,
            "image": str(study.scan(case)),
            "label": str(study.scan(f"{case}_labels")) if case == "c" else None,
            **{"modality": "CT", "split": "test", "problem": None},
        }
        for case in CASES
    ]
    reading = {
        "cases": rows,
        "classes": CLASSES,
        "window": {"level": 40, "width": 400},
        "percentiles": {"low": 0.5, "high": 99.5},
        "orientation": None,
    }
    models = {"backbone": "compact", "pretrained": None, "device": "cpu"}
    plain = {"clip": 0, "low": 0, "high": 100}
    chosen = study.at("found/{batch}.json")
    study.script(
        "find_slices",
        Named(weights="none"),
        Named(chosen),
        {
            **reading,
            **models,
            "preprocess": plain,
            "roi": {},
            "count": study.policy.get("count", 1),
            "every": study.policy["every"],
        },
    )
    output = Named(
        slices=study.at("slices/{batch}.npz"),
        checksums=study.at("slices/{batch}.json"),
        files=study.at("private/{batch}.json"),
    )
    more = {"labels": {1: "spleen", 2: "liver"}, "implausible": "warn", "slices": study.policy}
    study.script("slices", Named(found=chosen), output, {**reading, **more})
    meta = load_meta(study.at("slices/{batch}.npz"))
    taken = [(row["case"], row["index"]) for row in meta["slices"]]
    reasons = {skip["case"]: skip["reason"] for skip in meta["skips"] if skip["organ"] is None}
    return json.loads(chosen.read_text()), taken, reasons


def test_what_is_found_is_taken_and_what_is_not_is_left_out(patched, tmp_path):
    found, taken, reasons = choose(found_study(tmp_path))
    assert found["slices"] == {"a": [6]}
    assert taken == [("a", 6), ("c", 1)]  # where the label holds both organs, the lowest
    words = "the localizer finds no spleen and no liver in any slice: say which slice"
    assert list(reasons) == ["bad"]
    assert words in reasons["bad"]
    assert words in found["reasons"]["bad"]
    assert str(tmp_path) not in (tmp_path / f"results/x/found/{BATCH}.json").read_text()


def test_several_slices_are_found(patched, tmp_path):
    found, taken, _ = choose(found_study(tmp_path, count=2, every=3))
    assert found["slices"] == {"a": [3, 6]}
    assert taken == [("a", 3), ("a", 6), ("c", 1), ("c", 4)]
