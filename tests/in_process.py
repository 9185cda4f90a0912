"""The workflow's scripts, called in this process: what a test plants in the library, they meet."""

from __future__ import annotations

import logging
import os
import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

SCRIPTS = Path(__file__).parents[1] / "scripts"


class Named(list):
    """As Snakemake gives files: a list, some of them with a name."""

    def __init__(self, *files: Any, **named: Any) -> None:
        super().__init__(_plain([*files, *named.values()]))
        vars(self).update({name: _plain(file) for name, file in named.items()})
        self.get = vars(self).get


def _plain(files: Any) -> Any:
    return [_plain(file) for file in files] if isinstance(files, list) else str(files)


def run_script(
    name: str, files: Any, output: Any, log: Path, cfg: Any = None, **params: Any
) -> None:
    """Run ``scripts/name``.

    Raises:
        SystemExit: the job ended in a sentence, which is in ``log``.
    """
    root = logging.getLogger()
    handlers, level, environment = root.handlers[:], root.level, dict(os.environ)
    log.parent.mkdir(parents=True, exist_ok=True)
    snakemake = SimpleNamespace(
        input=files,
        output=output,
        log=[log],
        params=SimpleNamespace(cfg=cfg, **params),
        threads=1,
        rule=name.removesuffix(".py"),
        resources=SimpleNamespace(),
        scriptdir=str(SCRIPTS),
        wildcards=SimpleNamespace(),
    )
    try:
        runpy.run_path(str(SCRIPTS / name), {"snakemake": snakemake})
    finally:
        logging.captureWarnings(False)
        root.handlers[:] = handlers
        root.setLevel(level)
        os.environ.clear()
        os.environ.update(environment)
