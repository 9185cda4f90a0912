# Raw volumes → slices → preprocessed slices.
from xaiclip.data.footprint import reading_mb
from xaiclip.files import check_date


def files_from_outside():
    """Input files that no rule makes: weights, and what published cases are prepared from."""
    yield from FOREIGN["clip"] + FOREIGN["sam"]
    yield from (
        [config["localizer"]["weights"]] if config["localizer"]["weights"] else []
    )
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
    return [] if SOURCE == "sheet" else raw_files(wildcards)


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


rule phantom:
    output:
        image="results/{run}/raw/{case}.nii.gz",
        label="results/{run}/raw/{case}_labels.nii.gz",
    log:
        "results/{run}/logs/phantom/{case}.log",
    wildcard_constraints:
        case=r"(train|test)_(ct|mr)_\d+",
    conda:
        "../envs/data.yaml"
    resources:
        mem_mb=1000,
        runtime=10,
    params:
        cfg=lambda w: {
            "seed": seed_of("phantom", w.case),
            "modality": CASES[w.case].modality,
            "settings": config["data"]["phantom"]["settings"],
        },
        code=code("phantom.py"),
    message:
        "Phantom {wildcards.case}"
    script:
        "../scripts/phantom.py"


rule slices:
    input:
        made_files,
    output:
        slices="results/{run}/slices/{batch}.npz",
        checksums="results/{run}/slices/{batch}.json",
        files="results/{run}/private/{batch}.json",
    log:
        "results/{run}/logs/slices/{batch}.log",
    conda:
        "../envs/data.yaml"
    resources:
        mem_mb=lambda wildcards, attempt: slices_mb(wildcards, attempt),
        runtime=lambda wildcards, attempt: 60 * attempt,
    params:
        cfg=lambda w: {
            "cases": case_rows(w),
            "classes": config["classes"],
            "labels": label_table(config),
            "window": config["data"]["window"],
            "percentiles": config["data"]["percentiles"],
            "orientation": config["data"]["orientation"],
            "implausible": config["data"]["implausible"],
            "slices": config["data"]["slices"][w.batch.split("-")[0]],
        },
        files=signatures,
        code=code("slices.py"),
    message:
        "Slices of batch {wildcards.batch}"
    script:
        "../scripts/slices.py"


rule preprocess:
    input:
        "results/{run}/slices/{batch}.npz",
    output:
        "results/{run}/preprocessed/{batch}.npz",
    log:
        "results/{run}/logs/preprocess/{batch}.log",
    conda:
        "../envs/data.yaml"
    threads: 2
    resources:
        mem_mb=lambda wildcards, attempt: 1000 * attempt,
        runtime=30,
    params:
        cfg=config["preprocess"],
        code=code("preprocess.py"),
    message:
        "Preprocess batch {wildcards.batch} (equations 1 to 8)"
    script:
        "../scripts/preprocess.py"
