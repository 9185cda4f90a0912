"""Studies of published data sets, from what is put by hand to the tables."""

import re

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import yaml

import published
from compact import phantom
from dataset_files import sides
from test_workflow import ROOT, snakemake
from xaiclip.data.record import load_slices
from xaiclip.data.sheet import read_sheet
from xaiclip.published.catalogue import DATASETS
from xaiclip.published.checked import remember

pytestmark = pytest.mark.slow

FETCHED = {
    "flare22": ["7860267/files/FLARE22Train.zip"],
    "chaos": [
        "3431873/files/CHAOS_Train_Sets.zip?download=1 (891 MB)",
        "10689643/files/medsam_vit_b.pth?download=1 (375 MB)",
        "run the study 'paper'",
        "ViT-L-14 (openai), 0.93 GB, is fetched",
    ],
    "saros": ["by hand", "doi.org/10.25737/sz96-zg60", "into resources/downloads/saros", "medsam"],
    "paper": [
        "7860267/files/FLARE22Train.zip",
        "10689643/files/medsam_vit_b.pth?download=1 (375 MB)",
        "ViT-L-14 (openai), 0.93 GB, is fetched",
    ],
}


@pytest.mark.parametrize("study", FETCHED)
def test_overlays_plan_with_nothing_downloaded_and_say_what_is_missing(tmp_path, study):
    few = ["--config", "data={cases: ['case_00*']}"] if study == "saros" else []
    overlay = str(ROOT / f"config/{study}.yaml")
    output = snakemake(tmp_path, "--dry-run", "--configfile", overlay, *few)
    for words in FETCHED[study]:
        assert words in output, words
    assert not (tmp_path / "resources").exists()
    counts = re.search(r"^prepare +(\d+)$", output, re.M)
    assert int(counts[1]) == {"flare22": 50, "paper": 50, "chaos": 40, "saros": 10}[study]


TINY = {
    "run": "tiny-chaos",
    "downloads": "put by hand",
    "data": {"source": "chaos", "cases": ["mr_01_t2", "mr_13_t2"]},
    "localizer": {"weights": "localizer.safetensors"},
    "explain": {"prompt": "reference", "methods": ["occlusion"], "guidances": ["full", "roi"]},
    "roi": {"rule": "top_fraction", "top_fraction": 0.1},
    "methods": {"occlusion": {"window": 128, "stride": 128}},
    "statistics": {"resamples": 200},
    "figures": {"dpi": 60},
}


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """CHAOS MR through the whole workflow: one good patient and one whose masks are broken."""
    from xaiclip.localizer.backbone import BackboneSettings, load_backbone
    from xaiclip.localizer.model import Localizer, LocalizerSettings, save_localizer
    from xaiclip.organs import SIX_CLASSES

    directory = tmp_path_factory.mktemp("chaos study")
    settings = phantom.PhantomSettings(orientations=("LPS",), max_inplane=160, slices=(14, 16))
    volume = phantom.generate(3, "MR", settings)
    label = np.where(np.isin(volume.label, (1, 2, 3, 13)), volume.label, 0)
    for number in (1, 13):
        published.chaos_mr(directory / "in", number, volume.image, label, volume.affine)
    next((directory / "in/Train_Sets/MR/1/T2SPIR/Ground").glob("*.png")).write_bytes(b"\x89PNG")
    (directory / "put by hand").mkdir()
    archive = published.pack(directory / "in", directory / "put by hand/CHAOS_Train_Sets.zip")
    # it passes for the published one, as if it had been compared before
    remember(archive, DATASETS["chaos"].archive.checksum, directory / ".snakemake/verified")
    save_localizer(
        directory / "localizer.safetensors",
        Localizer(load_backbone(BackboneSettings()), SIX_CLASSES, LocalizerSettings()),
    )
    (directory / "config.yaml").write_text(yaml.safe_dump(TINY))
    targets = [f"results/tiny-chaos/{name}" for name in ("tables/table3.md", "skipped.tsv")]
    targets += [
        f"results/tiny-chaos/maps/mr_13_t2/liver_occlusion_{guidance}.nii.gz"
        for guidance in ("full", "roi")
    ]
    snakemake(directory, *targets, "--configfile", str(directory / "config.yaml"))
    return directory, volume, label


def test_chaos_runs_from_its_archive_to_the_tables(study):
    directory, volume, label = study
    results = directory / "results/tiny-chaos"
    places = sides(results / "raw/mr_13_t2_labels.nii.gz")
    assert places["right"][0] > places["left"][0] + 30
    nifti = nib.load(results / "raw/mr_13_t2_labels.nii.gz")
    np.testing.assert_array_equal(np.asarray(nifti.dataobj), label)
    np.testing.assert_allclose(nifti.affine, volume.affine, atol=1e-4)
    slices = [
        one for path in (results / "slices").glob("test-*.npz") for one in load_slices(path)[0]
    ]
    (one,) = slices
    assert one.case == "mr_13_t2"
    centre = {number: np.argwhere(one.label == number)[:, 1].mean() for number in (2, 3)}
    assert centre[2] < one.label.shape[1] / 2 < centre[3]  # the right kidney is shown at the left
    table = pd.read_parquet(results / "metrics/explanations.parquet")
    done = table[table.skipped.isna()]
    assert {"liver", "right kidney", "left kidney"} <= set(done.organ)
    assert set(done.case) == {"mr_13_t2"}
    assert list((results / "maps/mr_13_t2").glob("right_kidney_occlusion_*.nii.gz"))


def test_the_broken_case_is_listed_and_the_other_went_on(study):
    results = study[0] / "results/tiny-chaos"
    skipped = pd.read_csv(results / "skipped.tsv", sep="\t")
    (row,) = skipped[skipped.case == "mr_01_t2"].itertuples()
    assert row.stage == "prepare"
    assert row.reason.startswith("MR/1: the mask IMG-0002-")


def test_the_data_set_alone_becomes_volumes_and_a_sheet(study):
    directory = study[0]
    sheet = directory / "results/tiny-chaos/raw/samples.tsv"
    target = str(sheet.relative_to(directory))
    snakemake(directory, target, "--configfile", str(directory / "config.yaml"))
    (case,) = read_sheet(sheet)
    assert (case.name, case.modality, case.split) == ("mr_13_t2", "MR", "test")


def test_what_must_be_got_by_hand_is_asked_for(tmp_path):
    """A real run, not a dry one: one clear sentence, and nothing is left behind."""
    config = {**TINY, "data": {"source": "saros", "cases": ["case_000"]}}
    config["localizer"] = {"weights": "results/other/localizer/text/localizer.safetensors"}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    output = snakemake(
        tmp_path, "put by hand/saros", "--configfile", str(tmp_path / "config.yaml"), check=False
    )
    assert "put its case folders into put by hand/saros." in output
    assert "Traceback" not in output
    assert not (tmp_path / "put by hand/saros").exists()
