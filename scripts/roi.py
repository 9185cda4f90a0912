"""From probability maps to ROI masks and boxes, from each of the three sources."""

from _job import job

with job(snakemake) as log:
    from xaiclip.data.slices import load_slices
    from xaiclip.files import load_arrays
    from xaiclip.preprocess import Letterbox
    from xaiclip.roi import RoiSettings, rois_of, save_rois

    cfg = snakemake.params.cfg
    slices, _ = load_slices(snakemake.input.slices)
    probabilities, _ = load_arrays(snakemake.input.localization)
    settings = RoiSettings(**cfg["roi"])
    rois, skips = {}, []
    for item in slices:
        maps = probabilities[item.key]
        letterbox = Letterbox.fit(item.image.shape, maps.shape[-1])
        rois[item.key], left_out = rois_of(item, maps, letterbox, cfg["classes"], settings)
        skips += left_out
    for skip in skips:
        log.warning("%s, %s: %s", skip.case, skip.organ, skip.reason)
    save_rois(snakemake.output[0], rois, skips)
