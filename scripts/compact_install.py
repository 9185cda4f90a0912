"""Put the trained compact models into resources/compact."""

from typing import TYPE_CHECKING

from _job import job

if TYPE_CHECKING:
    from _job import snakemake

with job(snakemake) as log:
    import shutil
    from pathlib import Path

    from xaiclip.files import atomic, sha256, write_text

    target = Path(snakemake.scriptdir).parent / "resources" / "compact"
    for folder in (snakemake.input.clip, snakemake.input.sam):
        for source in sorted(Path(folder).iterdir()):
            if source.suffix in (".json", ".safetensors", ".csv", ".gz"):
                with atomic(target / source.name) as temporary:
                    shutil.copyfile(source, temporary)
    names = sorted(path.name for path in target.iterdir() if path.suffix != ".md")
    names = [name for name in names if name != "SHA256SUMS"]
    sums = "".join(f"{sha256(target / name)}  {name}\n" for name in names)
    write_text(target / "SHA256SUMS", sums)
    log.info("%d files in %s", len(names), target)
