"""Tables and figures as their modules state them: what the rules are made of."""

import sys

import numpy as np
import pytest

from xaiclip.errors import ConfigError
from xaiclip.metrics.localization import PooledAuc
from xaiclip.metrics.schema import LOCALIZER, write_table
from xaiclip.report import catalogue
from xaiclip.report.figures import DATA
from xaiclip.report.tables.data import Study, Table
from xaiclip.report.tables.left_out import read_skips
from xaiclip.workflow import paths
from xaiclip.workflow.provenance import code_hash, stage_hash

FIGURES = [f"figure{number:02d}" for number in range(2, 14)]


def test_every_table_and_figure_is_found():
    tables, figures = catalogue.tables(), catalogue.figures()
    every = "cases segmenter shapley_units slices table2 table3 table3_variants"
    assert list(tables) == every.split()
    assert [name[:8] for name in figures][:12] == FIGURES
    assert list(figures)[12:] == ["shapley_matrix", "slices", "training_curves"]
    assert list(DATA) == list(figures)
    for one in (*tables.values(), *figures.values()):
        assert one.caption[0].isupper()
        assert one.caption.endswith(".")
        assert callable(catalogue.load(one.place))


def test_what_they_read():
    tables, figures = catalogue.tables(), catalogue.figures()
    assert tables["table2"].reads == ["metrics/localizer", "localizer_pooled", "skipped"]
    assert tables["segmenter"].reads == ["metrics/segmenter", "skipped"]
    assert figures["figure04_rise"].reads == ["slices", "segmentation", "attributions/rise/roi"]
    assert figures["figure11_lime_distributions"].methods == {"lime": {}}
    assert tables["shapley_units"].methods == {"shapley": {"units": "organs"}}
    assert [one.name for one in tables.values() if one.beside] == ["cases", "table3_variants"]
    assert [one.name for one in tables.values() if one.several] == ["cases", "slices"]
    assert [one.name for one in figures.values() if one.several] == ["slices"]
    names = {one.name: one.rule for one in tables.values()}
    assert names == {
        "table2": "table2",
        "segmenter": "table_segmenter",
        "table3": "table3",
        "table3_variants": "table3",
        "shapley_units": "table_shapley_units",
        "slices": "table_slices",
        "cases": "table_slices",
    }


def test_sources_are_paths_of_the_study():
    assert paths.source("scores/lime/full") == "results/{run}/scores/lime/full/{batch}.npz"
    assert paths.source("attributions/shapley").endswith("/shapley/{guidance}/{batch}.npz")
    assert paths.source("table/a/csv") == "results/{run}/tables/a.csv"
    assert paths.source("skipped") == paths.SKIPPED
    assert paths.source("localization/no_text").endswith("localization/no_text/{batch}.npz")
    for wrong in ("score/lime", "skipped/x", "scores/lime/full/test-0/more", "metrics/a/b"):
        with pytest.raises(KeyError):
            paths.source(wrong)


MODULE = '''
from xaiclip.report.catalogue import makes_table
print("loaded")

@makes_table({arguments})
def {function}(study):
    """A table."""
'''


@pytest.fixture
def stated(tmp_path, monkeypatch):
    monkeypatch.setattr(catalogue, "_HERE", tmp_path)
    (tmp_path / "tables").mkdir()

    def write(arguments, name="a", function="make"):
        text = MODULE.format(arguments=arguments, function=function)
        (tmp_path / f"tables/{name}.py").write_text(text)
        return catalogue.tables()

    return write


def test_a_statement_is_read_without_loading_its_module(stated, capsys):
    found = stated('"t", ["skipped"], caption="One." " Two.", methods={"lime": {"samples": 3}}')
    assert found == {
        "t": catalogue.Made(
            "xaiclip.report.tables.a:make", "t", ["skipped"], "One. Two.", {"lime": {"samples": 3}}
        )
    }
    assert "xaiclip.report.tables.a" not in sys.modules
    assert capsys.readouterr().out == ""
    assert catalogue.figures() == {}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ('"t", [NAME], "C."', "has arguments that are computed; write literals"),
        ('"t", ["no_such"], "C."', "is stated wrongly .*no path is called 'no_such'"),
        ('"t", ["skipped"]', "is stated wrongly .*caption"),
        ('"t", ["skipped"], "C.", wrong=1', "is stated wrongly .*wrong"),
    ],
)
def test_a_wrong_statement_is_told_in_a_sentence(stated, arguments, words):
    with pytest.raises(ConfigError, match=rf"'xaiclip.report.tables.a:make' {words}.*\.$"):
        stated(arguments)


def test_two_of_one_name_are_refused(stated):
    stated('"t", ["skipped"], "C."')
    with pytest.raises(ConfigError, match=r"'.*a:make' and '.*b:other' are both called 't'"):
        stated('"t", ["skipped"], "C."', "b", "other")


def test_each_table_has_code_of_its_own():
    """No table's hash holds another's function, also where its module imports the other's."""
    tables = catalogue.tables()
    hashes = {name: code_hash("table.py", [one.place]) for name, one in tables.items()}
    assert len(set(hashes.values())) == len(hashes)
    assert stage_hash("table.py", {}) not in hashes.values()
    together = code_hash("table.py", [one.place for one in tables.values()])
    assert stage_hash("table.py", {}) == together


def test_a_study_gives_a_table_its_skips_and_settings(tmp_path):
    (tmp_path / "skipped.tsv").write_text(
        "case\tslice\torgan\tstage\treason\na\t3\tliver\troi\tempty\nother\t\t\tslices\tbad\n"
    )
    statistics = {"resamples": 7, "confidence": 0.5}
    study = Study({"skipped": [tmp_path / "skipped.tsv"]}, ["a"], [], {}, 4, statistics)
    common = study.common()
    (skip,) = common.pop("skips")
    assert (skip.case, skip.slice, skip.organ, skip.reason) == ("a", 3, "liver", "empty")
    whole = read_skips(tmp_path / "skipped.tsv", ["other"])
    assert [(one.slice, one.organ, one.reason) for one in whole] == [(None, None, "bad")]
    assert common == {"seed": 4, "resamples": 7, "confidence": 0.5}


def test_tables_are_functions_of_a_study():
    hints = catalogue.load(catalogue.tables()["table2"].place).__annotations__
    assert hints == {"study": Study.__name__, "return": Table.__name__}


def test_table2_adds_the_batches_of_each_variant(tmp_path):
    """Their files are told apart by the path that the workflow gives them."""
    rng = np.random.default_rng(4)
    classes = ["background", "spleen", "liver"]
    files, sums = [], {}
    for variant in ("text", "no_text"):
        for batch in ("test-0", "test-1"):
            label = rng.integers(0, 3, (30, 41))
            prob = rng.dirichlet([1, 1, 1], label.shape).transpose(2, 0, 1)
            prob += np.eye(3)[label].transpose(2, 0, 1) * (0.2 if variant == "text" else 0.05)
            one = PooledAuc(classes)
            one.update(prob / prob.sum(0), label)
            sums[variant] = sums[variant] + one if variant in sums else one
            path = paths.filled(paths.LOCALIZER_POOLED, variant=variant, batch=batch)
            files.append(tmp_path / path.format(run="demo"))
            files[-1].parent.mkdir(parents=True, exist_ok=True)
            one.save(files[-1])
    (tmp_path / "skipped.tsv").write_text("case\tslice\torgan\tstage\treason\n")
    rows = [
        {"case": "a", "slice": 1, "class": name, "variant": variant, "dice": 0.5, "auc_roc": 0.9}
        for name in classes
        for variant in sums
    ]
    write_table(tmp_path / "rows.parquet", rows, LOCALIZER)
    study = Study(
        {
            "localizer_pooled": files,
            "metrics/localizer": [tmp_path / "rows.parquet"],
            "skipped": [tmp_path / "skipped.tsv"],
        },
        ["a"], classes, {}, 1, {"resamples": 20, "confidence": 0.9},
    )  # fmt: skip
    frame = catalogue.load(catalogue.tables()["table2"].place)(study).frame
    pooled = frame[frame["measure"] == "auc_roc_pooled"].set_index(["class", "variant"])["mean"]
    for variant, one in sums.items():
        for name, value in one.auc().items():
            assert pooled[name, variant] == value
    assert pooled["liver", "text"] > pooled["liver", "no_text"]
