"""Train the localizer that is shipped."""

from typing import TYPE_CHECKING

from _job import job

if TYPE_CHECKING:
    from _job import snakemake

with job(snakemake):
    from pathlib import Path

    from compact.localizer import LocalizerTraining, train_localizer
    from xaiclip.device import set_threads

    set_threads(snakemake.threads)
    made = snakemake.input
    train_localizer(
        Path(made.pool),
        Path(made.clip),
        Path(snakemake.output[0]),
        LocalizerTraining(**snakemake.params.cfg),
    )
