"""Every path of a study, once: below the folder it was started in, wildcards in braces.

Rules take them as they are; `filled` and `glob_of` serve those who look for files.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from xaiclip.privacy import PRIVATE, STUDY

#: The study's folder.
FOLDER = "results/{run}"

# What comes in: volumes that the workflow makes itself, and where the user's lie.
RAW = f"{FOLDER}/raw"
PHANTOMS = f"{RAW}/{{batch}}"
PHANTOM = f"{PHANTOMS}/{{case}}.nii.gz"
PHANTOM_LABEL = f"{PHANTOMS}/{{case}}_labels.nii.gz"
IMAGE = f"{RAW}/{{case}}.nii.gz"
LABEL = f"{RAW}/{{case}}_labels.nii.gz"
PROBLEM = f"{RAW}/{{case}}_problem.txt"
SAMPLES = f"{RAW}/samples.tsv"
FILES = f"{FOLDER}/{PRIVATE}/{{batch}}.json"
CHECKSUMS = f"{FOLDER}/slices/{{batch}}.json"

# From slices to masks.
FOUND = f"{FOLDER}/found/{{batch}}.json"
SLICES = f"{FOLDER}/slices/{{batch}}.npz"
PREPROCESSED = f"{FOLDER}/preprocessed/{{batch}}.npz"
LOCALIZER = f"{FOLDER}/localizer/{{variant}}/localizer.safetensors"
TRAINING = f"{FOLDER}/localizer/{{variant}}/training.csv"
LOCALIZATION = f"{FOLDER}/localization/{{variant}}/{{batch}}.npz"
ROI = f"{FOLDER}/roi/{{batch}}.npz"
SEGMENTATION = f"{FOLDER}/segmentation/{{batch}}.npz"
COST = f"{FOLDER}/cost.json"

# Explanations.
SCORES = f"{FOLDER}/scores/{{method}}/{{guidance}}/{{batch}}.npz"
SCORES_TABLE = f"{FOLDER}/scores/{{method}}/{{guidance}}/{{batch}}.parquet"
ATTRIBUTIONS = f"{FOLDER}/attributions/{{method}}/{{guidance}}/{{batch}}.npz"
MAPS = f"{FOLDER}/maps/{{case}}"
MAP = f"{MAPS}/{{organ}}_{{method}}_{{guidance}}.nii.gz"
VARIANTS = f"{MAPS}/variants"
VARIANT = f"{VARIANTS}/{{organ}}_{{method}}_{{guidance}}_{{rest}}.nii.gz"
MAP_SKIPS = f"{FOLDER}/maps/.skips/{{case}}.json"

# Metrics: of a batch, then of all.
PARTS = f"{FOLDER}/metrics/parts"
LOCALIZER_ROWS = f"{PARTS}/localizer/{{variant}}_{{batch}}.parquet"
LOCALIZER_POOLED = f"{PARTS}/localizer/{{variant}}_{{batch}}.npz"
SEGMENTER_ROWS = f"{PARTS}/segmenter/{{batch}}.parquet"
EXPLANATIONS_ROWS = f"{PARTS}/explanations/{{method}}_{{guidance}}_{{batch}}.parquet"
METRICS = f"{FOLDER}/metrics/{{name}}.parquet"

# What a paper takes over.
SKIPPED = f"{FOLDER}/skipped.tsv"
WARNINGS = f"{FOLDER}/warnings.tsv"
TABLE = f"{FOLDER}/tables/{{name}}.{{kind}}"
FIGURE = f"{FOLDER}/figures/{{figure}}.png"
PROVENANCE = f"{FOLDER}/provenance.json"
OWN = f"{FOLDER}/{PRIVATE}/{STUDY}"

#: Snakemake dates a folder by this file in it.
_STAMP = ".snakemake_timestamp"
#: What hangs on names that a configuration may drop: `stale_files` looks for it.
DROPPED = (
    *(PHANTOM, PHANTOM_LABEL, f"{PHANTOMS}/{_STAMP}", IMAGE, LABEL, PROBLEM),
    *(FOUND, SLICES, CHECKSUMS, FILES),
    *(PREPROCESSED, LOCALIZER, TRAINING, LOCALIZATION, ROI, SEGMENTATION),
    *(SCORES, SCORES_TABLE, ATTRIBUTIONS, MAP_SKIPS, MAP, VARIANT, f"{VARIANTS}/{_STAMP}"),
    *(LOCALIZER_ROWS, LOCALIZER_POOLED, SEGMENTER_ROWS, EXPLANATIONS_ROWS, TABLE, FIGURE),
)


def filled(path: str, **values: str) -> str:
    """The path with some of its wildcards replaced; the others stay.

    Raises:
        KeyError: it has no such wildcard.
    """
    for name, value in values.items():
        if f"{{{name}}}" not in path:
            raise KeyError(f"'{path}' has no wildcard '{name}'")
        path = path.replace(f"{{{name}}}", value)
    return path


def source(text: str) -> str:
    """A path as tables and figures name it: ``"scores/lime/full"`` is `SCORES` of a method and a
    guidance. Wildcards for which there is no value stay.

    Raises:
        KeyError: there is no such path, or it has fewer wildcards.
    """
    name, *values = text.split("/")
    known = dict(named())
    if name.upper() not in known:
        raise KeyError(f"no path is called '{name}'")
    path = known[name.upper()]
    wildcards = [one for one in re.findall(r"\{(\w+)\}", path) if one != "run"]
    if len(values) > len(wildcards):
        raise KeyError(f"'{path}' has fewer wildcards than '{text}' fills")
    return filled(path, **dict(zip(wildcards, values, strict=False)))


def below(path: str) -> str:
    """The path from the study's folder on."""
    return path.removeprefix(f"{FOLDER}/")


def glob_of(path: str) -> str:
    """A glob, from the study's folder on, for all values of the wildcards that are left."""
    return re.sub(r"\{\w+\}", "*", below(path))


def named() -> Iterator[tuple[str, str]]:
    """Every path of this module with its name."""
    for name, value in globals().items():
        if name.isupper() and isinstance(value, str) and value.startswith(FOLDER):
            yield name, value
