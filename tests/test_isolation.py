"""What nobody foresaw costs its case, whatever stage it comes from; never the study."""

import importlib
import json
import shutil

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch

from explain_fakes import FakeSegmenter
from in_process import Named, run_script
from xaiclip.data.record import load_slices
from xaiclip.errors import ConfigError, StorageError

CLASSES = ["background", "spleen", "liver"]
ORGANS = CLASSES[1:]
CASES = ("a", "bad", "c")
BATCH = "test-0"
METHOD = {
    "method": "occlusion",
    "guidance": "roi",
    "settings": {"window": 256, "stride": 256},
    "values": ["soft_dice", "hard_dice", "hard_iou"],
}
STAGES = (
    *("slices", "preprocess", "localize", "roi", "segment", "score", "attribute", "maps"),
    *("evaluate_localizer", "evaluate_segmenter", "metrics", "skipped", "tables", "figures"),
)


class Study:
    """A batch of three cases, from its scans to its tables."""

    def __init__(self, root):
        self.root = root
        self.results = root / "results/x"

    def write_scans(self):
        rng = np.random.default_rng(0)
        for number, case in enumerate(CASES):
            label = np.zeros((40, 32, 3), np.uint8)
            label[6:18, 8:20], label[22:34, 10:24] = 1, 2
            image = rng.normal(40, 10, label.shape) + 60.0 * label + number
            for name, array in ((case, image.astype(np.float32)), (f"{case}_labels", label)):
                nib.save(nib.Nifti1Image(array, np.diag([-2, -3, 5, 1.0])), self.scan(name))

    def scan(self, name):
        (self.root / "scans").mkdir(exist_ok=True)
        return self.root / f"scans/{name}.nii.gz"

    def at(self, name):
        path = self.results / name.format(batch=BATCH)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def log(self, stage):
        return self.results / f"logs/{stage}.log"

    def run(self, start="slices", end="figures"):
        """The stages from ``start`` to ``end``, as the workflow runs them."""
        for stage in STAGES[STAGES.index(start) : STAGES.index(end) + 1]:
            getattr(self, stage)()
        return self

    def script(self, stage, files, output, cfg=None, **params):
        run_script(f"{stage}.py", files, output, self.log(stage), cfg, **params)

    def slices(self):
        rows = [
            {
                "name": case,
                "image": str(self.scan(case)),
                "label": str(self.scan(f"{case}_labels")),
                "modality": "CT",
                "split": "test",
                "problem": None,
            }
            for case in CASES
        ]
        cfg = {
            "cases": rows,
            "classes": CLASSES,
            "labels": {1: "spleen", 2: "liver"},
            "window": {"level": 40, "width": 400},
            "percentiles": {"low": 0.5, "high": 99.5},
            "orientation": None,
            "implausible": "warn",
            "slices": {"policy": "middle", "index": None, "every": 1},
        }
        output = Named(
            slices=self.at("slices/{batch}.npz"),
            checksums=self.at("slices/{batch}.json"),
            files=self.at("private/{batch}.json"),
        )
        self.script("slices", Named(), output, cfg)

    def preprocess(self):
        files, output = (
            Named(self.at(f"{name}/{BATCH}.npz")) for name in ("slices", "preprocessed")
        )
        self.script("preprocess", files, output, {})

    def localize(self):
        files = Named(slices=self.at("preprocessed/{batch}.npz"), weights="none")
        cfg = {"backbone": "compact", "pretrained": None, "classes": CLASSES, "device": "cpu"}
        self.script("localize", files, Named(self.at("localization/text/{batch}.npz")), cfg)

    def roi(self):
        files = Named(
            slices=self.at("slices/{batch}.npz"),
            localization=self.at("localization/text/{batch}.npz"),
        )
        self.script(
            "roi", files, Named(self.at("roi/{batch}.npz")), {"roi": {}, "classes": CLASSES}
        )

    def models(self, **more):
        files = Named(
            **{name: self.at(f"{name}/{BATCH}.npz") for name in ("slices", "preprocessed", "roi")}
        )
        cfg = {"segmenter": {"input": "windowed"}, "organs": ORGANS, "device": "cpu"}
        return files, {**cfg, "precision": "fp32", **more}

    def segment(self):
        files, cfg = self.models()
        self.script("segment", files, Named(self.at("segmentation/{batch}.npz")), cfg)

    def score(self):
        files, cfg = self.models(**METHOD, prompt="roi", fill="mean", batch_size=4, seed=1)
        output = Named(
            scores=self.at("scores/occlusion/roi/{batch}.npz"),
            table=self.at("scores/occlusion/roi/{batch}.parquet"),
        )
        self.script("score", files, output, cfg)

    def attribute(self):
        self.at("cost.json").write_text(
            json.dumps(
                {
                    **{key: {"ptflops": 1.0, "total": 1.0} for key in ("encode", "decode")},
                    "localizer": {"ptflops": 1.0, "total": 1.0},
                    "decoded_organs": 2,
                    "device": "cpu",
                    "precision": "fp32",
                }
            )
        )
        files = Named(
            slices=self.at("slices/{batch}.npz"),
            scores=self.at("scores/occlusion/roi/{batch}.npz"),
            segmentation=self.at("segmentation/{batch}.npz"),
            localization=self.at("localization/text/{batch}.npz"),
            cost=self.at("cost.json"),
        )
        output = Named(
            maps=self.at("attributions/occlusion/roi/{batch}.npz"),
            rows=self.at("metrics/parts/explanations/occlusion_roi_{batch}.parquet"),
        )
        self.script(
            "attribute",
            files,
            output,
            {**METHOD, "organs": ORGANS, "prompt": "roi", "cases": self.facts(), "seed": 1},
        )

    def facts(self):
        return [{"name": case, "modality": "CT"} for case in CASES]

    def maps(self):
        files = Named(
            slices=self.at("slices/{batch}.npz"),
            attributions=[self.at("attributions/occlusion/roi/{batch}.npz")],
        )
        for case in sorted(CASES, key="bad".__eq__):  # whose log stays
            output = Named(
                variants=self.at(f"maps/{case}/variants"), skips=self.at(f"maps/.skips/{case}.json")
            )
            self.script("maps", files, output, {"case": case, "organs": ORGANS})

    def evaluate_localizer(self):
        files = Named(
            preprocessed=self.at("preprocessed/{batch}.npz"),
            localization=self.at("localization/text/{batch}.npz"),
        )
        output = Named(
            rows=self.at("metrics/parts/localizer/text_{batch}.parquet"),
            pooled=self.at("metrics/parts/localizer/text_{batch}.npz"),
        )
        cfg = {"variant": "text", "classes": CLASSES, "cases": self.facts()}
        self.script("evaluate_localizer", files, output, cfg)

    def evaluate_segmenter(self):
        files = Named(
            slices=self.at("slices/{batch}.npz"), segmentation=self.at("segmentation/{batch}.npz")
        )
        output = Named(rows=self.at("metrics/parts/segmenter/{batch}.parquet"))
        cfg = {"organs": ORGANS, "cases": self.facts()}
        self.script("evaluate_segmenter", files, output, cfg)

    def metrics(self):
        for name, part in {
            "localizer": "localizer/text_{batch}",
            "segmenter": "segmenter/{batch}",
            "explanations": "explanations/occlusion_roi_{batch}",
        }.items():
            part = self.at(f"metrics/parts/{part}.parquet")
            output = Named(self.at(f"metrics/{name}.parquet"))
            self.script("metrics", Named(part), output, {"name": name})

    def skipped(self):
        stages = ("localization/text", "roi", "segmentation")
        files = Named(
            slices=[self.at("slices/{batch}.npz")],
            preprocessed=[self.at("preprocessed/{batch}.npz")],
            stages=[
                *(self.at(f"{stage}/{BATCH}.npz") for stage in stages),
                self.at("metrics/parts/localizer/text_{batch}.npz"),
            ],
            maps=[self.at(f"maps/.skips/{case}.json") for case in CASES],
            segmenter=self.at("metrics/segmenter.parquet"),
            explanations=self.at("metrics/explanations.parquet"),
        )
        output = Named(skipped=self.at("skipped.tsv"), warnings=self.at("warnings.tsv"))
        self.script("skipped", files, output)

    def tables(self):
        cfg = {
            "classes": CLASSES,
            "statistics": {"resamples": 50, "confidence": 0.9},
            "seed": 1,
            "cases": list(CASES),
        }
        skipped = self.at("skipped.tsv")
        for name, script, more in (
            (
                "localizer",
                "table2",
                {"pooled": [self.at("metrics/parts/localizer/text_{batch}.npz")]},
            ),
            ("segmenter", "table_segmenter", {}),
            ("explanations", "table3", {}),
        ):
            files = Named(**{name: self.at(f"metrics/{name}.parquet")}, skipped=skipped, **more)
            if script == "table3":
                variants = {
                    "variants_csv": self.at("tables/table3_variants.csv"),
                    "variants_md": self.at("tables/table3_variants.md"),
                }
            else:
                variants = {}
            output = Named(
                csv=self.at(f"tables/{script}.csv"), md=self.at(f"tables/{script}.md"), **variants
            )
            self.script(script, files, output, cfg)

    def figures(self):
        sources = {
            "figure02_preprocessing": ["slices", "preprocessed"],
            "figure07_occlusion_overview": [
                *("slices", "localization/text", "roi", "segmentation"),
                *("scores/occlusion/roi", "attributions/occlusion/roi"),
            ],
            "figure09_localization": ["slices", "localization/text"],
        }
        files = {
            name: [self.at(f"{one}/{BATCH}.npz") for one in every]
            for name, every in sources.items()
        }
        settings = {"classes": CLASSES, "case": None, "organ": "liver", "prompt": "roi", "dpi": 40}
        inputs = [one for every in files.values() for one in every]
        outputs = Named(*(self.at(f"figures/{name}.png") for name in files))
        self.script("figures", inputs, outputs, {"figures": files, "settings": settings})

    def skips(self):
        return pd.read_csv(self.results / "skipped.tsv", sep="\t", keep_default_na=False)

    def explained(self):
        rows = pd.read_parquet(self.results / "metrics/explanations.parquet")
        return rows[rows.primary]


@pytest.fixture(autouse=True)
def models(monkeypatch):
    """A localizer that knows where things are, and a segmenter of random weights."""
    maps = np.full((1, 3, 224, 224), 0.1, np.float32)
    maps[:, 1, 40:110, 40:100], maps[:, 2, 40:110, 120:190] = 0.9, 0.9

    class Localizer(torch.nn.Module):
        classes = CLASSES

    monkeypatch.setattr("xaiclip.localizer.model.load_localizer", lambda *_: Localizer())
    monkeypatch.setattr("xaiclip.localizer.model.predict", lambda *_: maps)
    monkeypatch.setattr(
        "xaiclip.models.segmenters.loading.load_segmenter", lambda *_: FakeSegmenter(64)
    )


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
    assert len(list(study.results.glob("tables/*.md"))) == 4


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
