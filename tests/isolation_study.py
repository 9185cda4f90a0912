"""A study of three cases, one of them bad, whose stages run in this process."""

import json

import nibabel as nib
import numpy as np
import pandas as pd
import torch

from explain_fakes import FakeSegmenter
from in_process import Named, run_script
from xaiclip.report import catalogue

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


class FakeLocalizer(torch.nn.Module):
    """Knows the organs' names; the maps are `plant_models`'."""

    classes = CLASSES


def plant_models(patch):
    """A localizer that knows where things are, and a segmenter of random weights."""
    maps = np.full((1, 3, 224, 224), 0.1, np.float32)
    maps[:, 1, 40:110, 40:100], maps[:, 2, 40:110, 120:190] = 0.9, 0.9
    patch.setattr("xaiclip.localizer.model.load_localizer", lambda *_: FakeLocalizer())
    patch.setattr("xaiclip.localizer.model.predict", lambda *_: maps)
    patch.setattr("xaiclip.models.segmenters.loading.load_segmenter", lambda *_: FakeSegmenter(64))


class Study:
    """A batch of three cases, from its scans to its tables."""

    def __init__(self, root, **policy):
        self.root = root
        self.policy = {"policy": "middle", "index": None, "every": 1, **policy}
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
            "slices": self.policy,
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
        study = {
            "cases": list(CASES),
            "classes": CLASSES,
            "methods": {},
            "seed": 1,
            "statistics": {"resamples": 50, "confidence": 0.9},
        }
        files = {
            "skipped": [self.at("skipped.tsv")],
            "localizer_pooled": [self.at("metrics/parts/localizer/text_{batch}.npz")],
        }
        for name in ("localizer", "segmenter", "explanations"):
            files[f"metrics/{name}"] = [self.at(f"metrics/{name}.parquet")]
        for name, one in catalogue.tables().items():
            if not one.methods:
                cfg = {
                    "places": [one.place],
                    "files": {source: files[source] for source in one.reads},
                    "study": study,
                }
                output = Named(
                    csv=[self.at(f"tables/{name}.csv")], md=[self.at(f"tables/{name}.md")]
                )
                self.script("table", Named(), output, cfg)

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
