"""Segment the organs of a batch's slices, with the ROI's boxes and with the reference's."""

from _job import job

with job(snakemake) as log:
    from xaiclip.data.slices import load_slices
    from xaiclip.device import set_threads
    from xaiclip.errors import Skip
    from xaiclip.files import save_arrays
    from xaiclip.preprocess import load_preprocessed
    from xaiclip.roi import SOURCES_OF_PROMPT, load_rois
    from xaiclip.segmenters.loading import load_segmenter
    from xaiclip.segmenters.predict import segment_slice

    cfg = snakemake.params.cfg
    set_threads(snakemake.threads)
    segmenter = load_segmenter(cfg["segmenter"], cfg["device"], cfg["precision"])
    slices, _ = load_slices(snakemake.input.slices)
    rois, _ = load_rois(snakemake.input.roi)
    enhanced = {piece.key: piece for piece in load_preprocessed(snakemake.input.preprocessed)}
    masks, skips = {}, []
    for item in slices:
        image = item.image
        if cfg["segmenter"]["input"] == "preprocessed":
            image = enhanced[item.key].on_slice_grid()
        for prompt, source in SOURCES_OF_PROMPT.items():
            boxes = {
                organ: rois[item.key][organ][source].box
                for organ in cfg["organs"]
                if source in rois[item.key][organ]
            }
            found = segment_slice(segmenter, image, boxes)
            masks |= {f"{item.key}/{organ}/{prompt}": mask for organ, mask in found.items()}
            skips += [
                Skip(item.case, "segment", f"no {prompt} box: the ROI is empty", item.index, organ)
                for organ in cfg["organs"]
                if boxes.get(organ) is None and prompt == "roi"
            ]
            skips += [
                Skip(item.case, "segment", f"empty prediction ({prompt} box)", item.index, organ)
                for organ, mask in found.items()
                if not mask.any()
            ]
    log.info("%d masks in %d slices", len(masks), len(slices))
    save_arrays(snakemake.output[0], masks, {"skips": [skip.to_dict() for skip in skips]})
