"""A GPU for each job: concurrent jobs take different ones.

Snakemake counts GPUs but does not say which one a job has. This module needs no torch: the choice
must be made before a library looks at the devices.
"""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_log = logging.getLogger(__name__)

VISIBLE = "CUDA_VISIBLE_DEVICES"
#: Jobs that may share one GPU before the lease is given up.
MOST_SHARED = 16


def gpus() -> dict[str, str]:
    """The GPUs that this process may use: what to write into `VISIBLE` → a name for its lock.

    An outer ``CUDA_VISIBLE_DEVICES``, the user's or the batch system's, is the limit. A lock is
    named after the GPU's UUID where nvidia-smi tells it: inside containers and SLURM's cgroups
    each job sees its own GPU as number 0.
    """
    uuids = _uuids()
    outer = os.environ.get(VISIBLE)
    if outer is None:
        return {uuid: uuid for uuid in uuids}
    # CUDA reads the list up to the first entry that is no device
    entries = []
    for entry in (one.strip() for one in outer.split(",")):
        if not entry or entry.startswith("-"):
            break
        entries.append(entry)
    job = os.environ.get("SLURM_JOB_ID", "")
    names = {}
    for entry in entries:
        if not entry.isdecimal():
            names[entry] = entry
        elif int(entry) < len(uuids):
            names[entry] = uuids[int(entry)]
        else:
            names[entry] = f"{job}-{entry}"
    return names


@contextmanager
def leased_gpu() -> Iterator[str | None]:
    """Take a GPU that no other job of this user has, and make it the only visible one.

    If all are taken, the one with the fewest jobs is shared, never waited for. The lock is a file
    lock below the temporary folder, so it ends with the process, whatever happens to it.

    Yields:
        The entry of ``CUDA_VISIBLE_DEVICES``, or None where there is nothing to choose.
    """
    names = gpus() if fcntl is not None else {}
    folder = _folder() if names else None
    if folder is None:
        yield None
        return
    before = os.environ.get(VISIBLE)
    for slot in range(MOST_SHARED):
        for entry, name in names.items():
            stream = os.open(
                folder / f"{name.replace('/', '_')}.{slot}", os.O_RDWR | os.O_CREAT, 0o600
            )
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                os.close(stream)
                continue
            if slot:
                _log.warning("GPU %s is shared with %d other job(s)", entry, slot)
            os.environ[VISIBLE] = entry
            try:
                yield entry
            finally:
                if before is None:
                    del os.environ[VISIBLE]
                else:
                    os.environ[VISIBLE] = before
                os.close(stream)
            return
    yield None


def _uuids() -> list[str]:
    """UUIDs of this machine's GPUs, as nvidia-smi numbers them; empty where there is none."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    command = [program, "--query-gpu=uuid", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        _log.warning("nvidia-smi failed (%s): the first GPU is taken", error)
        return []
    return [line.strip() for line in done.stdout.splitlines() if line.strip()]


def _folder() -> Path | None:
    """Where this user's locks lie; None if somebody else made a folder of that name."""
    folder = Path(tempfile.gettempdir()) / f"xaiclip-gpu-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        _log.warning("%s belongs to another user: GPUs are not leased", folder)
        return None
    return folder
