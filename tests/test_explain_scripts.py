"""What scripts/score.py and scripts/attribute.py hand to the library: each organ its own."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from figure_study import BATCH, COST, ORGANS, drawn_slice, make_study
from stored_maps import load_rois
from xaiclip.data.record import load_slices
from xaiclip.explain.attribution import to_canonical_mask
from xaiclip.explain.store import load_scores
from xaiclip.models.segmenters.base import Prompts
from xaiclip.models.segmenters.loading import load_segmenter
from xaiclip.targets import SegmenterScorer
from xaiclip.workflow.provenance import STAGES, Reach

pytestmark = pytest.mark.slow

SCRIPTS = Path(__file__).parents[1] / "scripts"
RUN = """
import json, runpy, sys
from types import SimpleNamespace as Names
scripts, jobs = sys.argv[1], json.loads(sys.argv[2])
sys.path.insert(0, scripts)
class Files(list):
    pass
def files(given):
    found = Files(given.values())
    vars(found).update(given)
    return found
ran = {}
def note(frame, event, _):
    code = frame.f_code
    # what runs at import has no local variables, but for comprehensions
    inside = code.co_flags & 1 and "comp>" not in code.co_name
    if event == "call" and inside and code.co_filename.startswith(scripts):
        ran[name].add((code.co_filename, code.co_firstlineno))
for name, job in jobs:
    ran.setdefault(name, set())
    sys.setprofile(note)
    fake = Names(input=files(job["input"]), output=files(job["output"]), threads=1, log=[],
                 params=Names(cfg=job["cfg"]), resources=Names(), rule=name)
    runpy.run_path(f"{scripts}/{name}.py", {"snakemake": fake})
    sys.setprofile(None)
print(json.dumps({name: sorted(found) for name, found in ran.items()}))
"""
METHOD = {
    "method": "rise",
    "settings": {"masks": 12, "estimators": ["covariance", "paper"]},
    "values": ["soft_dice"],
    "first": [],
    "organs": ORGANS,
    "seed": 5,
}
CASES = [
    {"name": name, "image": "", "label": None, "modality": "CT", "split": "test", "problem": None}
    for name in ("a", "b", "c")
]


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Two slices, one without a label; the jobs that wrote into it: scores and rows."""
    root = tmp_path_factory.mktemp("study")
    labelled = drawn_slice("a", without="left kidney")
    slices = [labelled, drawn_slice("b", 1, labelled=False)]
    truth = [labelled, drawn_slice("b", 1)]
    make_study(root, slices, truth=truth, settings={"rise": METHOD["settings"]})
    (root / "cost.json").write_text(json.dumps(COST))
    names = ("slices", "preprocessed", "roi", "localization/text", "segmentation")
    files = {name.split("/")[0]: str(root / name / f"{BATCH}.npz") for name in names}
    jobs = []
    for guidance, prompt in (("full", "roi"), ("roi", "reference"), ("roi", "roi")):
        cfg = {**METHOD, "guidance": guidance, "prompt": prompt, "cases": CASES}
        out = root / f"{guidance}_{prompt}"
        out.mkdir()
        scores = root / "scores" / f"rise/{guidance}/{BATCH}.npz"
        jobs.append(
            (
                "attribute",
                {
                    "input": {**files, "scores": str(scores), "cost": str(root / "cost.json")},
                    "output": {"maps": str(out / "maps.npz"), "rows": str(out / "rows.parquet")},
                    "cfg": cfg,
                },
            )
        )
    for guidance, prompt in (("roi", "reference"), ("roi_reference", "roi")):
        out = root / f"{guidance}_{prompt}"
        out.mkdir(exist_ok=True)
        jobs.append(
            (
                "score",
                {
                    "input": files,
                    "output": {"scores": str(out / "s.npz"), "table": str(out / "s.parquet")},
                    "cfg": {
                        **METHOD,
                        "settings": {"masks": 2},
                        "guidance": guidance,
                        "prompt": prompt,
                        "segmenter": {"model": "compact", "input": "windowed"},
                        "device": "cpu",
                        "precision": "fp32",
                        "fill": "mean",
                        "batch_size": 2,
                    },
                },
            )
        )
    command = [sys.executable, "-c", RUN, str(SCRIPTS), json.dumps(jobs)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    (root / "ran.json").write_text(done.stdout)
    return root


@pytest.mark.parametrize("script", ["score", "attribute"])
def test_what_a_job_runs_is_what_its_hash_holds(study, script):
    """Every function that was called, against the code that names lead to."""
    reach = Reach(SCRIPTS)
    reach.script(f"{script}.py")
    for part in STAGES[f"{script}.py"]:
        reach.named(f"xaiclip.explain.rise:{part}")
    held = {
        (str(module.path), line)
        for name, number in reach.reached | reach.touched
        for module in [reach.modules[name]]
        for line in range(module.units[number].lines[0], module.units[number].lines[1] + 1)
    }
    ran = {tuple(one) for one in json.loads((study / "ran.json").read_text())[script]}
    assert len(ran) > 50
    assert ran <= held


KEYS = ["case", "organ", "guidance", "variant", "value"]


@pytest.mark.slow
@pytest.mark.parametrize("guidance", ["full", "roi"])
def test_rows_are_those_of_the_library(study, guidance):
    """The made-up study called it by itself, with masks and references of its own making."""
    expected = pd.read_parquet(study / "metrics/explanations.parquet")
    expected = expected[expected.guidance == guidance].set_index(KEYS).sort_index()
    found = pd.read_parquet(study / f"{guidance}_roi/rows.parquet")
    missing = found[found.case == "c"]
    assert missing.organ.tolist() == sorted(ORGANS)
    assert set(missing.skipped) == {"no slice was taken"}
    found = found[found.case != "c"].set_index(KEYS).sort_index()
    same = [name for name in expected if name not in ("seed", "seconds_aggregate", "seconds_total")]
    pd.testing.assert_frame_equal(found[same], expected[same], check_dtype=False)
    assert set(found.seed) == {5}
    done = found[found.skipped.isna()]
    assert done.baseline_dice_gt.xs("a").notna().any()
    assert done.baseline_dice_gt.xs("b").isna().all()
    assert done.seconds_roi.eq(0.03).all()


def test_the_explained_masks_are_those_of_the_prompt(study):
    """Of the reference's boxes nothing was segmented here; the ROI is still the localizer's."""
    found = pd.read_parquet(study / "roi_reference/rows.parquet")
    assert found.baseline_dice_gt.isna().all()
    assert found[found.skipped.isna()].seconds_roi.eq(0.03).all()


@pytest.mark.parametrize(
    ("guidance", "prompt", "source", "boxes"),
    [
        ("roi", "reference", "localizer", "reference"),
        ("roi_reference", "roi", "reference", "localizer"),
    ],
)
def test_each_organ_is_scored_with_its_own_box_and_roi(study, guidance, prompt, source, boxes):
    (scores, *_), _ = load_scores(study / f"{guidance}_{prompt}/s.npz")
    (item, _), _ = load_slices(study / f"slices/{BATCH}.npz")
    rois = load_rois(study / f"roi/{BATCH}.npz")[0][item.key]
    usable = [
        o for o in ORGANS if {source, boxes} <= set(rois[o]) and rois[o][boxes].box is not None
    ]
    assert scores.context.organs == tuple(o for o in usable if o in scores.context.organs)
    assert len(scores.context.organs) >= 3
    prompts = Prompts.from_pixels(
        scores.context.organs,
        np.stack([rois[organ][boxes].box for organ in scores.context.organs]),
        item.image.shape,
    )
    segmenter = load_segmenter({"model": "compact"}, "cpu", "fp32")
    scorer = SegmenterScorer(segmenter, prompts, segmenter.prepare(item.image))
    for o, organ in enumerate(scores.context.organs):
        assert np.array_equal(scores.context.rois[o], to_canonical_mask(rois[organ][source].mask))
        assert np.array_equal(scores.context.masks[o], scorer.masks[o])
    assert len({mask.tobytes() for mask in scores.context.rois}) == len(scores.context.organs)
