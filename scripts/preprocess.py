"""Equations 1 to 8 on a batch of slices."""

from typing import TYPE_CHECKING

from _job import job

if TYPE_CHECKING:
    from _job import snakemake

with job(snakemake) as log:
    from xaiclip.data.record import load_slices
    from xaiclip.errors import Skip
    from xaiclip.preprocess import PreprocessSettings, preprocess_slices, save_preprocessed

    slices, _ = load_slices(snakemake.input[0])
    settings = PreprocessSettings(**snakemake.params.cfg)
    skips: list[Skip] = []
    done = preprocess_slices(slices, settings, snakemake.threads, skips)
    log.info("%d slices", len(done))
    save_preprocessed(snakemake.output[0], done, skips)
