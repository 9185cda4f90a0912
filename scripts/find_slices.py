"""Choose the slices of a batch's scans that show the most of the organs, as the localizer finds."""

from typing import TYPE_CHECKING

from _job import job, redactor

if TYPE_CHECKING:
    from _job import snakemake

with job(snakemake) as log:
    from pathlib import Path

    import numpy as np

    from xaiclip.data.sheet import Case
    from xaiclip.data.slices import STAGE, read_planes
    from xaiclip.device import set_threads
    from xaiclip.errors import Skip, left_out, refuse_broken
    from xaiclip.files import write_json
    from xaiclip.localizer.backbone import BackboneSettings
    from xaiclip.localizer.locating import Locator
    from xaiclip.localizer.model import SIZE, check_classes, load_localizer, predict
    from xaiclip.masks.roi import RoiSettings
    from xaiclip.organs import organs_of
    from xaiclip.preprocess import PreprocessSettings

    cfg = snakemake.params.cfg
    set_threads(snakemake.threads)
    path = Path(snakemake.input.weights)
    localizer = load_localizer(path, BackboneSettings(cfg["backbone"], cfg["pretrained"]))
    check_classes(localizer, path, cfg["classes"])
    locator = Locator(
        localizer,
        cfg["device"],
        PreprocessSettings(**cfg["preprocess"]),
        RoiSettings(**cfg["roi"]),
    )
    organs = organs_of(cfg["classes"])
    chosen, skips = {}, list[Skip]()
    for row in cfg["cases"]:
        if row["label"]:
            continue  # the label tells
        case = Case(row["name"], Path(row["image"]), None, row["modality"], row["split"])
        with left_out(skips, case.name, STAGE):
            planes = read_planes(case, cfg)
            chosen[case.name] = locator.find(planes, organs, cfg["count"], cfg["every"])
            log.info("%s: slices %s of %d", case.name, chosen[case.name], len(planes))
    plain = np.full((1, SIZE, SIZE), 100, np.uint8)
    refuse_broken(len(chosen), skips, "The localizer", lambda: predict(localizer, plain))
    redact = redactor(snakemake)
    reasons = {skip.case: redact(skip.reason) for skip in skips}
    write_json(snakemake.output[0], {"slices": chosen, "reasons": reasons})
