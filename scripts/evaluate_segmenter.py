"""Dice, IoU and surface distances of the segmentations of a batch."""

from _job import job

with job(snakemake) as log:
    from xaiclip.data.slices import load_slices
    from xaiclip.evaluate.overlap import dice, iou, surface_distances
    from xaiclip.evaluate.rows import unreached
    from xaiclip.evaluate.schema import SEGMENTER, write_table
    from xaiclip.files import load_arrays

    cfg = snakemake.params.cfg
    classes = ["background", *cfg["organs"]]
    masks, _ = load_arrays(snakemake.input.segmentation)
    slices, left_out = load_slices(snakemake.input.slices)
    rows = [
        {**case, "organ": organ, "prompt": prompt}
        for case in unreached(cfg["cases"], slices, left_out)
        for organ in cfg["organs"]
        for prompt in ("roi", "reference")
    ]
    for item in slices:
        for organ in cfg["organs"]:
            for prompt in ("roi", "reference"):
                row = {
                    "case": item.case,
                    "slice": item.index,
                    "organ": organ,
                    "prompt": prompt,
                    "roi_source": "localizer" if prompt == "roi" else "reference",
                    "modality": item.modality,
                }
                rows.append(row)
                mask = masks.get(f"{item.key}/{organ}/{prompt}")
                if item.label is None:
                    row["skipped"] = "the case has no reference label"
                    continue
                reference = item.label == classes.index(organ)
                row["n_pixels_reference"] = int(reference.sum())
                if not reference.any():
                    row["skipped"] = "the reference lacks this organ in the slice"
                elif mask is None:
                    # a localizer that misses an organ costs the segmenter its whole Dice
                    row |= {"dice": 0.0, "iou": 0.0, "n_pixels": 0}
                else:
                    row |= {
                        "n_pixels": int(mask.sum()),
                        "dice": dice(mask, reference),
                        "iou": iou(mask, reference),
                    }
                    if item.geometry.measured:  # else there are no mm
                        row |= surface_distances(mask, reference, item.spacing)
    log.info("%d rows", len(rows))
    write_table(snakemake.output.rows, rows, SEGMENTER)
