# The compact models of resources/compact, trained from nothing on the phantom: `make compact`.
COMPACT = config["compact"]


rule compact_pool:
    output:
        directory("results/compact/{pool}"),
    log:
        "results/compact/logs/{pool}.log",
    wildcard_constraints:
        pool="pool|wide",
    conda:
        "../envs/data.yaml"
    threads: 8
    resources:
        mem_mb=4000,
        runtime=240,
    params:
        cfg=lambda w: COMPACT[w.pool],
        code=code("compact_pool.py"),
    message:
        "Slices of {params.cfg[volumes]} phantoms, to train the compact models on"
    script:
        "../scripts/compact_pool.py"


rule compact_model:
    input:
        pool="results/compact/pool",
    output:
        directory("results/compact/{model}"),
    log:
        "results/compact/logs/{model}.log",
    wildcard_constraints:
        model="clip|sam",
    conda:
        "../envs/torch.yaml"
    threads: 8
    resources:
        gpu=1,
        mem_mb=8000,
        runtime=1440,
    params:
        cfg=lambda w: COMPACT[w.model],
        code=code("compact_model.py"),
    message:
        "Train the compact {wildcards.model}"
    script:
        "../scripts/compact_model.py"


rule compact_localizer:
    input:
        pool="results/compact/wide",
        clip="results/compact/clip",
    output:
        directory("results/compact/localizer"),
    log:
        "results/compact/logs/localizer.log",
    conda:
        "../envs/torch.yaml"
    threads: 8
    resources:
        gpu=1,
        mem_mb=12000,
        runtime=1440,
    params:
        cfg=COMPACT["localizer"],
        code=code("compact_localizer.py"),
    message:
        "Train the shipped localizer"
    script:
        "../scripts/compact_localizer.py"


rule compact:
    input:
        clip="results/compact/clip",
        sam="results/compact/sam",
        localizer="results/compact/localizer",
    output:
        touch("results/compact/.installed"),
    log:
        "results/compact/logs/install.log",
    localrule: True
    conda:
        "../envs/report.yaml"
    resources:
        mem_mb=2000,
        runtime=10,
    params:
        code=code("compact_install.py"),
    message:
        "Put what was trained, its curves and a slice into resources/compact, with checksums"
    script:
        "../scripts/compact_install.py"
