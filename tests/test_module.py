"""The workflow as a module of another project: what docs/module.md shows is what runs here."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "module.md").read_text(encoding="utf-8")
BLOCKS = dict(re.findall(r"```(\w+)\n(.*?)```", PAGE, re.S))
TRIGGERS = re.search(r"^snakemake .*(--rerun-triggers .*) --dry-run$", PAGE, re.M)[1].split()
PHANTOM = {"settings": {"max_inplane": 96, "slices": [12, 14]}}
PHANTOM |= {split: {"CT": 1, "MR": 0} for split in ("train", "test")}


class Project:
    """Somebody's project, laid out as the page shows it."""

    def __init__(self, folder):
        self.folder = folder
        self.snakefile = folder / "workflow" / "Snakefile"
        self.snakefile.parent.mkdir()
        self.snakefile.write_text(BLOCKS["snakemake"])
        (folder / "config").mkdir()
        (folder / "xai-clip").symlink_to(ROOT)
        # the page's study, of phantoms instead of scans that nobody has
        self.config = yaml.safe_load(BLOCKS["yaml"])["xaiclip"]
        assert set(self.config) == {"run", "data", "localizer"}
        del self.config["localizer"]
        self.config["data"] = {"phantom": PHANTOM}

    def run(self, *arguments):
        content = {"xaiclip": self.config, "other": 1}
        (self.folder / "config" / "config.yaml").write_text(yaml.safe_dump(content))
        done = subprocess.run(
            [sys.executable, "-m", "snakemake", "--cores", "1", *arguments],
            capture_output=True,
            text=True,
            cwd=self.folder,
        )
        return done.returncode, done.stdout + done.stderr

    def planned(self, *arguments):
        """Rule → number of jobs."""
        status, output = self.run("--dry-run", *arguments)
        assert status == 0, output[-3000:]
        plan = {name: int(n) for name, n in re.findall(r"^(\w+) +(\d+)$", output, re.M)}
        return {name: n for name, n in plan.items() if name != "total"}


@pytest.fixture
def project(tmp_path):
    return Project(tmp_path)


def test_the_page_s_project_asks_for_the_study_s_tables(project):
    plan = project.planned()
    assert plan["summary"] == 1
    assert plan["xaiclip_score"] == 6  # three methods, two guidances
    assert plan["xaiclip_table3"] == 1
    assert "xaiclip_provenance" not in plan  # nobody has asked for it
    assert project.planned("xaiclip_all")["xaiclip_provenance"] == 1


def test_jobs_run_in_the_user_s_folder_and_only_once(project):
    targets = ("--", "results/mine/slices/test-0.npz")
    status, output = project.run(*TRIGGERS, *targets)
    assert status == 0, output[-3000:]
    assert (project.folder / "results/mine/raw/test-0/test_ct_000_labels.nii.gz").exists()
    assert not (ROOT / "results/mine").exists()
    assert project.planned(*TRIGGERS, *targets) == {}
    # the section is what an overlay would be: a key of it reruns what reads it
    project.config["data"]["implausible"] = "refuse"
    plan = project.planned(*TRIGGERS, *targets)
    assert plan.keys() == {"xaiclip_slices"}


def test_a_rule_is_changed_as_the_page_says(project):
    text = re.search(r"`(use rule score .*) with: (threads: \d+)`", PAGE)
    shown = '    message: "with {threads} threads"'
    changed = f"{text[1]} with:\n    {text[2]}\n{shown}\n"
    project.snakefile.write_text(f"{BLOCKS['snakemake']}\n\n{changed}")
    target = "results/mine/scores/rise/full/test-0.npz"
    status, output = project.run("--dry-run", "--cores", "8", "--", target)
    assert status == 0, output[-3000:]
    assert re.search(r"Job 0: with 8 threads", output)


def test_two_studies_are_two_modules(project):
    second = BLOCKS["snakemake"].partition("module")[2].partition("RUN =")[0]
    second = second.replace(" xaiclip:", " other:").replace(
        "from xaiclip as xaiclip_", "from other as other_"
    )
    second = second.replace('config["xaiclip"]', 'config["xaiclip"] | {"run": "other"}')
    project.snakefile.write_text(f"{BLOCKS['snakemake']}\n\nmodule{second}")
    plan = project.planned("xaiclip_all", "other_all")
    assert plan["xaiclip_score"] == plan["other_score"] == 6


def test_what_cannot_be_is_refused(project):
    project.config["roi"] = {"sigm": 1}
    status, output = project.run("--dry-run")
    assert status != 0
    assert "config key 'roi.sigm' is unknown; did you mean 'sigma'?" in output
    del project.config["roi"]
    prefixed = re.sub(r"( +config:\n)", r'    prefix:\n        "x"\n\1', BLOCKS["snakemake"])
    project.snakefile.write_text(prefixed)
    assert "takes no prefix" in project.run("--dry-run")[1]
    # the rules without the library, as a remote path would have them
    alone = project.folder / "rules-only"
    for name in ("rules", "config"):
        shutil.copytree(ROOT / name, alone / name)
    shutil.copy(ROOT / "Snakefile", alone)
    text = BLOCKS["snakemake"].replace("../xai-clip/Snakefile", "../rules-only/Snakefile")
    project.snakefile.write_text(text)
    assert "holds no scripts/xaiclip: clone the project" in project.run("--dry-run")[1]


def test_the_profile_beside_the_own_snakefile_is_found(project):
    shutil.copytree(ROOT / "profiles", project.snakefile.parent / "profiles")
    output = project.run("--dry-run", "--", "results/mine/raw/test-0")[1]
    assert "Using workflow specific profile workflow/profiles/default" in output
