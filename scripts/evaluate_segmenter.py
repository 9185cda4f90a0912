"""Dice, IoU and surface distances of the segmentations of a batch."""

from typing import TYPE_CHECKING

from _job import job

if TYPE_CHECKING:
    from _job import snakemake

with job(snakemake) as log:
    from xaiclip.data.record import load_slices
    from xaiclip.errors import Skip, left_out, whole
    from xaiclip.masks.segmented import open_masks
    from xaiclip.metrics.overlap import dice, iou, surface_distances
    from xaiclip.metrics.rows import unreached
    from xaiclip.metrics.schema import SEGMENTER, write_table

    cfg = snakemake.params.cfg
    classes = ["background", *cfg["organs"]]
    slices, missing = load_slices(snakemake.input.slices)
    rows = [
        {**case, "organ": organ, "prompt": prompt}
        for case in unreached(cfg["cases"], slices, missing)
        for organ in cfg["organs"]
        for prompt in ("roi", "reference")
    ]

    def measured(item, organ, mask):
        """The columns of one organ's mask."""
        if (item.case, item.index) in unsegmented:
            return {"skipped": unsegmented[item.case, item.index]}
        if item.label is None:
            return {"skipped": "the case has no reference label"}
        reference = item.label == classes.index(organ)
        found = {"n_pixels_reference": int(reference.sum())}
        if not reference.any():
            return {**found, "skipped": "the reference lacks this organ in the slice"}
        if mask is None:
            # a localizer that misses an organ costs the segmenter its whole Dice
            return {**found, "dice": 0.0, "iou": 0.0, "n_pixels": 0}
        return {
            **found,
            "n_pixels": int(mask.sum()),
            "dice": dice(mask, reference),
            "iou": iou(mask, reference),
            # without geometry there are no mm
            **(surface_distances(mask, reference, item.spacing) if item.geometry.measured else {}),
        }

    with open_masks(snakemake.input.segmentation) as masks:
        unsegmented = {(skip.case, skip.slice): skip.reason for skip in whole(masks.skips)}
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
                    skips: list[Skip] = []
                    with left_out(skips, item.case, "evaluate_segmenter", item.index, organ):
                        row |= measured(item, organ, masks.of(item, organ, prompt))
                    for skip in skips:
                        row["skipped"] = skip.reason
                    rows.append(row)
    log.info("%d rows", len(rows))
    write_table(snakemake.output.rows, rows, SEGMENTER)
