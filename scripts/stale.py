"""List or remove results that the configuration no longer asks for."""

from typing import TYPE_CHECKING

from _job import job

if TYPE_CHECKING:
    from _job import snakemake

with job(snakemake) as log:
    from xaiclip.workflow.stale import remove_files

    files, remove = list(snakemake.params.files), snakemake.params.prune
    for file in files:
        print(file)
    if remove:
        remove_files(files)
    log.info("%d stale files%s", len(files), " removed" if remove else "")
