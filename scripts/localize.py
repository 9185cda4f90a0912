"""Probability maps of a batch's slices, and the seconds that each took."""

from typing import TYPE_CHECKING

from _job import job

if TYPE_CHECKING:
    from _job import snakemake

with job(snakemake) as log:
    import time
    from pathlib import Path

    import numpy as np

    from xaiclip.device import choose_device, set_threads
    from xaiclip.errors import left_out, refuse_broken, whole
    from xaiclip.files import load_skips
    from xaiclip.localizer.backbone import BackboneSettings
    from xaiclip.localizer.model import (
        SIZE,
        check_classes,
        load_localizer,
        predict,
        predict_slice,
    )
    from xaiclip.localizer.probabilities import save_probabilities
    from xaiclip.preprocess import load_preprocessed

    cfg = snakemake.params.cfg
    set_threads(snakemake.threads)
    backbone = BackboneSettings(cfg["backbone"], cfg["pretrained"])
    path = Path(snakemake.input.weights)
    localizer = load_localizer(path, backbone)
    check_classes(localizer, path, cfg["classes"])
    localizer = localizer.to(choose_device(cfg["device"]))
    skips = whole(load_skips(snakemake.input.slices))
    seconds: dict[str, float] = {}

    def maps():
        """The maps of one slice after the other."""
        for piece in load_preprocessed(snakemake.input.slices):
            found = None
            with left_out(skips, piece.case, "localize", piece.index):
                start = time.perf_counter()
                found = predict_slice(localizer, piece.image)
                seconds[piece.key] = time.perf_counter() - start
            if found is not None:
                yield piece.key, found
        plain = np.full((1, SIZE, SIZE), 100, np.uint8)
        refuse_broken(len(seconds), skips, "The localizer", lambda: predict(localizer, plain))

    save_probabilities(snakemake.output[0], maps(), seconds, cfg["classes"], skips)
    log.info("%d slices", len(seconds))
