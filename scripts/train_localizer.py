"""Train the localizer's prompts, adapter and map maker on the training slices."""

from typing import TYPE_CHECKING

from _job import job

if TYPE_CHECKING:
    from _job import snakemake

with job(snakemake) as log:
    from pathlib import Path

    import numpy as np
    import pandas as pd

    from xaiclip.device import choose_device, set_threads
    from xaiclip.errors import ConfigError
    from xaiclip.files import atomic
    from xaiclip.localizer.backbone import BackboneSettings, load_backbone
    from xaiclip.localizer.model import LocalizerSettings, save_localizer
    from xaiclip.localizer.training import TrainingSettings, train
    from xaiclip.preprocess import load_preprocessed

    cfg = snakemake.params.cfg
    set_threads(snakemake.threads)
    pieces = [piece for path in snakemake.input.slices for piece in load_preprocessed(path)]
    labels = [piece.label for piece in pieces if piece.label is not None]
    pieces = [piece for piece in pieces if piece.label is not None]
    if not pieces:
        raise ConfigError("no training slice has labels: see skipped.tsv, or add labelled cases.")
    log.info("%d slices of %d cases", len(pieces), len({piece.case for piece in pieces}))

    blocks = tuple(cfg["blocks"]) if cfg["blocks"] else None
    backbone = load_backbone(BackboneSettings(cfg["backbone"], cfg["pretrained"], blocks))
    localizer, history = train(
        backbone.to(choose_device(cfg["device"])),
        np.stack([piece.image for piece in pieces]),
        np.stack(labels),
        [piece.case for piece in pieces],
        cfg["classes"],
        LocalizerSettings(
            context=cfg["context"], class_specific=cfg["class_specific"], text=cfg["text"]
        ),
        TrainingSettings(
            epochs=cfg["epochs"],
            batch_size=cfg["batch_size"],
            learning_rate=cfg["learning_rate"],
            validation_fraction=cfg["validation_fraction"],
            views=cfg["views"],
            seed=cfg["seed"],
        ),
    )
    with atomic(snakemake.output.history) as temporary:
        pd.DataFrame(history).to_csv(temporary, index=False)
    save_localizer(Path(snakemake.output.weights), localizer)
