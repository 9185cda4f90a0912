"""Fetch a published file."""

from typing import TYPE_CHECKING

from _job import job

if TYPE_CHECKING:
    from _job import snakemake

with job(snakemake):
    from xaiclip.published.catalogue import get
    from xaiclip.published.download import Remote
    from xaiclip.published.packaged import Packaged

    settings = snakemake.params.cfg
    kind = Packaged if "package" in settings else Remote
    get(kind(**settings), snakemake.output[0])
