"""What CONTRIBUTING.md shows is done here, in a copy of the project: it works, in so few files."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", PAGE, re.S | re.M))


def blocks(section, language):
    return re.findall(rf"```{language}\n(.*?)```", SECTIONS[section], re.S)


@pytest.fixture
def project(tmp_path):
    for name in ("scripts", "config"):
        shutil.copytree(ROOT / name, tmp_path / name)
    return tmp_path


def add(project, section):
    """Do what a section says: its module, and the lines of its diff. Gives the files touched."""
    (path,) = re.findall(r"as `(scripts/[^`]+)`", SECTIONS[section])
    (content,) = blocks(section, "python")
    assert not (project / path).exists()
    (project / path).write_text(content, encoding="utf-8")
    touched = [path]
    for diff in blocks(section, "diff"):
        (path,) = re.findall(r"In `(scripts/[^`]+)`", SECTIONS[section])
        text = (project / path).read_text(encoding="utf-8")
        old, new = ([line[1:] for line in diff.splitlines() if line[0] == sign] for sign in "-+")
        for before, after in zip(old, new, strict=True):
            assert text.count(before + "\n") == 1, before
            text = text.replace(before, after)
        (project / path).write_text(text, encoding="utf-8")
        touched.append(path)
    return touched


def run(project, code):
    """What a program prints as JSON that imports the copy's library, and the tests' helpers."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": f"{project / 'scripts'}:{ROOT / 'tests'}"},
        capture_output=True,
        text=True,
        cwd=project,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


HASHES = """
import json
from xaiclip.workflow.provenance import code_hash

from xaiclip.report.catalogue import tables

scripts = ("segment.py", "score.py", "attribute.py")
hashes = {script: code_hash(script) for script in scripts}
print(json.dumps(hashes | {name: code_hash("table.py", [one.place])
                           for name, one in tables().items()}))
"""
SLICE = """
import json
import numpy as np
import explain_fakes as fakes
from xaiclip.explain.runner import Request, attribute_slice, score_slice

ORGANS = dict(zip(fakes.ORGANS, fakes.BOXES.numpy() * [140, 160, 140, 160]))
roi = np.zeros((160, 140), bool)
roi[40:100, 30:90] = True

def explained(method, settings, guidance="full"):
    rois = dict.fromkeys(ORGANS, roi) if guidance == "roi" else None
    request = Request("c", 0, fakes.picture(), ORGANS, rois, guidance)
    scores, skips = score_slice(fakes.FakeSegmenter(), request, fakes.run_of(method, settings))
    assert not skips
    return scores, attribute_slice(scores)[0]
"""


def test_a_method_is_one_file(project):
    assert add(project, "A perturbation method") == ["scripts/xaiclip/explain/strips.py"]
    (overlay,) = blocks("A perturbation method", "yaml")
    overlay = yaml.safe_load(overlay)
    found = run(
        project,
        SLICE
        + f"""
from xaiclip import config
overlay = {overlay!r}
whole = config.complete({{**overlay, "run": "x"}})
settings = whole["methods"]["strips"]
full, maps = explained("strips", settings)
guided, guided_maps = explained("strips", settings, "roi")
table = full.tables["strips"]
drop = table.baseline_of(["soft_dice"]) - table.of(["soft_dice"])
rows = [float(one.map[64 * 3 + 5, 17]) for one in maps if one.value == "soft_dice"]
try:
    config.complete({{"run": "x", "methods": {{"strips": {{"hight": 1}}}}}})
    words = ""
except Exception as error:
    words = str(error)
print(json.dumps({{
    "settings": settings,
    "forwards": [table.scores.shape[0], guided.tables["strips"].scores.shape[0]],
    "rows": rows,
    "drops": drop[3, :, 0].tolist(),
    "organs": sorted({{one.organ for one in maps}}),
    "whole": all(bool(np.isfinite(one.map).all()) for one in maps),
    "defined": [float(np.isfinite(one.map).mean()) for one in guided_maps],
    "document": [line for line in config.document().splitlines() if "Rows of a strip" in line],
    "words": words,
}}))
""",
    )
    assert found["settings"] == {"height": 64}
    assert found["forwards"] == [8, 3]  # rows 128 to 320 of 512 are in the ROI
    assert found["rows"] == pytest.approx(found["drops"])
    assert len(set(found["drops"])) == 2
    assert found["organs"] == ["liver", "spleen"]
    assert found["whole"]
    assert found["defined"] == pytest.approx(
        [60 / 160 * 60 / 140] * len(found["defined"]), rel=0.02
    )
    assert len(found["document"]) == 1
    assert "hight" in found["words"]
    assert "height" in found["words"]


def test_a_new_metric_reruns_maps_and_tables_and_no_forward(project):
    before = run(project, HASHES)
    add(project, "A perturbation method")
    assert run(project, HASHES) == before
    add(project, "A map metric")
    after = run(project, HASHES)
    assert {script for script in after if after[script] != before[script]} == {
        *("attribute.py", "table3", "table3_variants", "shapley_units", "slices", "cases"),
    }


def test_a_map_metric_is_one_file_and_its_name(project):
    assert add(project, "A map metric") == [
        "scripts/xaiclip/metrics/maps/mass.py",
        "scripts/xaiclip/metrics/maps/__init__.py",
    ]
    found = run(
        project,
        SLICE
        + """
import pandas as pd
from xaiclip.metrics import maps, schema
from xaiclip.metrics.maps.explained import Explained
from xaiclip.report.tables import explanations

scores, attributions = explained("occlusion", {"window": 128, "stride": 128})
one = attributions[0]
mask = scores.context.masks[scores.context.organs.index(one.organ)]
table = explanations.table3(pd.DataFrame({name: [] for name in explanations.COLUMNS}))
print(json.dumps({
    "values": [maps.columns(Explained(one, scores, None))["mass_pred"] for one in attributions],
    "expected": float(one.map[mask & (one.map > 0)].sum() / one.map[one.map > 0].sum()),
    "schema": str(schema.EXPLANATIONS.field("mass_pred").type),
    "table": table.markdown,
    "measures": sorted(set(table.frame["measure"])),
}))
""",
    )
    assert found["values"][0] == pytest.approx(found["expected"], rel=1e-5)
    assert len(set(found["values"])) > 1
    assert found["schema"] == "double"
    assert "mass in the prediction ↑" in found["table"]
    assert "- *Mass in the prediction* is the share" in found["table"]
    assert "mass_pred" in found["measures"]


def test_a_table_is_one_file(project):
    before = run(project, HASHES)
    assert add(project, "A table") == ["scripts/xaiclip/report/tables/forwards.py"]
    after = run(project, HASHES)
    assert after.pop("forwards")
    assert after == before
    shutil.copytree(ROOT / "rules", project / "rules")
    shutil.copy(ROOT / "Snakefile", project)
    for name in ("envs", "docs", "resources"):
        (project / name).symlink_to(ROOT / name)
    (project / "config.json").write_text(json.dumps({"run": "x"}))
    done = subprocess.run(
        [sys.executable, "-m", "snakemake", "results/x/provenance.json", "--cores", "1",
         "--dry-run", "--configfile", "config.json"],
        capture_output=True, text=True, check=False, cwd=project,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    job, *_ = re.findall(r"^job .*?^total", done.stdout + done.stderr, re.M | re.S)
    assert re.search(r"^table_forwards +1$", job, re.M)
    caption = (project / ".snakemake/captions/forwards.rst").read_text(encoding="utf-8")
    assert caption == "Forwards of each method, without and with guidance: mean over slices."
    found = run(
        project,
        """
import json
from pathlib import Path
from in_process import Named, run_script
import in_process
in_process.SCRIPTS = Path("scripts").absolute()
from xaiclip.metrics.schema import EXPLANATIONS, write_table
from xaiclip.report.catalogue import tables

rows = [
    {"case": case, "slice": 1, "organ": organ, "method": "lime", "guidance": guidance,
     "n_forwards": count}
    for case, guidance, count in (("a", "full", 7), ("b", "full", 10), ("a", "roi", 3))
    for organ in ("spleen", "liver")
]
write_table("rows.parquet", rows, EXPLANATIONS)
study = {"cases": ["a"], "classes": [], "methods": {}, "seed": 1, "statistics": {}}
cfg = {"places": [tables()["forwards"].place], "study": study,
       "files": {"metrics/explanations": ["rows.parquet"]}}
run_script("table.py", Named(), Named(csv=["t.csv"], md=["t.md"]), Path("log"), cfg)
print(json.dumps({"csv": Path("t.csv").read_text(), "md": Path("t.md").read_text()}))
""",
    )
    assert found["csv"].split() == ["method,guidance,n_forwards", "lime,full,8.5", "lime,roi,3"]
    assert "| lime | full | 8.5 |" in re.sub(" +", " ", found["md"])


def test_a_probe_is_a_plan(project):
    (module,) = blocks("A probe", "python")
    (project / "scripts/xaiclip/explain/deletion.py").write_text(module, encoding="utf-8")
    found = run(
        project,
        SLICE
        + """
from xaiclip.explain.deletion import deletion
from xaiclip.targets import SegmenterScorer

scores, attributions = explained("occlusion", {"window": 64, "stride": 64})
best = next(one for one in attributions if one.organ == "liver" and one.value == "soft_dice")
scorer = SegmenterScorer.of_slice(
    fakes.FakeSegmenter(), fakes.picture(), ORGANS, ["soft_dice"]
)
organ = scorer.targets.index("liver")
print(json.dumps({
    "down": deletion(scorer, best.map, 8)[:, organ, 0].tolist(),
    "up": deletion(scorer, -best.map, 8)[:, organ, 0].tolist(),
}))
""",
    )
    assert len(found["down"]) == 8
    assert found["down"][-1] == pytest.approx(found["up"][-1])  # both have hidden everything
    # hiding what matters most first costs more than hiding it last
    assert sum(found["down"]) < sum(found["up"])


def test_the_rooms_exist():
    rooms = re.findall(r"^\| (`.*?) \|", SECTIONS["The house"], re.M)
    places = [name for room in rooms for name in re.findall(r"`([^`]+)`", room)]
    assert len(places) > 15
    for place in places:
        found = [*ROOT.glob(place), *(ROOT / "scripts/xaiclip").glob(place)]
        assert found, place
    inside = {path.name for path in (ROOT / "scripts/xaiclip").iterdir() if path.is_dir()}
    named = {place.split("/")[0] for place in places}
    assert inside - named - {"__pycache__"} == set()


@pytest.mark.parametrize(
    "name", sorted(set(re.findall(r"`((?:scripts|tests|rules|envs|docs|report)/[\w./]*\w)`", PAGE)))
)
def test_named_files_exist(name):
    shown = {"scripts/xaiclip/explain/strips.py", "scripts/xaiclip/metrics/maps/mass.py"}
    shown |= {"scripts/xaiclip/report/tables/forwards.py"}
    assert name in shown or (ROOT / name).exists() or (ROOT / "scripts/xaiclip" / name).exists()
