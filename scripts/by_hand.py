"""Say what only the user can get, and where it belongs."""

from typing import TYPE_CHECKING

from _job import job

if TYPE_CHECKING:
    from _job import snakemake

with job(snakemake):
    from xaiclip.errors import ConfigError

    raise ConfigError(snakemake.params.cfg["words"])
