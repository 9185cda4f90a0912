# Segmentations with the ROI's box and with the reference box.


rule segment:
    input:
        slices=paths.SLICES,
        preprocessed=paths.PREPROCESSED,
        roi=paths.ROI,
        foreign=lambda w: FOREIGN["sam"],
    output:
        paths.SEGMENTATION,
    log:
        "results/{run}/logs/segment/{batch}.log",
    benchmark:
        "results/{run}/benchmarks/segment/{batch}.tsv"
    conda:
        "../envs/torch.yaml"
    threads: model_threads
    resources:
        gpu=one_gpu,
        mem_mb=lambda wildcards, attempt: 6000 * attempt,
        runtime=lambda wildcards, attempt: 60 * attempt,
    params:
        cfg=on_device("sam", segmenter=config["segmenter"], organs=ORGANS),
        code=code("segment.py"),
    message:
        "Segment batch {wildcards.batch}"
    script:
        "../scripts/segment.py"


rule cost:
    input:
        localizer=lambda w: trained_of(w.run),
        foreign=lambda w: FOREIGN["clip"] + FOREIGN["sam"],
    output:
        paths.COST,
    log:
        "results/{run}/logs/cost.log",
    conda:
        "../envs/torch.yaml"
    threads: model_threads
    resources:
        gpu=one_gpu,
        mem_mb=lambda wildcards, attempt: 6000 * attempt,
        runtime=30,
    params:
        cfg=on_device(
            "clip",
            "sam",
            segmenter=config["segmenter"],
            organs=ORGANS,
            trained=TRAINED_STATE,
            **BACKBONE,
        ),
        code=code("cost.py"),
    message:
        "Count the operations of one forward"
    script:
        "../scripts/cost.py"
