# Inputs and params of the stages, as functions of a job's wildcards.
from xaiclip.data.footprint import reading_mb
from xaiclip.files import check_date


def files_of(case):
    """Image, label, and what went wrong with them."""
    return [str(path) for path in (case.image, case.label, case.problem) if path]


def signatures(wildcards):
    """What tells that a file of a batch's cases was replaced, for params."""
    if SOURCE != "sheet":  # the workflow makes them
        return {}
    return {
        case.name: signature(case.image, case.label)
        for case in MEMBERS.get(wildcards.batch, [])
    }


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


def files_from_outside():
    """Input files from outside, weights among them, and what published cases are prepared from."""
    yield from FOREIGN["clip"] + FOREIGN["sam"]
    if TRAINED and not shipped("localizer"):
        yield TRAINED
    if SOURCE in DATASETS:
        if Path(source_path()).is_dir():
            yield from (file for name in CASES for file in sources_of(name))
        else:
            yield source_path()


try:
    for file in files_from_outside():
        check_date(file)
except ConfigError as error:
    raise WorkflowError(str(error)) from None


def made_files(wildcards):
    """Volumes of a batch that the workflow makes, as input files.

    The user's own scans stand among the parameters instead, with their sizes and times: Snakemake
    compares only the time of a folder, and removes the results of a scan dated in the future.
    """
    if SOURCE == "phantom":
        return filled(paths.PHANTOMS, run=RUN, batch=wildcards.batch)
    if SOURCE == "sheet":
        return []
    return [
        file for case in MEMBERS.get(wildcards.batch, []) for file in files_of(case)
    ]


def found_slices(wildcards):
    """What the localizer chose of a batch's scans, as an input file, if it is asked."""
    cases = MEMBERS.get(wildcards.batch, [])
    if FINDS and any(case.split == "test" and not case.label for case in cases):
        return filled(paths.FOUND, run=wildcards.run, batch=wildcards.batch)
    return []


def slices_mb(wildcards, attempt):
    """Memory of reading a batch's largest scan; a header may not be there yet, or not tell."""
    images = [case.image for case in MEMBERS.get(wildcards.batch, [])]
    policy = config["data"]["slices"][wildcards.batch.split("-")[0]]
    return attempt * max(
        4000 if SOURCE in DATASETS else 2000, reading_mb(images, policy)
    )


def case_facts(wildcards):
    """A batch's cases for stages that read no scan: what may be published."""
    return [
        {"name": case.name, "modality": case.modality}
        for case in MEMBERS.get(wildcards.batch, [])
    ]


def of_case(wildcards, path):
    """A file of the batch that a test case is in."""
    return filled(path, run=wildcards.run, batch=BATCHES["test"][wildcards.case])


def trained_of(run, variant="text"):
    """The localizer's weights: those that the study trains, or another one's."""
    if TRAINS:
        return filled(paths.LOCALIZER, run=run, variant=variant)
    return ancient(TRAINED)


# what tells that weights of another run, or the shipped ones, were replaced
TRAINED_STATE = None if TRAINS else shipped("localizer") or signature(TRAINED)
