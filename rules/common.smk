# The study as the configuration tells it: cases, batches, and helpers that every stage uses.
import hashlib
import os
import re
import sys
from dataclasses import asdict
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path

from snakemake.exceptions import WorkflowError

sys.path.append(str(Path(workflow.basedir) / "scripts"))

from xaiclip import provenance
from xaiclip.catalogue import DATASETS, WEIGHTS, Entry, backbone_note
from xaiclip.catalogue import entries as published_entries
from xaiclip.config import complete, label_table
from xaiclip.data.sheet import Case, read_sheet
from xaiclip.errors import ConfigError, StorageError
from xaiclip.files import check_writable
from xaiclip.organs import organs_of
from xaiclip.seeds import derived


def made_cases():
    """The cases that the workflow makes: phantoms, or those of a published data set."""
    if SOURCE == "phantom":
        # a phantom's name holds its split, modality and number
        entries = [
            Entry(f"{split}_{modality.lower()}_{number:03d}", modality, split)
            for split in ("train", "test")
            for modality, count in config["data"]["phantom"][split].items()
            for number in range(count)
        ]
    else:
        entries = published_entries(SOURCE, Path(DOWNLOADS, SOURCE))
    raw = f"results/{RUN}/raw"
    published = DATASETS.get(SOURCE)
    return [
        Case(
            name=entry.name,
            image=Path(f"{raw}/{entry.name}.nii.gz"),
            label=(
                Path(f"{raw}/{entry.name}_labels.nii.gz")
                if published is None or published.labelled
                else None
            ),
            modality=entry.modality,
            split=entry.split,
            problem=Path(f"{raw}/{entry.name}_problem.txt") if published else None,
        )
        for entry in entries
    ]


def chosen_cases(cases):
    """The cases that 'data.cases' picks."""
    patterns = config["data"]["cases"]
    if patterns is None:
        return cases
    for pattern in patterns:
        if not any(fnmatchcase(case.name, pattern) for case in cases):
            raise ConfigError(
                f"config key 'data.cases': no case is called '{pattern}'; names are "
                f"{cases[0].name}, {cases[-1].name} and the like."
            )
    return [
        case
        for case in cases
        if any(fnmatchcase(case.name, pattern) for pattern in patterns)
    ]


def source_path():
    """Where a published data set lies: its archive, or its folder."""
    archive = DATASETS[SOURCE].archive
    return f"{DOWNLOADS}/{archive.name if archive else SOURCE}"


def sources_of(name):
    """Input files of a published case."""
    source = source_path()
    if not Path(source).is_dir():
        return [source]
    return sorted(str(file) for file in Path(source, name).iterdir() if file.is_file())


def batch_names(split):
    """Batch of each case of a split.

    A case's batch hangs on its own name and on the number of batches, a power of two: a new case
    touches one batch, until the number doubles.
    """
    members = [case for case in CASES.values() if case.split == split]
    count = 1
    while count * config["cases_per_job"] < len(members):
        count *= 2
    return {
        case.name: (
            f"{split}-{case.batch}"
            if case.batch
            else f"{split}-{int(hashlib.sha256(case.name.encode()).hexdigest(), 16) % count}"
        )
        for case in members
    }


def factory_code(factory):
    """Hash of the user's own segmenter: its file, and files beside it that it imports."""
    if not factory:
        return None
    file = Path(factory.rpartition(":")[0])
    if not file.exists():
        raise ConfigError(f"config key 'segmenter.factory': there is no file '{file}'.")
    try:
        return provenance.code_hash(file.name, root=file.parent)
    except SyntaxError as error:
        raise ConfigError(f"config key 'segmenter.factory': {error}.") from None


try:
    if not Path(".snakemake").exists():
        check_writable(".snakemake")
    # in place: rules read `config`, and a rule's params must not hang on what a default was
    completed = complete(config)
    config.clear()
    config.update(completed)
    if config[
        "umask"
    ]:  # of all files and folders; jobs inherit it, on a cluster by reading this
        os.umask(int(config["umask"], 8))
    RUN = config["run"]
    SOURCE = config["data"]["source"]
    DOWNLOADS = config["downloads"]
    CASES = {
        case.name: case
        for case in chosen_cases(
            read_sheet(config["data"]["sheet"]) if SOURCE == "sheet" else made_cases()
        )
    }
    BATCHES = {split: batch_names(split) for split in ("train", "test")}
    if not BATCHES["test"]:
        raise ConfigError("no case has the split 'test': there is nothing to explain.")
    if not BATCHES["train"] and not config["localizer"]["weights"]:
        raise ConfigError(
            "no case has the split 'train': name a trained localizer in 'localizer.weights'."
        )
    # what is fetched from elsewhere, and what only the user can get (path: words)
    WANTED, BY_HAND = [], {}
    if SOURCE in DATASETS:
        if DATASETS[SOURCE].archive:
            WANTED.append(DATASETS[SOURCE].archive)
        elif not Path(DOWNLOADS, SOURCE).is_dir():
            BY_HAND[source_path()] = (
                f"{DATASETS[SOURCE].by_hand}, and put its case folders into {source_path()}."
            )
    if config["segmenter"]["checkpoint"] == "auto":
        WANTED.append(WEIGHTS[config["segmenter"]["model"]])
        config["segmenter"]["checkpoint"] = f"{DOWNLOADS}/{WANTED[-1].name}"
    elif (path := config["segmenter"]["checkpoint"]) and not Path(path).exists():
        raise ConfigError(
            f"config key 'segmenter.checkpoint': there is no file '{path}'."
        )
    FACTORY = factory_code(config["segmenter"]["factory"])
    if (path := config["localizer"]["weights"]) and not Path(path).exists():
        words = f"config key 'localizer.weights': there is no file '{path}'"
        trained = re.fullmatch(r"results/([^/]+)/localizer/.+", path)
        if trained is None or trained[1] == RUN:
            raise ConfigError(f"{words}.")
        BY_HAND[path] = (
            f"{words}: run the study '{trained[1]}', which trains it, first."
        )
except (ConfigError, StorageError) as error:
    raise WorkflowError(str(error)) from None

ORGANS = organs_of(config["classes"])
METHODS = config["explain"]["methods"]
GUIDANCES = config["explain"]["guidances"]
TRAINS = not config["localizer"]["weights"]
VARIANTS = (
    ["text", "no_text"] if TRAINS and config["localizer"]["ablation"] else ["text"]
)
BACKBONE = {key: config["localizer"][key] for key in ("backbone", "pretrained")}


def existing_files(*paths):
    """The files among ``paths``, and those in the folders among them; names are left out."""
    return sorted(
        str(file)
        for path in paths
        if path and Path(path).exists()
        for file in ([Path(path)] if Path(path).is_file() else Path(path).rglob("*"))
        if file.is_file()
    )


# Weights from outside the workflow, as input files: others mean other results.
FOREIGN = {
    "clip": existing_files(*BACKBONE.values()),
    # a checkpoint that is yet to be fetched is there when its rule has run
    "sam": existing_files(config["segmenter"]["checkpoint"])
    or [
        f"{DOWNLOADS}/{remote.name}" for remote in WANTED if remote in WEIGHTS.values()
    ],
}

# What preparing a published case writes.
PREPARED = {
    "image": "results/{run}/raw/{case}.nii.gz",
    "problem": "results/{run}/raw/{case}_problem.txt",
}
if SOURCE in DATASETS and DATASETS[SOURCE].labelled:
    PREPARED["label"] = "results/{run}/raw/{case}_labels.nii.gz"
METRICS = ["localizer", "segmenter", "explanations"]


# The cases of each batch, by name. Rules ask once per job: what follows must not go through the
# whole study, or hash a file, each time.
MEMBERS = {}
for case in sorted(CASES.values(), key=lambda case: case.name):
    MEMBERS.setdefault(BATCHES[case.split][case.name], []).append(case)


def batches(split):
    """Names of the batches of a split, sorted."""
    return sorted(set(BATCHES[split].values()))


def files_of(case):
    """Image, label, and what went wrong with them."""
    return [str(path) for path in (case.image, case.label, case.problem) if path]


def raw_files(wildcards):
    """Files of a batch's cases."""
    return [
        file for case in MEMBERS.get(wildcards.batch, []) for file in files_of(case)
    ]


def row_of(case):
    """A case as plain builtins, for params."""
    return {
        "name": case.name,
        "image": str(case.image),
        "label": str(case.label) if case.label else None,
        "modality": case.modality,
        "split": case.split,
        "problem": str(case.problem) if case.problem else None,
    }


def case_rows(wildcards):
    """A batch's cases as plain builtins, for params."""
    return [row_of(case) for case in MEMBERS.get(wildcards.batch, [])]


@cache
def code(script, *also):
    """Hash of a script and of all project code behind it: its change reruns the rule."""
    return provenance.code_hash(script, also)


@cache
def seed_of(*parts):
    """A seed of its own for each named thing, from the study's seed."""
    return derived(config["seed"], *parts)


@cache
def shipped(model):
    """Checksum of a shipped model, where the study uses it.

    A checksum and not an input file: the same weights in another clone are the same weights.
    """
    section, key = {"clip": ("localizer", "backbone"), "sam": ("segmenter", "model")}[
        model
    ]
    own = model == "sam" and config["segmenter"]["factory"]
    if config[section][key] != "compact" or own:
        return None
    path = Path(workflow.basedir) / "resources" / "compact" / f"{model}.safetensors"
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else "missing"


def on_device(*models, **settings):
    """Settings of a job that runs models."""
    return {
        **settings,
        "device": config["device"],
        "precision": config["precision"],
        "shipped": {model: shipped(model) for model in models},
        "factory": FACTORY if "sam" in models else None,
    }


def method_settings(wildcards):
    """What a method's two stages both need."""
    return {
        "method": wildcards.method,
        "guidance": wildcards.guidance,
        "settings": config["methods"][wildcards.method],
        "values": config["explain"]["values"],
    }


def configured(source):
    """Whether the study makes this file: its method and guidance are switched on."""
    stage, *rest = source.split("/")
    if stage in ("scores", "attributions"):
        return rest[0] in METHODS and rest[1] in GUIDANCES
    if stage == "localizer":
        return TRAINS
    return stage != "metrics" or bool(METHODS and GUIDANCES)


onstart:
    try:
        check_writable(f"results/{RUN}")
    except StorageError as error:
        raise WorkflowError(str(error)) from None


wildcard_constraints:
    run=config["run"].replace(".", r"\."),
    case=r"[A-Za-z0-9_-][A-Za-z0-9._-]*",
    batch=r"(train|test)-[A-Za-z0-9._-]+",
    variant="text|no_text",
    method="|".join(sorted(config["methods"])),
    guidance="full|roi|roi_reference|roi_body",
