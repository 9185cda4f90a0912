"""Run one explanation method's perturbations on a batch of slices and keep the score tables."""

from typing import TYPE_CHECKING

from _job import job

if TYPE_CHECKING:
    from _job import snakemake

with job(snakemake) as log:
    from xaiclip.data.record import load_slices
    from xaiclip.device import set_threads
    from xaiclip.errors import left_out, whole
    from xaiclip.explain import GRADIENT_PRECISION, differentiates
    from xaiclip.explain.runner import STAGE, Request, Run, score_each
    from xaiclip.explain.store import open_scores, save_frame, save_scores
    from xaiclip.explain.values import VALUES
    from xaiclip.masks.roi import (
        SOURCES_OF_GUIDANCE,
        SOURCES_OF_PROMPT,
        SOURCES_OF_REGIONS,
        open_rois,
    )
    from xaiclip.models.segmenters.loading import load_segmenter
    from xaiclip.preprocess import load_preprocessed

    cfg = snakemake.params.cfg
    set_threads(snakemake.threads)
    slices, _ = load_slices(snakemake.input.slices)
    enhanced = {piece.key: piece for piece in load_preprocessed(snakemake.input.preprocessed)}
    source = SOURCES_OF_GUIDANCE[cfg["guidance"]]
    prompt = SOURCES_OF_PROMPT[cfg["prompt"]]
    regions = SOURCES_OF_REGIONS.get(cfg["settings"].get("regions"))

    def request(item):
        """What is explained of a slice."""
        of_slice = rois[item.key]
        of_organ = {organ: of_slice[organ] for organ in cfg["organs"]}
        image = item.image
        if cfg["segmenter"]["input"] == "preprocessed":
            image = enhanced[item.key].on_slice_grid()
        return Request(
            case=item.case,
            index=item.index,
            image=image,
            prompts={o: r[prompt].box if prompt in r else None for o, r in of_organ.items()},
            rois=(
                {organ: r[source].mask for organ, r in of_organ.items() if source in r}
                if source
                else None
            ),
            guidance=cfg["guidance"],
            regions={organ: r[regions].mask for organ, r in of_organ.items() if regions in r},
        )

    def requests():
        """What is explained, of one slice after the other."""
        for item in slices:
            one = None
            if item.key in rois:
                with left_out(skips, item.case, STAGE, item.index):
                    one = request(item)
            if one is not None:
                yield one

    precision, values = cfg["precision"], (*cfg["values"], *VALUES)
    if differentiates(cfg["method"]):
        precision, values = GRADIENT_PRECISION, cfg["values"]
    segmenter = load_segmenter(cfg["segmenter"], cfg["device"], precision)
    run = Run(
        cfg["method"],
        cfg["settings"],
        # every one, so that others can be explained without a forward
        tuple(dict.fromkeys(values)),
        cfg["fill"],
        cfg["batch_size"],
        cfg["seed"],
    )
    with open_rois(snakemake.input.roi) as rois:
        skips, count = whole(rois.skips), sum(item.key in rois for item in slices)
        scores = score_each(segmenter, requests(), count, run, skips)
        save_scores(snakemake.output.scores, scores, skips)
    with open_scores(snakemake.output.scores) as stored:
        save_frame(snakemake.output.table, map(stored.read, range(len(stored))))
