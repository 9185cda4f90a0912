"""Probability maps of a batch's slices, and the seconds that each took."""

from _job import job

with job(snakemake) as log:
    import time
    from pathlib import Path

    import numpy as np

    from xaiclip.device import choose_device, set_threads
    from xaiclip.errors import ConfigError
    from xaiclip.files import save_arrays
    from xaiclip.localizer.backbone import BackboneSettings
    from xaiclip.localizer.model import load_localizer, predict
    from xaiclip.preprocess import load_preprocessed

    cfg = snakemake.params.cfg
    set_threads(snakemake.threads)
    backbone = BackboneSettings(cfg["backbone"], cfg["pretrained"])
    localizer = load_localizer(Path(snakemake.input.weights), backbone)
    if list(localizer.classes) != cfg["classes"]:
        raise ConfigError(
            f"{snakemake.input.weights} was trained for {', '.join(localizer.classes)}: "
            "set 'classes' to these, or train another localizer."
        )
    localizer = localizer.to(choose_device(cfg["device"]))
    maps, seconds = {}, {}
    for piece in load_preprocessed(snakemake.input.slices):
        start = time.perf_counter()
        maps[piece.key] = predict(localizer, piece.image[None])[0].astype(np.float16)
        seconds[piece.key] = time.perf_counter() - start
    log.info("%d slices", len(maps))
    save_arrays(snakemake.output[0], maps, {"seconds": seconds, "classes": cfg["classes"]})
