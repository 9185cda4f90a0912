"""Segment the organs of a batch's slices, with the ROI's boxes and with the reference's."""

from typing import TYPE_CHECKING

from _job import job

if TYPE_CHECKING:
    from _job import snakemake

with job(snakemake) as log:
    from typing import Any

    from xaiclip.data.record import SliceName, load_slices
    from xaiclip.device import set_threads
    from xaiclip.errors import Skip, left_out, refuse_broken, whole
    from xaiclip.masks.roi import SOURCES_OF_PROMPT, open_rois
    from xaiclip.masks.segmented import save_masks
    from xaiclip.models.segmenters.loading import load_segmenter
    from xaiclip.models.segmenters.predict import plain_slice, segment_slice
    from xaiclip.preprocess import load_preprocessed

    cfg = snakemake.params.cfg
    set_threads(snakemake.threads)
    segmenter = load_segmenter(cfg["segmenter"], cfg["device"], cfg["precision"])
    slices = load_slices(snakemake.input.slices)[0]
    enhanced = {piece.key: piece for piece in load_preprocessed(snakemake.input.preprocessed)}

    def segmented(item):
        """The masks of a slice by organ and prompt, and the organs that have none."""
        image, of_slice = item.image, rois[item.key]
        if cfg["segmenter"]["input"] == "preprocessed":
            image = enhanced[item.key].on_slice_grid()
        found: dict[tuple[SliceName, str, str], Any] = {}
        without: list[Skip] = []
        for prompt, source in SOURCES_OF_PROMPT.items():
            boxes = {
                organ: of_slice[organ][source].box
                for organ in cfg["organs"]
                if source in of_slice[organ]
            }
            of_organ = segment_slice(segmenter, image, boxes)
            found |= {(item, organ, prompt): mask for organ, mask in of_organ.items()}
            without += [
                Skip(item.case, "segment", f"no {prompt} box: the ROI is empty", item.index, organ)
                for organ in cfg["organs"]
                if boxes.get(organ) is None and prompt == "roi"
            ]
            without += [
                Skip(item.case, "segment", f"empty prediction ({prompt} box)", item.index, organ)
                for organ, mask in of_organ.items()
                if not mask.any()
            ]
        return found, without

    def masks():
        """The masks of one slice after the other."""
        done = 0
        for item in slices:
            if item.key not in rois:
                continue
            found: dict[tuple[SliceName, str, str], Any] = {}
            with left_out(skips, item.case, "segment", item.index):
                found, without = segmented(item)
                skips.extend(without)
                done += 1
            yield from found.items()
        image, _, box = plain_slice()
        boxes = dict.fromkeys(cfg["organs"], box)
        refuse_broken(done, skips, "The segmenter", lambda: segment_slice(segmenter, image, boxes))
        log.info("%d slices", done)

    with open_rois(snakemake.input.roi) as rois:
        skips = whole(rois.skips)
        save_masks(snakemake.output[0], masks(), skips)
