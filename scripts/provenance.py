"""What made the tables: versions, device, weights, seeds, commit, data."""

from typing import TYPE_CHECKING

from _job import job

if TYPE_CHECKING:
    from _job import snakemake

with job(snakemake):
    import json
    import os
    import platform
    import subprocess
    from importlib.metadata import PackageNotFoundError, version
    from pathlib import Path

    from xaiclip.files import files_sha256, sha256, write_json
    from xaiclip.privacy import public

    cfg = snakemake.params.cfg
    root = Path(snakemake.scriptdir).parent

    def git(*arguments):
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=False
        )
        return done.stdout.strip() if done.returncode == 0 else None

    def installed(package):
        try:
            return version(package)
        except PackageNotFoundError:
            return None

    changes = git("status", "--porcelain", "--untracked-files=no")
    cost = json.loads(Path(snakemake.input.cost).read_text())
    # by role: where the files lie, and what they are called, is private
    files = {role: snakemake.input.get(role) for role in ("localizer", "backbone", "segmenter")}
    files = {
        role: [paths] if isinstance(paths, str) else list(paths or ())
        for role, paths in files.items()
    }
    weights = {
        role: sha256(paths[0])
        if len(paths) == 1
        else files_sha256(paths, os.path.commonpath(paths))
        for role, paths in files.items()
        if paths
    } | {
        f"resources/compact/{model}.safetensors": checksum
        for model, checksum in snakemake.params.shipped.items()
        if checksum
    }
    data: dict[str, object] = {}
    for path in snakemake.input.data:
        data |= json.loads(Path(path).read_text(encoding="utf-8"))
    packages = [
        line.split("==")[0]
        for line in (root / "envs" / "requirements.in").read_text().splitlines()
        if line and not line.startswith("#")
    ]
    write_json(
        snakemake.output[0],
        {
            "run": cfg["run"],
            "seed": cfg["seed"],
            "commit": git("rev-parse", "HEAD"),
            "uncommitted_changes": None if changes is None else bool(changes),
            "python": platform.python_version(),
            "system": platform.platform(),
            "processor": platform.processor() or platform.machine(),
            "versions": {name: installed(name) for name in packages},
            "device": cost["device"],
            "precision": cost["precision"],
            "weights": weights,
            # of all weights that were loaded, from wherever: a hub gives no file to name
            "backbone": cost["backbone"],
            "factory": snakemake.params.factory,
            "code": snakemake.params.scripts,
            "data": data,
            "tables": {Path(path).name: sha256(path) for path in snakemake.input.tables},
            "config": public(cfg),
        },
    )
    write_json(
        snakemake.output.private,
        {
            "config": cfg,
            "weights": {
                role: [os.path.abspath(path) for path in paths] for role, paths in files.items()
            },
        },
        private=True,
    )
