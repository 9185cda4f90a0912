# The study as the configuration tells it: cases, batches, and helpers that every stage uses.
import hashlib
import os
import re
from dataclasses import asdict, replace
from fnmatch import fnmatchcase
from functools import cache

from snakemake.io import contains_wildcard

from xaiclip import plugins
from xaiclip.workflow import paths, provenance
from xaiclip.workflow.paths import filled
from xaiclip.published.catalogue import DATASETS, WEIGHTS, Entry, backbone_note
from xaiclip.published.catalogue import entries as published_entries
from xaiclip.published.checked import check_published
from xaiclip.config import complete
from xaiclip.config.constraints import label_table
from xaiclip.config.methods import methods
from xaiclip.data.changes import signature
from xaiclip.data.sheet import Case, read_sheet
from xaiclip.errors import StorageError
from xaiclip.files import check_writable, write_text
from xaiclip.organs import file_stem, organs_of
from xaiclip.report import catalogue
from xaiclip.seeds import derived
from xaiclip.workflow.lease import accelerated


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
    published = DATASETS.get(SOURCE)
    return [
        Case(
            name=entry.name,
            image=Path(filled(paths.IMAGE, run=RUN, case=entry.name)),
            label=(
                Path(filled(paths.LABEL, run=RUN, case=entry.name))
                if published is None or published.labelled
                else None
            ),
            modality=entry.modality,
            split=entry.split,
            problem=(
                Path(filled(paths.PROBLEM, run=RUN, case=entry.name))
                if published
                else None
            ),
        )
        for entry in entries
    ]


def drawn_in_batch(case):
    """A phantom where it lies: one job draws a batch, into a folder of its own."""
    batch = BATCHES[case.split][case.name]
    return replace(
        case,
        image=Path(filled(paths.PHANTOM, run=RUN, batch=batch, case=case.name)),
        label=Path(filled(paths.PHANTOM_LABEL, run=RUN, batch=batch, case=case.name)),
    )


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


def published_files():
    """What is published elsewhere and used here: weights, an archive of data."""
    if SOURCE in DATASETS and DATASETS[SOURCE].archive:
        yield DATASETS[SOURCE].archive
    if config["segmenter"]["checkpoint"] == "auto":
        yield WEIGHTS[config["segmenter"]["model"]]


def by_hand():
    """What only the user can get (path: words)."""
    if SOURCE in DATASETS and not DATASETS[SOURCE].archive:
        if not Path(DOWNLOADS, SOURCE).is_dir():
            yield source_path(), (
                f"{DATASETS[SOURCE].by_hand}, and put its case folders into {source_path()}."
            )
    path = config["localizer"]["weights"]
    if path and path != "compact" and not Path(path).exists():
        trained = re.fullmatch(
            filled(paths.LOCALIZER, run="([^/]+)", variant="[^/]+"), path
        )
        if trained and trained[1] != RUN:
            yield path, (
                f"config key 'localizer.weights': there is no file '{path}': run the study "
                f"'{trained[1]}', which trains it, first."
            )


def factory_code(factory):
    """Hash of the user's own segmenter: its file, and files beside it that it imports."""
    if not factory:
        return None
    file = Path(factory.rpartition(":")[0])
    try:
        return provenance.code_hash(file.name, root=file.parent)
    except (SyntaxError, UnicodeDecodeError) as error:
        raise ConfigError(f"config key 'segmenter.factory': {error}.") from None


try:
    if not Path(".snakemake").exists():
        check_writable(".snakemake")
    check_command()
    # where the project is another workflow's module, all of its config is the user's
    config = complete(
        config,
        given=(
            config
            if workflow.modifier.skip_configfile
            else workflow.config_settings.overwrite_config
        ),
    )
    if config["umask"]:
        # of all files and folders: jobs inherit it, or read this
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
    if SOURCE == "phantom":
        CASES = {name: drawn_in_batch(case) for name, case in CASES.items()}
    if not BATCHES["test"]:
        raise ConfigError("no case has the split 'test': there is nothing to explain.")
    if not BATCHES["train"] and not config["localizer"]["weights"]:
        raise ConfigError(
            "no case has the split 'train': name a trained localizer in 'localizer.weights'."
        )
    WANTED, BY_HAND = list(published_files()), dict(by_hand())
    check_models()
    for remote in WANTED:
        if (file := Path(DOWNLOADS, remote.name)).exists():
            check_published(file, remote, Path(".snakemake/verified"))
    FACTORY = factory_code(config["segmenter"]["factory"]) or plugins.stated(
        plugins.MODELS, config["segmenter"]["model"]
    )
    if config["segmenter"]["checkpoint"] == "auto":
        remote = WEIGHTS[config["segmenter"]["model"]]
        config["segmenter"]["checkpoint"] = f"{DOWNLOADS}/{remote.name}"
        # each job that reads the file compares it
        config["segmenter"]["checksum"] = (
            config["segmenter"]["checksum"] or remote.checksum
        )
except (ConfigError, StorageError) as error:
    raise WorkflowError(str(error)) from None

ORGANS = organs_of(config["classes"])
METHODS = config["explain"]["methods"]
METHOD_SOURCES = methods()
GUIDANCES = config["explain"]["guidances"]
# the maps of each case that the tables show
MAPS = expand(
    paths.MAP,
    organ=[file_stem(organ) for organ in ORGANS],
    method=METHODS,
    guidance=GUIDANCES,
    allow_missing=True,
)
TRAINS = not config["localizer"]["weights"]
VARIANTS = (
    ["text", "no_text"] if TRAINS and config["localizer"]["ablation"] else ["text"]
)
# whether the localizer is asked which slices are explained
FINDS = config["data"]["slices"]["test"]["policy"] == "found" and any(
    case.split == "test" and not case.label for case in CASES.values()
)
# whether a case may have several slices
SEVERAL = config["data"]["slices"]["test"]["policy"] == "all" or (
    config["data"]["slices"]["test"]["count"] > 1
)
# The file of a trained localizer, where the study trains none.
TRAINED = (
    str(ROOT / "resources" / "compact" / "localizer.safetensors")
    if config["localizer"]["weights"] == "compact"
    else config["localizer"]["weights"]
)
BACKBONE = {key: config["localizer"][key] for key in ("backbone", "pretrained")}
# told in a job's message through its params: a message is a pattern, in which braces are read
BACKBONE_NOTE = backbone_note(**BACKBONE)


def existing_files(*paths):
    """The files among ``paths``, and those in the folders among them; names are left out."""
    return sorted(
        str(file)
        for path in paths
        if path and Path(path).exists()
        for file in ([Path(path)] if Path(path).is_file() else Path(path).rglob("*"))
        if file.is_file()
    )


def given(paths):
    """Files from outside the workflow, as input of a rule.

    Their times do not count, since a file may be replaced by an older one, or be dated in the
    future: the rule's params hold their signature. A path like {1}, which Snakemake would take
    for a wildcard, stands in the params alone.
    """
    return [ancient(path) for path in paths if not contains_wildcard(path)]


# Weights from outside the workflow: others mean other results.
OWN_WEIGHTS = {
    "clip": existing_files(*BACKBONE.values()),
    "sam": existing_files(config["segmenter"]["checkpoint"]),
}
FOREIGN = {
    "clip": given(OWN_WEIGHTS["clip"]),
    # a checkpoint that is yet to be fetched is there when its rule has run
    "sam": given(OWN_WEIGHTS["sam"])
    or [
        f"{DOWNLOADS}/{remote.name}" for remote in WANTED if remote in WEIGHTS.values()
    ],
}

# What preparing a published case writes.
PREPARED = {
    "image": paths.IMAGE,
    "problem": paths.PROBLEM,
}
if SOURCE in DATASETS and DATASETS[SOURCE].labelled:
    PREPARED["label"] = paths.LABEL
METRICS = ["localizer", "segmenter", "explanations"]


# The cases of each batch, by name. Rules ask once per job: what follows must not go through the
# whole study, or hash a file, each time.
MEMBERS = {}
for case in sorted(CASES.values(), key=lambda case: case.name):
    MEMBERS.setdefault(BATCHES[case.split][case.name], []).append(case)


def batches(split):
    """Names of the batches of a split, sorted."""
    return sorted(set(BATCHES[split].values()))


@cache
def code(script, *also):
    """Hash of a script and of all project code behind it: its change reruns the rule."""
    return provenance.code_hash(script, also)


@cache
def stage_code(script, *names):
    """Hash of a script that runs methods, and of the part of them that it runs."""
    return provenance.stage_hash(script, {name: METHOD_SOURCES[name] for name in names})


@cache
def seed_of(*parts):
    """A seed of its own for each named thing, from the study's seed."""
    return derived(config["seed"], *parts)


@cache
def shipped(model):
    """Checksum of a shipped model, where the study uses it.

    A checksum and not an input file: the same weights in another clone are the same weights.
    """
    section, key = {
        "clip": ("localizer", "backbone"),
        "sam": ("segmenter", "model"),
        "localizer": ("localizer", "weights"),
    }[model]
    own = model == "sam" and config["segmenter"]["factory"]
    if config[section][key] != "compact" or own:
        return None
    path = ROOT / "resources" / "compact" / f"{model}.safetensors"
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else "missing"


@cache
def weights(model):
    """What tells that a model's own weights were replaced."""
    # of published ones the checksum stands among the settings: they may be yet to be fetched
    published = model == "sam" and any(one in WANTED for one in WEIGHTS.values())
    return None if published else signature(*OWN_WEIGHTS[model])


def on_device(*models, **settings):
    """Settings of a job that runs models."""
    return {
        **settings,
        "device": config["device"],
        "precision": config["precision"],
        "shipped": {model: shipped(model) for model in models},
        "weights": {model: weights(model) for model in models},
        "factory": FACTORY if "sam" in models else None,
    }


@cache
def on_these_cores():
    """Whether models compute on the cores of this machine, and not on a GPU or another machine."""
    if workflow.remote_exec or not workflow.local_exec:
        return False
    return config["device"] == "cpu" or (
        config["device"] == "auto" and not accelerated()
    )


def one_gpu(wildcards):
    """The GPU of a job that runs models, if there is one to have."""
    return 0 if on_these_cores() else 1


def model_threads(wildcards):
    """Threads of a job that runs models: where they compute on these cores, half of them.

    Two jobs side by side make more of the cores than one, which starts on a single core, and whose
    operations are too short to be split well.
    """
    cores = workflow.global_resources["_cores"].value
    return max(1, min(8, cores // 2)) if on_these_cores() and cores else 8


@cache
def settings_of(method):
    """A method's section: what its plans hang on, and what its maps hang on besides."""
    return METHOD_SOURCES[method].split(config["methods"][method])


def plan_settings(wildcards):
    """What the forwards of a method hang on."""
    source = METHOD_SOURCES[wildcards.method]
    own = config["methods"][wildcards.method]
    return {
        "method": wildcards.method,
        "guidance": wildcards.guidance,
        "settings": settings_of(wildcards.method)[0],
        "values": source.asked(own, config["explain"]["values"]),
    }


def is_on(made):
    """Whether the methods of a table or a figure are on, with the settings that it needs."""
    return (SEVERAL or not made.several) and all(
        name in METHODS and needed.items() <= config["methods"][name].items()
        for name, needed in made.methods.items()
    )


def configured(source):
    """Whether the study makes what a figure reads: its method and guidance, or its table, are on."""
    stage, *rest = source.split("/")
    if stage in ("scores", "attributions"):
        return rest[0] in METHODS and rest[1] in GUIDANCES
    if stage == "table":
        return rest[0] in TABLES
    return TRAINS or stage != "training"


def read_by(source, chosen):
    """The files that a table or a figure reads, of some batches; the study's name stays open."""
    path = paths.source(source)
    every = {"batch": chosen, "guidance": GUIDANCES, "variant": VARIANTS}
    values = {name: names for name, names in every.items() if f"{{{name}}}" in path}
    return expand(path, **values, allow_missing=True)


def made_with(table):
    """The tables of one job: a table, and those that are made beside it."""
    return [one for one in TABLES.values() if table.name in (one.name, one.beside)]


def caption_file(made):
    """A caption as Snakemake takes it: a file."""
    file = Path(".snakemake", "captions", f"{made.name}.rst").absolute()
    if not file.exists() or file.read_text(encoding="utf-8") != made.caption:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, made.caption)
    return str(file)


onstart:
    try:
        check_writable(filled(paths.FOLDER, run=RUN))
    except StorageError as error:
        raise WorkflowError(str(error)) from None


wildcard_constraints:
    run=config["run"].replace(".", r"\."),
    case=r"[A-Za-z0-9_-][A-Za-z0-9._-]*",
    batch=r"(train|test)-[A-Za-z0-9._-]+",
    variant="text|no_text",
    method="|".join(sorted(config["methods"])),
    guidance="full|roi|roi_reference|roi_body",
