"""A GPU for each job: concurrent jobs take different ones.

Snakemake counts GPUs but does not say which one a job has. This module needs no torch: the choice
must be made before a library looks at the devices.
"""

from __future__ import annotations

import logging
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
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


def accelerated() -> bool:
    """Whether this machine has a GPU that torch might take: NVIDIA's, AMD's or Apple's."""
    return bool(gpus()) or sys.platform == "darwin" or Path("/dev/kfd").exists()


@contextmanager
def leased_gpu() -> Iterator[str | None]:
    """Take a GPU that no other job of this user has, and make it the only visible one.

    If all are taken, the one with the fewest jobs is shared, never waited for. The lock is a file
    lock in a folder of this user's own, so it ends with the process, whatever happens to it.

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
            stream = _locked(folder / f"{name.replace('/', '_')}.{slot}")
            if stream is None:
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


def _locked(path: Path) -> int | None:
    """An open, locked file; None if another job has it, or it cannot be made."""
    try:
        stream = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
    except OSError as error:
        _log.warning("%s cannot be opened (%s)", path, error.strerror)
        return None
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(stream)
        return None
    return stream


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
    """Where this user's locks lie, closed to all others; None if there is no such place.

    All jobs try the same places in the same order. Others may write into the temporary folder, so
    what they put there under this name only makes the next place count.
    """
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    places = [Path(runtime) / "xaiclip-gpu"] if runtime and _is_own(Path(runtime)) else []
    with suppress(OSError):  # no temporary folder that can be written to
        places.append(Path(tempfile.gettempdir()) / f"xaiclip-gpu-{os.getuid()}")
    with suppress(RuntimeError):  # no home
        places.append(Path.home() / ".cache" / "xaiclip" / "gpu")
    for place in places:
        with suppress(OSError):
            place.parent.mkdir(parents=True, exist_ok=True)
            place.mkdir(mode=0o700, exist_ok=True)
            if _is_own(place):
                return place
        _log.warning("%s is not this user's own folder: GPUs are leased elsewhere", place)
    _log.warning("there is no folder for the leases of GPUs: this job takes the first GPU")
    return None


def _is_own(folder: Path) -> bool:
    """Whether it is a folder, not a link to one, that only this user may enter."""
    try:
        found = os.lstat(folder)
    except OSError:
        return False
    own = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()
    return own and not found.st_mode & 0o077
