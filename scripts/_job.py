"""What every script does around its work: log, threads, and errors that people can read."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import xaiclip
from xaiclip.errors import CaseError, ConfigError, StorageError
from xaiclip.privacy import LogFormatter, Redactor, case_files, private_files
from xaiclip.workflow.lease import leased_gpu

#: Limits that libraries read when they are loaded.
THREADS = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "OPENCV_FOR_THREADS_NUM",
    "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS",
)


class Job(Protocol):
    """What Snakemake puts into a script as ``snakemake``."""

    input: Any
    output: Any
    params: Any
    wildcards: Any
    resources: Any
    log: Sequence[str]
    threads: int
    rule: str
    scriptdir: str


if TYPE_CHECKING:
    snakemake: Job  # a script imports it for the checkers alone: it runs where Snakemake is not


@contextmanager
def job(snakemake: Job) -> Iterator[logging.Logger]:
    """Log to the rule's log file and to stderr; end with one sentence where the input is wrong.

    Logs lie among the results: they name a case's files by case and role, not by their paths.

    Libraries get as many threads as Snakemake granted, and a job that runs models has one GPU to
    itself. Import libraries inside the block: they read both when they are loaded.
    """
    for name in THREADS:
        os.environ[name] = str(snakemake.threads)
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stderr)]
    if snakemake.log:
        # where the disk is full, the log is lost and its words still reach stderr
        logging.raiseExceptions = False
        with suppress(OSError):
            handlers.append(logging.FileHandler(str(snakemake.log[0]), mode="w", encoding="utf-8"))
    formatter = LogFormatter(redactor(snakemake), redactor(snakemake, below=False))
    for handler in handlers:
        handler.setFormatter(formatter)
    logging.basicConfig(level=logging.INFO, handlers=handlers, force=True)
    logging.captureWarnings(True)
    log = logging.getLogger("xaiclip")
    try:
        _check_library(getattr(snakemake, "scriptdir", str(Path(__file__).parent)))
        with leased_gpu() if _wants_gpu(snakemake) else nullcontext() as gpu:
            if gpu:
                log.info("GPU %s", gpu)
            yield log
    except (CaseError, ConfigError, StorageError) as error:
        log.error("%s", error)
        sys.exit(1)
    except Exception:
        log.exception("rule %s failed", snakemake.rule)
        sys.exit(1)


def redactor(snakemake: Job, below: bool = True) -> Redactor:
    """What takes the paths of the job's cases out of words; of all cases, if it has no batch."""
    cfg = getattr(snakemake.params, "cfg", None)
    rows = cfg.get("cases") if isinstance(cfg, dict) else None
    files: dict[str, Any] = case_files(
        row for row in rows or () if isinstance(row, dict) and "image" in row
    )
    outputs = [Path(str(one)) for one in (*getattr(snakemake, "output", ()), *snakemake.log)]
    batch = getattr(getattr(snakemake, "wildcards", None), "batch", None)
    folders = (folder for one in outputs for folder in one.parents)
    run = next((folder for folder in folders if folder.parent.name == "results"), None)
    if not files and run is not None:
        with suppress(OSError, ValueError):
            files = private_files(run, batch or "*")
    return Redactor(files, keep=outputs, below=below and batch is not None)


def _check_library(folder: str) -> None:
    """Refuse another copy of the library, whose code is not the one that reruns hang on."""
    found = Path(xaiclip.__file__).resolve().parents[1]
    if found != Path(folder).resolve():
        raise ConfigError(
            f"the library was imported from {found} instead of {folder}: take it out of "
            "PYTHONPATH, or uninstall it."
        )


def _wants_gpu(snakemake: Job) -> bool:
    """Whether the rule asks for a GPU and the study lets it have one."""
    cfg = getattr(snakemake.params, "cfg", None)
    device = cfg.get("device") if isinstance(cfg, dict) else None
    return bool(getattr(snakemake.resources, "gpu", 0)) and device in ("auto", "cuda")
