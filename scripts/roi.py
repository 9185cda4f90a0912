"""From probability maps to ROI masks and boxes, from each of the three sources."""

from typing import TYPE_CHECKING

from _job import job

if TYPE_CHECKING:
    from _job import snakemake

with job(snakemake) as log:
    from xaiclip.data.record import load_slices
    from xaiclip.errors import left_out, whole
    from xaiclip.localizer.probabilities import open_probabilities
    from xaiclip.masks.roi import STAGE, RoiSettings, rois_of, save_rois
    from xaiclip.preprocess import Letterbox

    cfg = snakemake.params.cfg
    slices, _ = load_slices(snakemake.input.slices)
    settings = RoiSettings(**cfg["roi"])
    with open_probabilities(snakemake.input.localization) as probabilities:
        skips = whole(probabilities.skips)

        def rois():
            """The ROIs of one slice after the other."""
            for item in slices:
                if item.key not in probabilities:
                    continue
                found = None
                with left_out(skips, item.case, STAGE, item.index):
                    maps = probabilities[item.key]
                    letterbox = Letterbox.fit(item.image.shape, maps.shape[-1])
                    found, empty = rois_of(item, maps, letterbox, cfg["classes"], settings)
                    for skip in empty:
                        log.warning("%s, %s: %s", skip.case, skip.organ, skip.reason)
                    skips.extend(empty)
                if found is not None:
                    yield item.key, found

        save_rois(snakemake.output[0], rois(), skips)
