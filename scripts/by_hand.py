"""Say what only the user can get, and where it belongs."""

from _job import job

with job(snakemake):
    from xaiclip.errors import ConfigError

    raise ConfigError(snakemake.params.cfg["words"])
