"""What nobody foresaw costs its case, whatever stage it comes from; never the study."""

import importlib
import shutil

import numpy as np
import pandas as pd
import pytest

from isolation_study import CASES, ORGANS, Study, plant_models
from xaiclip.data.record import load_slices
from xaiclip.errors import ConfigError, StorageError


@pytest.fixture(autouse=True)
def models(monkeypatch):
    plant_models(monkeypatch)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The study in which nothing goes wrong, made by the first test that needs it."""
    return tmp_path_factory.mktemp("study")


@pytest.fixture
def study(undisturbed, models, tmp_path):
    if not (undisturbed / "results").exists():
        whole = Study(undisturbed)
        whole.write_scans()
        whole.run()
    shutil.copytree(undisturbed, tmp_path, dirs_exist_ok=True)
    return Study(tmp_path)


PLAIN = RuntimeError("planted")


def plant(monkeypatch, name, bad, error=PLAIN):
    """``name`` raises in the calls whose number (from 1) or whose arguments are ``bad``."""
    module, function = name.rsplit(".", 1)
    original = getattr(importlib.import_module(module), function)
    calls = []

    def planted(*args, **kwargs):
        calls.append(args)
        if bad(len(calls), *args):
            raise error
        return original(*args, **kwargs)

    monkeypatch.setattr(name, planted)


def nth(*numbers):
    return lambda number, *_: number in numbers


#: Stage → what raises there, and for which of its calls: those of the case "bad".
PLANTED = {
    "slices": ("xaiclip.data.slices.read_volume", lambda _, path, *__: path.name.startswith("bad")),
    "preprocess": ("xaiclip.preprocess.preprocess", nth(2)),
    "localize": ("xaiclip.localizer.model.predict", nth(2)),
    "roi": ("xaiclip.masks.roi.rois_of", lambda _, item, *__: item.case == "bad"),
    "segment": ("xaiclip.models.segmenters.predict.segment_slice", nth(4)),  # two calls a slice
    "score": ("xaiclip.explain.runner.score_slice", lambda _, __, one, *___: one.case == "bad"),
    "attribute": ("xaiclip.explain.runner.attribute_slice", nth(2)),
    "maps": ("xaiclip.export.nifti._restored", lambda _, __, of: of[min(of)].case == "bad"),
    "evaluate_localizer": ("xaiclip.metrics.localization.localizer_scores", nth(2)),
    "evaluate_segmenter": ("xaiclip.metrics.overlap.surface_distances", nth(5, 6, 7, 8)),
}


@pytest.mark.slow
def test_nothing_is_left_out_of_the_undisturbed_study(study):
    assert study.explained().skipped.isna().all()
    assert len(study.explained()) == len(CASES) * len(ORGANS)
    assert study.skips().empty
    assert len(list(study.results.glob("maps/*/*.nii.gz"))) == 6
    assert len(list(study.results.glob("figures/*.png"))) == 3


class Mute(RuntimeError):
    """An error whose own words raise another one."""

    def __str__(self):
        raise ValueError


ERRORS = (
    Mute(),
    SystemExit(0),
    MemoryError(),
    KeyError("x"),
    RecursionError(),
    OSError(5, "I/O"),
    AssertionError(),
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "error"),
    [(stage, RuntimeError("planted")) for stage in PLANTED] + [("localize", e) for e in ERRORS],
    ids=lambda one: one if isinstance(one, str) else type(one).__name__,
)
def test_a_case_costs_itself_alone(study, monkeypatch, stage, error):
    plant(monkeypatch, *PLANTED[stage], error)
    study.run(stage, "tables")

    skips = study.skips()
    assert set(skips.case) == {"bad"}
    listed = {"score": "explain", "attribute": "explain"}.get(stage, stage)
    first = skips[skips.stage.str.startswith(listed)]
    assert len(first) > 0
    assert first.reason.str.startswith("unexpected: ").all()
    # the traceback is in the stage's log, and names nothing of the case but its name
    log = study.log(stage).read_text()
    assert "Traceback" in log
    assert type(error).__name__ in log
    assert "bad" in log

    explained = study.explained()
    assert len(explained) == len(CASES) * len(ORGANS)
    assert explained[explained.case != "bad"].skipped.isna().all()
    lost = explained[explained.case == "bad"].skipped
    if stage in ("segment", "maps", "evaluate_localizer", "evaluate_segmenter"):
        assert lost.isna().all()
    else:
        assert lost.str.startswith("unexpected: ").all()
    for name in ("localizer", "segmenter"):
        rows = pd.read_parquet(study.results / f"metrics/{name}.parquet")
        assert rows[rows.case != "bad"].skipped.isna().all()
    if stage not in ("score", "attribute", "maps", "evaluate_localizer"):
        rows = pd.read_parquet(study.results / "metrics/segmenter.parquet")
        rows = rows[rows.case == "bad"]
        assert len(rows) == 2 * len(ORGANS)
        assert rows.skipped.str.startswith("unexpected: ").all()
        assert rows.dice.isna().all()


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["slices", "localize", "roi", "score"])
def test_tables_and_figures_are_drawn_of_nothing(study, monkeypatch, stage):
    """Every case fails, and a plain image does not: there is nothing wrong with the models."""

    def of_a_case(_, *args):
        plain = [isinstance(a, np.ndarray) and (a == 100).all() for a in args]
        return not any(plain) and not any(getattr(a, "case", None) == "plain" for a in args)

    plant(monkeypatch, PLANTED[stage][0], of_a_case)
    shutil.rmtree(study.results / "figures")
    study.run(stage)
    assert set(study.skips().case) == set(CASES)
    assert len(list(study.results.glob("figures/*.png"))) == 3
    assert len(list(study.results.glob("tables/*.md"))) == 6


@pytest.mark.parametrize("error", [ConfigError("wrong."), StorageError("full.")])
@pytest.mark.parametrize("stage", PLANTED)
def test_a_wrong_configuration_and_a_full_disk_end_the_job(study, monkeypatch, stage, error):
    plant(monkeypatch, *PLANTED[stage], error)
    with pytest.raises(SystemExit):
        study.run(stage, stage)
    assert study.log(stage).read_text().rstrip().endswith(str(error))


@pytest.mark.parametrize("stage", PLANTED)
def test_an_interrupt_ends_the_job(study, monkeypatch, stage):
    plant(monkeypatch, *PLANTED[stage], KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        study.run(stage, stage)


@pytest.mark.parametrize(
    ("stage", "function", "words"),
    [
        (
            "localize",
            "xaiclip.localizer.model.predict",
            "The localizer fails on a plain test image",
        ),
        (
            "segment",
            "xaiclip.models.segmenters.predict.segment_slice",
            "The segmenter fails on a plain",
        ),
        (
            "score",
            "xaiclip.targets.decode",
            "The model under 'occlusion' fails on a",
        ),
    ],
)
def test_a_model_that_works_on_nothing_ends_the_job(study, monkeypatch, stage, function, words):
    plant(monkeypatch, function, lambda *_: True, RuntimeError("mat1 and mat2\nshapes"))
    with pytest.raises(SystemExit):
        study.run(stage, stage)
    last = study.log(stage).read_text().rstrip().splitlines()[-1]
    assert words in last
    assert r"RuntimeError: mat1 and mat2\nshapes" in last


def test_a_gpu_that_broke_down_is_no_case(study, monkeypatch):
    plant(monkeypatch, *PLANTED["segment"], RuntimeError("CUDA error: an illegal memory access"))
    with pytest.raises(SystemExit):
        study.run("segment", "segment")
    assert "illegal memory access" in study.log("segment").read_text()


@pytest.mark.slow
def test_a_case_that_a_later_stage_lacks_keeps_its_first_reason(study, monkeypatch):
    plant(monkeypatch, *PLANTED["preprocess"])
    shutil.rmtree(study.results / "figures")
    study.run("preprocess")
    assert len(list(study.results.glob("figures/*.png"))) == 3
    rows = study.explained()
    slices, _ = load_slices(study.at("slices/{batch}.npz"))
    assert {item.case for item in slices} == set(CASES)
    assert set(rows[rows.case == "bad"].skipped) == {
        "unexpected: RuntimeError; the log of the stage has the details."
    }
    stages = set(study.skips().stage)
    assert "preprocess" in stages
    assert not stages & {"localize", "roi", "segment"}
