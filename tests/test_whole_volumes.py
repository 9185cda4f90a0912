"""Cases of several slices, from their scans to one map a volume, and to their tables."""

from __future__ import annotations

import json
import weakref
from dataclasses import dataclass, replace
from statistics import fmean

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch

import markdown_page
from explain_fakes import FakeSegmenter
from in_process import Named
from isolation_study import BATCH, CASES, CLASSES, ORGANS, Study
from stored_maps import load_attributions
from table_cells import read
from table_study import explanation_rows
from xaiclip.data.record import SliceName
from xaiclip.errors import Skip
from xaiclip.explain.attribution import Attribution, _Shared, save_attributions
from xaiclip.explain.recipes import Recipe
from xaiclip.explain.runner import attribute_slice
from xaiclip.explain.store import load_scores
from xaiclip.files import load_meta, open_arrays, writing_arrays
from xaiclip.localizer.probabilities import save_probabilities
from xaiclip.masks.roi import Roi, load_rois, save_rois
from xaiclip.masks.segmented import open_masks, save_masks
from xaiclip.metrics.schema import EXPLANATIONS, write_table
from xaiclip.metrics.statistics import case_means
from xaiclip.report.curves import along_slices
from xaiclip.report.drawing import draw
from xaiclip.report.sources import Settings
from xaiclip.report.tables import slices as tables

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
        maps = np.full((1, 3, 224, 224), 0.1, np.float32)
        maps[:, 1, 40:110, 40:100], maps[:, 2, 40:110, 120:190] = 0.9, 0.9

        class Localizer(torch.nn.Module):
            classes = CLASSES

        patch.setattr("xaiclip.localizer.model.load_localizer", lambda *_: Localizer())
        patch.setattr("xaiclip.localizer.model.predict", lambda *_: maps)
        patch.setattr(
            "xaiclip.models.segmenters.loading.load_segmenter", lambda *_: FakeSegmenter(64)
        )
        patch.setattr("xaiclip.localizer.locating.Localizer", Localizer)

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


# --- memory ------------------------------------------------------------------------------------


def watched(make, count=6):
    """What ``make`` makes, one after the other; fails if more than two are held."""
    alive = []
    for number in range(count):
        one, payload = make(number)
        alive.append(weakref.ref(payload))
        del payload
        held = sum(ref() is not None for ref in alive)
        assert held <= 2, f"{held} of {number + 1} are held"
        yield one
        del one


def an_array(number, shape=(9, 7)):
    return np.random.default_rng(number).random(shape).astype(np.float32)


def test_maps_are_written_one_after_the_other(tmp_path):
    def make(number):
        one = an_array(number, (512, 512))
        return ("a", number, Attribution("liver", "plain", "soft_dice", one, ("p",))), one

    save_attributions(tmp_path / "maps.npz", watched(make))
    maps = load_attributions(tmp_path / "maps.npz")
    assert [index for _, index, _ in maps] == list(range(6))
    for _, index, one in maps:
        np.testing.assert_array_equal(one.map, an_array(index, (512, 512)))


@dataclass(frozen=True, eq=False)
class Doubled(Recipe):
    """A map that is twice its base."""

    base: np.ndarray

    def map(self):
        return 2 * self.base


def test_a_recipe_s_array_is_its_own_wherever_another_lay(tmp_path):
    """Of arrays that are gone, the next ones may take the place in memory."""

    def make(number):
        one = Doubled(an_array(number, (512, 512)))
        many = [
            Attribution(organ, "plain", "soft_dice", one.map(), ("p",), recipe=one)
            for organ in ("liver", "spleen")
        ]
        return [("a", number, each) for each in many], one.base

    save_attributions(tmp_path / "maps.npz", (each for many in watched(make) for each in many))
    maps = load_attributions(tmp_path / "maps.npz")
    assert len(maps) == 12
    for _, index, one in maps:
        np.testing.assert_array_equal(one.map, 2 * an_array(index, (512, 512)))
        assert isinstance(one.recipe, Doubled)
    with open_arrays(tmp_path / "maps.npz") as stored:
        assert sum(name.startswith("shared/") for name in stored) == 6  # two organs share one


def test_a_place_in_memory_is_no_name():
    shared = _Shared()
    first = np.zeros(3)
    assert shared.name(first) == ("shared/0", True)
    assert shared.name(first) == ("shared/0", False)
    place, later = id(first), [np.ones(3)]
    del first
    while id(later[-1]) != place:
        later.append(np.ones(3))
        assert len(later) < 10**6
    assert shared.name(later[-1]) == ("shared/1", True)


def test_rois_masks_and_probabilities_are_written_one_after_the_other(tmp_path):
    skips: list[Skip] = []

    def roi(number):
        if number == 3:  # what is left out on the way is told, too
            skips.append(Skip("a", "roi", "why", number))
        mask = an_array(number) > 0.5
        return (f"a/{number}", {"liver": {"body": Roi(mask, None)}}), mask

    save_rois(tmp_path / "rois.npz", watched(roi), skips)
    rois, told = load_rois(tmp_path / "rois.npz")
    assert list(rois) == [f"a/{number}" for number in range(6)]
    np.testing.assert_array_equal(rois["a/4"]["liver"]["body"].mask, an_array(4) > 0.5)
    assert told == skips != []

    def mask(number):
        one = an_array(number) > 0.5
        return ((SliceName("a", number), "liver", "roi"), one), one

    save_masks(tmp_path / "masks.npz", watched(mask))
    with open_masks(tmp_path / "masks.npz") as masks:
        np.testing.assert_array_equal(
            masks.of(SliceName("a", 5), "liver", "roi"), an_array(5) > 0.5
        )

    def probability(number):
        one = an_array(number).astype(np.float16)
        return (f"a/{number}", one), one

    seconds = {"a/1": 2.0}
    save_probabilities(tmp_path / "found.npz", watched(probability), seconds, CLASSES)
    assert load_meta(tmp_path / "found.npz")["seconds"] == seconds


def test_a_file_whose_writing_fails_is_not_there(tmp_path):
    def write(array, error=None):
        with writing_arrays(tmp_path / "a.npz") as writer:
            writer["one"] = array
            if error:
                raise error

    with pytest.raises(RuntimeError):
        write(np.ones(3), RuntimeError())
    with pytest.raises(TypeError, match="'one' holds Python objects"):
        write(np.array([object()]))
    assert list(tmp_path.iterdir()) == []


# --- tables ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    rows = explanation_rows()
    for number, row in enumerate(rows):
        if (row["case"], row["slice"], row["organ"]) == ("kim", 3, "spleen"):
            # in one slice of three: the means over slices and over organs are not one
            row["skipped"] = "empty prediction"
        elif not row.get("skipped"):
            row["baseline_dice_gt"] = (0.3 + 0.017 * number) % 1
    frame = read(tmp_path_factory.mktemp("rows"), rows, EXPLANATIONS, tables.COLUMNS)
    return rows, frame


def used(rows, **wanted):
    return [
        row
        for row in rows
        if row["primary"]
        and not row.get("skipped")
        and all(row[key] == value for key, value in wanted.items())
    ]


def test_a_line_for_each_slice_organ_method_and_guidance(made):
    rows, frame = made
    table = tables.slices_table(frame)
    key = ["case", "slice", "organ", "method", "guidance", "roi_source"]
    got = table.frame.set_index(key)
    primary = [row for row in rows if row["primary"]]
    assert len(got) == len(primary)
    assert got.index.is_unique
    for row in primary:
        own = got.loc[tuple(row[name] or "" for name in key)]
        assert (None if pd.isna(own["skipped"]) else own["skipped"]) == row.get("skipped")
        for name in ("fidelity_dice", "baseline_dice_gt", "n_forwards"):
            wanted = row.get(name)
            assert own[name] == pytest.approx(np.nan if wanted is None else wanted, nan_ok=True)
    organs = list(dict.fromkeys(table.frame[table.frame["case"] == "kim"]["organ"]))
    assert organs == ["liver", "right kidney", "spleen", "aorta"]


def test_a_slice_s_cells_are_means_over_its_organs(made):
    rows, frame = made
    ((heads, lines),) = markdown_page.read(tables.slices_table(frame).markdown).tables
    place = heads.index("fidelity Dice")
    assert len(lines) == len({(r["case"], r["slice"], r["method"], r["guidance"]) for r in rows})
    for line in lines:
        case, index, method, guidance, organs = line[:5]
        own = used(rows, case=case, slice=int(index), method=method, guidance=guidance)
        assert int(organs) == len(own)
        assert float(line[place]) == pytest.approx(
            fmean(row["fidelity_dice"] for row in own), abs=0.00051
        )


def test_a_case_s_cells_are_what_the_statistics_draw(made):
    rows, frame = made
    table = tables.cases_table(frame)
    ((heads, lines),) = markdown_page.read(table.markdown).tables
    place = heads.index("fidelity Dice")
    assert len(lines) == 9 * 4 * 2
    for line in lines:
        case, method, guidance, slices = line[:4]
        own = used(rows, case=case, method=method, guidance=guidance)
        (mean,) = case_means(pd.DataFrame(own), "fidelity_dice", "organ")
        indices = {row["slice"] for row in own}
        of_slices = [
            fmean(row["fidelity_dice"] for row in own if row["slice"] == index) for index in indices
        ]
        assert slices == f"{len(indices)} of {len({r['slice'] for r in rows if r['case'] == case})}"
        shown = [float(part) for part in line[place].replace("[", "").rstrip("]").split()
                 for part in [part.rstrip(",")]]  # fmt: skip
        differ = f"{min(of_slices):.3f}" != f"{max(of_slices):.3f}"
        wanted = [mean, min(of_slices), max(of_slices)] if differ else [mean]
        assert shown == pytest.approx(wanted, abs=0.00051)


def test_a_case_s_records_are_of_each_organ(made):
    rows, frame = made
    table = tables.cases_table(frame).frame
    for organ in ("liver", "aorta"):
        own = used(rows, case="kim", organ=organ, method="rise", guidance="roi")
        values = [row["fidelity_iou"] for row in own]
        (record,) = table[
            (table["case"] == "kim")
            & (table["organ"] == organ)
            & (table["method"] == "rise")
            & (table["guidance"] == "roi")
            & (table["measure"] == "fidelity_iou")
        ].to_dict("records")
        assert record["n_slices"] == len(values) == 3
        assert (record["mean"], record["lowest"], record["highest"]) == pytest.approx(
            (fmean(values), min(values), max(values))
        )
        assert record["roi_source"] == "localizer"
    better = dict(zip(table["measure"], table["better"], strict=True))
    assert (better["localization_dice_gt"], better["fidelity_dice"]) == ("higher", "")
    assert better["n_forwards"] == "lower"


def test_what_was_left_out_is_told_and_nothing_at_all_is_a_table_too(made, tmp_path):
    rows, frame = made
    text = tables.slices_table(frame).markdown
    lost = sum(row.get("skipped") == "the ROI is empty" for row in rows)
    assert f"{lost} rows: the ROI is empty" in text
    nothing = [{"case": "x", "organ": "liver", "method": "rise", "guidance": "full",
                "primary": True, "skipped": "it cannot be read"}]  # fmt: skip
    empty = read(tmp_path, nothing, EXPLANATIONS, tables.COLUMNS)
    for make in (tables.slices_table, tables.cases_table):
        table = make(empty, [Skip("x", "slices", "it cannot be read")])
        assert len(table.frame) == 0
        assert "it cannot be read" in table.markdown


# --- the figure --------------------------------------------------------------------------------


def test_curves_along_the_slices_are_the_rows(made, tmp_path):
    rows, _ = made
    write_table(tmp_path / "explanations.parquet", rows, EXPLANATIONS)
    classes = ["background", "spleen", "liver", "right kidney", "aorta"]
    settings = Settings(classes, "kim", "right kidney", "roi", 150)
    data = along_slices({"metrics": tmp_path / "explanations.parquet"}, settings)
    assert (data.title, data.along) == ("Slices of case kim", "slice, from the feet")
    segmentations, fidelity, localization = (curves for *_, curves in data.panels)
    assert [one.label for one in segmentations] == ["spleen", "liver", "right kidney", "aorta"]
    assert sorted(one.label for one in fidelity) == sorted(
        f"{method}, {guidance}"
        for method in ("gradient", "lime", "occlusion", "rise")
        for guidance in ("full", "roi (localizer)")
    )
    for curves, column in ((fidelity, "fidelity_dice"), (localization, "localization_dice_pred")):
        for one in curves:
            method, guidance = one.label.split(", ")
            own = used(
                rows,
                case="kim",
                organ="right kidney",
                method=method,
                guidance=guidance.split(" ")[0],
            )
            wanted = sorted((row["slice"], row[column]) for row in own)
            assert list(zip(one.places, one.values, strict=True)) == wanted
            assert [tuple(dot) for dot in one.kept] == wanted
    assert len({(one.colour, str(one.line)) for one in fidelity}) == 8
    figure = draw(data)
    assert [axes.get_xlabel() for axes in figure.axes] == ["slice, from the feet"] * 3
    without = along_slices(
        {"metrics": tmp_path / "explanations.parquet"}, replace(settings, case=None)
    )
    assert without.title == "Slices of case abe"  # the first
