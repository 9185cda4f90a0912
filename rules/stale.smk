# Results that the configuration no longer asks for: `snakemake stale` lists them, `snakemake prune` removes them.
from xaiclip.workflow.stale import stale_files

CONFIGURED = {
    "run": [RUN],
    "case": sorted(CASES),
    "batch": batches("train") + batches("test"),
    "variant": VARIANTS,
    "method": METHODS,
    "guidance": GUIDANCES,
    "name": METRICS,
    "organ": [file_stem(organ) for organ in ORGANS],
    "figure": FIGURES,
}
# What rules write, those that are switched off too; a file of another name is the user's, logs stay.
WRITTEN = [
    "raw/{case}.nii.gz",
    "raw/{case}_labels.nii.gz",
    "raw/{case}_problem.txt",
    "slices/{batch}.npz",
    "slices/{batch}.json",
    "private/{batch}.json",
    "preprocessed/{batch}.npz",
    "localizer/{variant}/localizer.safetensors",
    "localizer/{variant}/training.csv",
    "localization/{variant}/{batch}.npz",
    "roi/{batch}.npz",
    "segmentation/{batch}.npz",
    "scores/{method}/{guidance}/{batch}.npz",
    "scores/{method}/{guidance}/{batch}.parquet",
    "attributions/{method}/{guidance}/{batch}.npz",
    "metrics/parts/localizer/{variant}_{batch}.parquet",
    "metrics/parts/localizer/{variant}_{batch}.npz",
    "metrics/parts/segmenter/{batch}.parquet",
    "metrics/parts/explanations/{method}_{guidance}_{batch}.parquet",
    "maps/.skips/{case}.json",
    "maps/{case}/{organ}_{method}_{guidance}.nii.gz",
    "maps/{case}/variants/{organ}_{method}_{guidance}_{rest}.nii.gz",
    "maps/{case}/variants/.snakemake_timestamp",
    "figures/{figure}.png",
]


rule stale:
    log:
        f"results/{RUN}/logs/stale.log",
    localrule: True
    conda:
        "../envs/data.yaml"
    resources:
        mem_mb=1000,
        runtime=30,
    params:
        files=lambda w: stale_files(f"results/{RUN}", WRITTEN, CONFIGURED),
        prune=False,
    message:
        "Results of cases, methods and figures that the configuration no longer names"
    script:
        "../scripts/stale.py"


rule prune:
    log:
        f"results/{RUN}/logs/prune.log",
    localrule: True
    conda:
        "../envs/data.yaml"
    resources:
        mem_mb=1000,
        runtime=30,
    params:
        files=lambda w: stale_files(f"results/{RUN}", WRITTEN, CONFIGURED),
        prune=True,
    message:
        "Remove results of cases, methods and figures that the configuration no longer names"
    script:
        "../scripts/stale.py"
