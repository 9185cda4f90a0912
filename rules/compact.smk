# The compact models of resources/compact, trained from nothing on the phantom: `make compact`.
COMPACT = config["compact"]


rule compact_pool:
    output:
        directory("results/compact/pool"),
    log:
        "results/compact/logs/pool.log",
    conda:
        "../envs/data.yaml"
    threads: 8
    resources:
        mem_mb=4000,
        runtime=240,
    params:
        cfg=COMPACT["pool"],
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


rule compact:
    input:
        clip="results/compact/clip",
        sam="results/compact/sam",
    output:
        touch("results/compact/.installed"),
    log:
        "results/compact/logs/install.log",
    localrule: True
    conda:
        "../envs/report.yaml"
    resources:
        mem_mb=1000,
        runtime=10,
    params:
        code=code("compact_install.py"),
    message:
        "Put the trained models into resources/compact, with checksums and curves"
    script:
        "../scripts/compact_install.py"


# It belongs to the CLIP that it was trained on: `make compact-extras`, after `make compact`.
rule compact_extras:
    input:
        weights=filled(paths.LOCALIZER, run="demo", variant="text"),
        history=filled(paths.TRAINING, run="demo", variant="text"),
        phantoms=filled(paths.PHANTOMS, run="demo", batch="test-0"),
    output:
        touch("results/compact/.extras"),
    log:
        "results/compact/logs/extras.log",
    localrule: True
    conda:
        "../envs/torch.yaml"
    resources:
        mem_mb=1000,
        runtime=10,
    params:
        code=code("compact_extras.py"),
    message:
        "Put the demo's localizer and one of its slices into resources/compact"
    script:
        "../scripts/compact_extras.py"
