"""The workflow, once from end to end on tiny settings, and what reruns after it."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import yaml
from matplotlib.image import imread

import markdown_page
from xaiclip.data.record import load_slices
from xaiclip.explain.store import load_scores
from xaiclip.organs import file_stem

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
TINY = ROOT / "tests" / "tiny.yaml"
METHODS = {"occlusion", "lime", "rise"}


def snakemake(directory, *arguments, root=ROOT, check=True):
    """Run Snakemake on the project's Snakefile with its results in ``directory``."""
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "snakemake",
            "--snakefile",
            str(root / "Snakefile"),
            "--directory",
            str(directory),
            *(("--cores", "2") if "--cores" not in arguments else ()),
            *arguments,
        ],
        capture_output=True,
        text=True,
        encoding="utf-8",
        cwd=root,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )
    output = done.stdout + done.stderr
    if check:
        assert done.returncode == 0, output[-8000:]
    return output


def planned(directory, *arguments, root=ROOT):
    """Rules that a dry run would run, with the number of jobs of each."""
    output = snakemake(directory, "--dry-run", *arguments, root=root)
    stats = re.search(r"Job stats:\n.*?\n-+\s+-+\n(.*?)\n\n", output, re.S)
    if stats is None:
        assert "Nothing to be done" in output, output[-3000:]
        return {}
    rows = (line.split() for line in stats.group(1).splitlines())
    return {name: int(count) for name, count in rows if name not in ("total", "all")}


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A finished tiny study."""
    directory = tmp_path_factory.mktemp("a study with spaces")
    snakemake(directory, "--configfile", str(TINY))
    return directory


@pytest.fixture(scope="module")
def results(study):
    return study / "results" / "tiny"


@pytest.fixture
def overlay(study, tmp_path):
    """Plans the finished study with keys changed."""

    def plan(**changes):
        config = yaml.safe_load(TINY.read_text(encoding="utf-8"))
        for dotted, value in changes.items():
            *sections, key = dotted.split("__")
            node = config
            for section in sections:
                node = node.setdefault(section, {})
            node[key] = value
        path = tmp_path / "changed.yaml"
        path.write_text(yaml.safe_dump(config))
        return planned(study, "--configfile", str(path))

    return plan


def test_explanations_hold_a_row_for_everything(results):
    table = pd.read_parquet(results / "metrics/explanations.parquet")
    primary = table[table.primary]
    assert set(primary.method) == METHODS
    keys = ["case", "slice", "organ", "method", "guidance", "roi_source"]
    assert len(primary) == 3 * 5 * 3 * 4
    assert not primary.duplicated(keys).any()
    assert set(primary.roi_source.dropna()) == {"localizer", "reference", "body"}
    done = table[table.skipped.isna()]
    assert len(done) > 0
    assert done.seconds_total.gt(0).all()
    phases = done.filter(regex="^seconds_(perturb|encode|decode|aggregate)$").sum(axis=1)
    assert (phases + done.seconds_roi).div(done.seconds_total).between(0.8, 1.001).all()
    for column in ("fidelity_dice", "localization_dice_pred", "rho"):
        assert done[column].dropna().between(0, 1).all(), column


def test_guidance_saves_forwards(results):
    table = pd.read_parquet(results / "metrics/explanations.parquet")
    table = table[table.skipped.isna() & table.primary & (table.method == "occlusion")]
    assert table[table.guidance == "full"].rho.eq(1).all()
    guided = table[table.roi_source == "localizer"].rho
    assert guided.le(1).all()
    assert guided.mean() < 0.95


def test_localizer_and_segmenter_tables(results):
    localizer = pd.read_parquet(results / "metrics/localizer.parquet")
    assert {"case", "class", "dice", "auc_roc", "variant"} <= set(localizer)
    assert set(localizer.variant) == {"text", "no_text"}
    segmenter = pd.read_parquet(results / "metrics/segmenter.parquet")
    assert set(segmenter.prompt) == {"roi", "reference"}
    assert segmenter.dice.dropna().between(0, 1).all()


def test_tables_and_figures(results):
    rows = pd.read_parquet(results / "metrics/explanations.parquet")
    rows = rows[rows.skipped.isna() & rows.primary.eq(True)]
    table3 = pd.read_csv(results / "tables/table3.csv")
    for guidance in ("full", "roi"):
        for method in rows.method.unique():
            own = rows[(rows.method == method) & (rows.guidance == guidance)]
            own = own[own.roi_source.isna() | (own.roi_source == "localizer")]
            cells = table3[(table3.method == method) & (table3.guidance == guidance)]
            cells = cells[cells.roi_source == "localizer"]
            cells = cells.set_index("measure")["mean"]
            for measure in ("n_forwards", "rho_union", "localization_dice_gt"):
                by_organ = own.groupby(["case", "organ"])[measure].mean()
                assert cells[measure] == pytest.approx(by_organ.groupby("case").mean().mean())
    segmenter = pd.read_parquet(results / "metrics/segmenter.parquet")
    counts = {"table2": 2, "segmenter": 1, "table3": 2, "table3_variants": 1}
    for name, count in counts.items():
        page = markdown_page.read((results / f"tables/{name}.md").read_text(encoding="utf-8"))
        assert len(page.tables) == count
        for heads, lines in page.tables:
            assert lines
            assert all(len(line) == len(heads) for line in lines)
            if name == "segmenter":
                assert {line[0] for line in lines} == set(segmenter.modality.dropna())
        assert len(pd.read_csv(results / f"tables/{name}.csv")) >= len(page.tables[0][1])
    figures = {path.stem for path in (results / "figures").glob("*.png")}
    assert {f"figure{number:02d}" for number in range(2, 14)} == {name[:8] for name in figures} - {
        "training"
    }
    for path in (results / "figures").glob("*.png"):
        assert len(np.unique(imread(path).reshape(-1, 4), axis=0)) > 20, path


def test_maps_lie_on_the_source_grid(results):
    table = pd.read_parquet(results / "metrics/explanations.parquet")
    done = table[table.primary & table.skipped.isna() & (table.method == "occlusion")]
    done = done[done.guidance == "full"]
    explained = {(row.case, file_stem(row.organ)) for row in done.itertuples()}
    maps = sorted((results / "maps").glob("*/*_occlusion_full.nii.gz"))
    assert len(maps) == 3 * 5
    for path in maps:
        image = nib.load(path)
        (source,) = (results / "raw").glob(f"*/{path.parent.name}.nii.gz")
        source = nib.load(source)
        assert image.shape == source.shape
        np.testing.assert_allclose(image.affine, source.affine)
        organ = path.name.removesuffix("_occlusion_full.nii.gz")
        wanted = (path.parent.name, organ) in explained
        assert np.isfinite(image.get_fdata()).any() == wanted


def test_provenance_names_what_made_the_tables(results):
    provenance = json.loads((results / "provenance.json").read_text())
    assert {"versions", "device", "precision", "weights", "seed", "commit", "config"} <= set(
        provenance
    )
    assert all(re.fullmatch("[0-9a-f]{64}", value) for value in provenance["weights"].values())


def test_nothing_is_left_to_do(overlay):
    assert overlay() == {}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"methods__lime__samples": 9},
            {
                "score": 4,
                "attribute": 4,
                "maps": 3,
                "metrics": 1,
                "skipped": 1,
                "table2": 1,
                "table3": 1,
                "table_segmenter": 1,
                "provenance": 1,
                "figures": 1,
            },
        ),
        (
            {"statistics__resamples": 300},
            {"table2": 1, "table_segmenter": 1, "table3": 1, "provenance": 1},
        ),
        ({"explain__methods": ["occlusion", "lime", "rise"]}, {}),
    ],
    ids=["lime.samples", "statistics", "nothing"],
)
def test_a_changed_key_reruns_what_reads_it(overlay, changes, expected):
    assert overlay(**changes) == expected


def test_an_edited_estimator_reruns_its_maps_and_no_forward(study, tmp_path):
    copy = tmp_path / "project"
    for name in ("rules", "scripts", "envs", "config", "profiles", "docs", "resources"):
        shutil.copytree(ROOT / name, copy / name)
    shutil.copy(ROOT / "Snakefile", copy)
    assert planned(study, "--configfile", str(TINY), root=copy) == {}
    module = copy / "scripts/xaiclip/explain/rise.py"
    text = module.read_text(encoding="utf-8")
    module.write_text(text + "\n# edited\n", encoding="utf-8")
    assert planned(study, "--configfile", str(TINY), root=copy) == {}
    estimator = '"complement": 1 - paper'
    assert estimator in text
    module.write_text(text.replace(estimator, estimator.replace("1", "2")), encoding="utf-8")
    plan = planned(study, "--configfile", str(TINY), root=copy)
    assert plan["attribute"] == 4
    assert plan.keys().isdisjoint({"score", "train_localizer", "segment"})


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"run": "x", "roi": {"sigm": 1}}, ["roi.sigm", "sigma"]),
        ({"run": "x", "data": {"source": "sheet", "sheet": "none.tsv"}}, ["none.tsv"]),
        ({"run": "x", "localizer": {"weights": "none.safetensors"}}, ["localizer.weights"]),
        ({"run": "x", "data": {"cases": ["none*"]}}, ["data.cases", "none*", "train_ct_000"]),
    ],
)
def test_a_wrong_config_stops_before_the_first_job(tmp_path, config, words):
    path = tmp_path / "wrong.yaml"
    path.write_text(yaml.safe_dump(config))
    output = snakemake(tmp_path, "--configfile", str(path), check=False)
    assert all(word in output for word in words), output
    assert "Traceback" not in output
    assert not (tmp_path / "results").exists()


# Batches: a job is a batch of cases × one method.

OWN_SEGMENTER = """
import os
from xaiclip.models.segmenters.loading import load_segmenter

def make(checkpoint, device, precision):
    with open({loads!r}, "a") as stream:
        print(os.getpid(), file=stream)
    return load_segmenter({{"model": "compact"}}, str(device), precision)
"""


class Batched:
    """A study of scans in a sheet, whose segmenter notes each loading of its weights."""

    def __init__(self, directory, study):
        self.directory, self.raw = directory, study / "results/tiny/raw/test-0"
        self.loads = directory / "loads.txt"
        (directory / "own.py").write_text(OWN_SEGMENTER.format(loads=str(self.loads)))
        self.config = {
            "run": "batched",
            "data": {"source": "sheet", "sheet": str(directory / "sheet.tsv")},
            "localizer": {
                "weights": str(study / "results/tiny/localizer/text/localizer.safetensors")
            },
            "segmenter": {"factory": f"{directory / 'own.py'}:make"},
            "explain": {
                "prompt": "reference",
                "methods": ["occlusion", "rise"],
                "guidances": ["full"],
            },
            "methods": {"occlusion": {"window": 128, "stride": 128}, "rise": {"masks": 12}},
        }

    def write(self, batches, **changes):
        """Case → batch of its own (None: derived from its name); the scans are the tiny study's."""
        rows = ["case\timage\tlabel\tmodality\tsplit\tbatch"]
        for case, batch in batches.items():
            image, label = self.directory / f"{case}.nii.gz", self.raw / "test_ct_000_labels.nii.gz"
            if not image.exists():
                content = (self.raw / "test_ct_000.nii.gz").read_bytes()
                image.write_bytes(content[:1000] if case == "broken" else content)
            rows.append(f"{case}\t{image}\t{label}\tCT\ttest\t{batch or ''}")
        (self.directory / "sheet.tsv").write_text("\n".join(rows) + "\n")
        path = self.directory / "batched.yaml"
        path.write_text(yaml.safe_dump({**self.config, **changes}))
        return ("--configfile", str(path))

    def plan(self, *arguments):
        """Rule and batch of each job that a dry run would run."""
        output = snakemake(self.directory, "--dry-run", "--quiet", "reason", *arguments)
        return set(re.findall(r"Job \d+: (\w+).* batch (test-\w+)", output))


@pytest.fixture(scope="module")
def batched(study, tmp_path_factory):
    return Batched(tmp_path_factory.mktemp("batched"), study)


def test_a_batch_loads_the_model_once_per_method_and_survives_a_broken_case(batched):
    arguments = batched.write({"one": "a", "broken": "a", "two": "a"})
    done = "results/batched/scores/{}/full/test-a.npz"
    snakemake(batched.directory, *arguments, *("--", done.format("occlusion"), done.format("rise")))
    loads = batched.loads.read_text().split()
    assert len(loads) == len(set(loads)) == 2  # one job per method, one loading per job
    slices, skips = load_slices(batched.directory / "results/batched/slices/test-a.npz")
    assert [one.case for one in slices] == ["one", "two"]
    assert [(skip.case, skip.stage) for skip in skips] == [("broken", "slices")]
    for name in ("occlusion", "rise"):
        scores, _ = load_scores(batched.directory / done.format(name))
        assert [one.case for one in scores] == ["one", "two"]

    # the finished batch is left alone when a case joins another, and made again when one joins it
    targets = ("--", done.format("rise"), "results/batched/slices/test-b.npz")
    arguments = batched.write({"one": "a", "broken": "a", "two": "a", "three": "b"})
    assert batched.plan(*arguments, *targets) == {("Slices", "test-b")}
    snakemake(batched.directory, *arguments, *targets)
    arguments = batched.write({"one": "a", "broken": "a", "two": "a"})
    assert batched.plan(*arguments, *targets[:2]) == set()
    arguments = batched.write({"one": "a", "broken": "a", "three": "b"})
    assert {batch for _, batch in batched.plan(*arguments, *targets)} == {"test-a"}
    arguments = batched.write({"one": "a", "broken": "a", "two": "a", "three": "b", "four": "b"})
    assert {batch for _, batch in batched.plan(*arguments, *targets)} == {"test-b"}


@pytest.mark.parametrize(("cases_per_job", "most"), [(100, 1), (4, 2), (1, 8)])
def test_cases_per_job_sets_the_number_of_batches(batched, cases_per_job, most):
    cases = dict.fromkeys((f"case{number}" for number in range(8)), None)
    arguments = batched.write(cases, cases_per_job=cases_per_job)
    made = {batch for rule, batch in batched.plan(*arguments) if rule == "Slices"}
    assert made <= {f"test-{number}" for number in range(most)}
    assert len(made) >= most / 2
    # a case that joins leaves the batches of the others as they are, until their number doubles
    if cases_per_job == 4:
        fewer = batched.write(dict(list(cases.items())[:-1]), cases_per_job=4)
        slices = [f"results/batched/slices/{batch}.npz" for batch in sorted(made)]
        snakemake(batched.directory, *fewer, "--", *slices)
        again = batched.write(cases, cases_per_job=4)
        assert len(batched.plan(*again, "--", *slices)) == 1


def test_the_compact_models_phantoms_are_drawn_by_several_processes(tmp_path):
    path = tmp_path / "pool.yaml"
    path.write_text(yaml.safe_dump({"compact": {"pool": {"volumes": 2}}}))
    snakemake(tmp_path, "--configfile", str(path), "--", "results/compact/pool")
    assert len(list((tmp_path / "results/compact/pool").glob("*.npz"))) == 2
