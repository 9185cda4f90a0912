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
    from xaiclip.explain.runner import STAGE, Request, Run, score_batch
    from xaiclip.explain.store import save_frame, save_scores
    from xaiclip.explain.values import VALUES
    from xaiclip.masks.roi import (
        SOURCES_OF_GUIDANCE,
        SOURCES_OF_PROMPT,
        SOURCES_OF_REGIONS,
        load_rois,
    )
    from xaiclip.models.segmenters.loading import load_segmenter
    from xaiclip.preprocess import load_preprocessed

    cfg = snakemake.params.cfg
    set_threads(snakemake.threads)
    slices, _ = load_slices(snakemake.input.slices)
    rois, earlier = load_rois(snakemake.input.roi)
    enhanced = {piece.key: piece for piece in load_preprocessed(snakemake.input.preprocessed)}
    source = SOURCES_OF_GUIDANCE[cfg["guidance"]]
    prompt = SOURCES_OF_PROMPT[cfg["prompt"]]
    regions = SOURCES_OF_REGIONS.get(cfg["settings"].get("regions"))
    requests, skips = [], whole(earlier)

    def request(item):
        """What is explained of a slice."""
        of_organ = {organ: rois[item.key][organ] for organ in cfg["organs"]}
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

    for item in slices:
        if item.key in rois:
            with left_out(skips, item.case, STAGE, item.index):
                requests.append(request(item))
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
    scores, missing = score_batch(segmenter, requests, run)
    save_scores(snakemake.output.scores, scores, skips + missing)
    save_frame(snakemake.output.table, scores)
