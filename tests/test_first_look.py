"""What the workflow says before its first job: one sentence for each set-up that cannot be right.

As users call it: `snakemake` on the command line, and as a module of another project.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from compact.phantom import PhantomSettings, generate, write
from xaiclip.data.record import load_slices

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
SHEET = "case\timage\tlabel\tmodality\tsplit\n"


def snakemake(directory, *arguments, root=ROOT, snakefile=None, path=""):
    """Exit status and all output."""
    command = [sys.executable, "-m", "snakemake", "--cores", "1"]
    command += ["--snakefile", str(snakefile or root / "Snakefile"), "--directory", str(directory)]
    done = subprocess.run(
        [*command, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=directory,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": path},
    )
    return done.returncode, done.stdout + done.stderr


def refused(directory, *arguments, **options):
    """The sentence with which a dry run is refused; nothing is left behind."""
    status, output = snakemake(directory, "--dry-run", *arguments, **options)
    assert status != 0, output[-3000:]
    assert "Traceback" not in output, output[-3000:]
    assert not (directory / "results").exists()
    found = re.search(r"WorkflowError in file .*, line \d+:\n(.*)\n", output)
    assert found, output[-3000:]
    return found[1]


@pytest.fixture
def scans(tmp_path):
    """A folder with two scans, a sheet and what a localizer's weights might be."""
    settings = PhantomSettings(max_inplane=96, slices=(12, 14))
    for number, name in enumerate(("one", "two")):
        volume = generate(number, "CT", settings)
        write(volume, tmp_path / f"{name}.nii.gz", tmp_path / f"{name}_label.nii.gz")
    (tmp_path / "trained.safetensors").write_text("weights")
    rows = [f"{name}\t{name}.nii.gz\t{name}_label.nii.gz\tCT\ttest" for name in ("one", "two")]
    (tmp_path / "sheet.tsv").write_text(SHEET + "\n".join(rows))
    return tmp_path


STUDY = {
    "run": "mine",
    "data": {"sheet": "sheet.tsv"},
    "localizer": {"weights": "trained.safetensors"},
    "explain": {"methods": ["occlusion"], "guidances": ["full"]},
}


def overlay(folder, changes=None, name="mine.yaml"):
    """Write a study with sections changed."""
    study = {**STUDY}
    for key, value in (changes or {}).items():
        study[key] = {**study[key], **value} if isinstance(study.get(key), dict) else value
    (folder / name).write_text(yaml.safe_dump(study))
    return ("--configfile", folder / name)


def cases_of(output):
    return set(re.findall(r"Phantom (\w+)", output)), re.findall(r"Slices of batch (\S+)", output)


def test_the_shipped_localizer_is_used_by_its_name(scans):
    """Nothing trains, and another backbone is refused in a sentence."""
    study = overlay(scans, {"localizer": {"weights": "compact"}})
    status, output = snakemake(scans, "--dry-run", *study)
    assert status == 0, output[-3000:]
    assert "train_localizer" not in output
    assert "Localize the organs" in output
    words = refused(scans, *overlay(scans, {"localizer": {"weights": "compact", "backbone": "x"}}))
    assert "'localizer.weights' is 'compact'" in words


def test_a_sheet_is_never_left_aside_for_phantoms(scans):
    status, output = snakemake(scans, "--dry-run", *overlay(scans))
    assert status == 0, output[-3000:]
    assert cases_of(output) == (set(), ["test-0"])
    assert "'phantom'" in refused(scans, *overlay(scans, {"data": {"source": "phantom"}}))
    words = refused(scans, *overlay(scans, {"data": {"sheet": "none.tsv"}}))
    assert words == "the sample sheet 'none.tsv' does not exist."
    (scans / "two.yaml").write_text("data: {sheet: sheet.tsv}\nrun: x\ndata: {cases: ['*']}\n")
    words = refused(scans, "--configfile", scans / "two.yaml")
    assert words.startswith(f"{scans}/two.yaml, line 3: the key 'data' stands there twice")
    first, second = overlay(scans), overlay(scans, {"run": "other"}, "other.yaml")
    assert "--configfile is given twice" in refused(scans, *first, *second)
    words = refused(scans, *first, "--config", "seed=1", "--config", "data={cases: ['one']}")
    assert "--config is given twice" in words
    # both after one option are merged
    status, output = snakemake(scans, "--dry-run", *first, second[1])
    assert status == 0
    assert "results/other/slices/test-0.npz" in output


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"localizer": {"weights": "gone.safetensors"}}, ["'localizer.weights'", "no file"]),
        ({"localizer": {"backbone": "gone.json"}}, ["'localizer.backbone'", "no file"]),
        ({"localizer": {"backbone": "ViT-L-41"}}, ["'localizer.backbone'", "ViT-L-14"]),
        ({"localizer": {"backbone": "hf-hub:{os.environ}"}}, ["'localizer.backbone'"]),
        ({"localizer": {"pretrained": "openai"}}, ["'localizer.pretrained'"]),
        ({"segmenter": {"model": "medsam", "checkpoint": "x.pth"}}, ["'segmenter.checkpoint'"]),
        ({"segmenter": {"checkpoint": "."}}, ["'segmenter.checkpoint'", "sam.safetensors"]),
        ({"segmenter": {"factory": "gone.py:make"}}, ["'segmenter.factory'", "no file"]),
        ({"downloads": "x{1}"}, ["'downloads'", "'{'"]),
        ({"downloads": "$(touch x)"}, ["'downloads'", "'$'"]),
        ({"figures": {"organ": "</script><script>"}}, ["'figures.organ'", "'<'"]),
        ({"figures": {"case": "three"}}, ["'figures.case'", "is not a test case"]),
        ({"run": "demo\n"}, ["'run'"]),
        ({"data": {"phantom": {"test": {"CT": 1}}}}, ["'data.phantom.test'", "'sheet'"]),
    ],
    ids=lambda value: "" if isinstance(value, list) else str(value)[:40].replace("\n", "_"),
)
def test_one_sentence_before_the_first_job(scans, changes, words):
    sentence = refused(scans, *overlay(scans, changes))
    assert all(word in sentence for word in words), sentence


def test_weights_of_the_right_name_are_not_taken_for_the_published_ones(scans):
    (scans / "resources/downloads").mkdir(parents=True)
    (scans / "resources/downloads/medsam_vit_b.pth").write_bytes(b"nine byte")
    changes = {"segmenter": {"model": "medsam", "checkpoint": "auto"}}
    words = refused(scans, *overlay(scans, changes))
    assert "resources/downloads/medsam_vit_b.pth has 9 bytes instead of 375049145" in words


@pytest.mark.parametrize("name", ["a$(touch x)", "a`b`", "a'b", 'a"b', "a\\b", "a\nb"])
def test_a_working_directory_that_a_shell_would_read(tmp_path, name):
    folder = tmp_path / name
    folder.mkdir()
    config = ("--configfile", ROOT / "tests/tiny.yaml")
    assert refused(folder, *config).startswith("the working directory: the path")


def test_braces_in_paths_are_braces(scans, tmp_path_factory):
    """Folders and files that look like wildcards, to the slices of their scans."""
    folder = tmp_path_factory.mktemp("work {batch}") / "{run}"
    data = folder / "{1}" / "a{b}c"
    data.mkdir(parents=True)
    for name in ("one", "two"):
        for end in (".nii.gz", "_label.nii.gz"):
            shutil.copy(scans / f"{name}{end}", data / f"{{case}}{name}{end}")
    cells = ["a{b}c/{case}one.nii.gz", "a{b}c/{case}one_label.nii.gz", "CT", "test"]
    rows = ["one\t" + "\t".join(cells), "two\t" + "\t".join(cells).replace("one", "two")]
    (folder / "{1}/sheet {split}.tsv").write_text(SHEET + "\n".join(rows))
    shutil.copy(scans / "trained.safetensors", folder)
    config = overlay(folder, {"data": {"sheet": "{1}/sheet {split}.tsv"}})
    status, output = snakemake(folder, "--dry-run", *config)
    assert status == 0, output[-3000:]
    made = "results/mine/slices/test-0.npz"
    status, output = snakemake(folder, *config, "--", made)
    assert status == 0, output[-3000:]
    slices, skips = load_slices(folder / made)
    assert [one.case for one in slices] == ["one", "two"]
    assert skips == []
    # they are watched, though they are no input of the rule
    assert "Nothing to be done" in snakemake(folder, "--dry-run", *config, "--", made)[1]
    image = data / "{case}one.nii.gz"
    os.utime(image, (1, 1))
    assert "Slices of batch" in snakemake(folder, "--dry-run", *config, "--", made)[1]


def test_another_copy_of_the_library_is_refused(tmp_path):
    copy = tmp_path / "elsewhere"
    shutil.copytree(ROOT / "scripts" / "xaiclip", copy / "xaiclip")
    folder = tmp_path / "work"
    folder.mkdir()
    config = ("--configfile", ROOT / "tests/tiny.yaml")
    words = refused(folder, *config, path=str(copy))
    assert words.startswith(f"the library would be imported from {copy}/xaiclip instead of {ROOT}")
    # the own one, as the Makefile's commands give it
    assert snakemake(folder, "--dry-run", *config, path=str(ROOT / "scripts"))[0] == 0
    # a job that is started in another way refuses it, too
    job = "import types; from _job import job\n"
    job += "snakemake = types.SimpleNamespace(threads=1, log=[], params=None)\n"
    job += f"snakemake.scriptdir = {str(copy)!r}\n"
    job += "with job(snakemake): print('ran')"
    done = subprocess.run(
        [sys.executable, "-c", job], capture_output=True, text=True, cwd=ROOT / "scripts"
    )
    assert done.returncode == 1
    assert "PYTHONPATH" in done.stderr
    assert "ran" not in done.stdout
