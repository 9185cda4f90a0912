"""Faults: a killed workflow, a full disk, a read-only folder, a lock left behind, two runs at once.

Each gives a message, loses nothing, and the next run completes with the same results. `make soak`
kills fifty times (tests/kills.py).
"""

import os
import resource
import shutil
import subprocess
from pathlib import Path

import pytest

import kills

#: The steps from the scans to the localizer's input: jobs of seconds that write large files.
SHORT = ("--until", "preprocess")
#: A folder's mode holds for root only without these.
CAPABILITIES = "--bounding-set=-dac_override,-dac_read_search"


def completes(directory, reference):
    """The next run ends well; nothing is damaged, and all is as in the undisturbed study."""
    code, output = kills.run(directory, *SHORT)
    assert code == 0, output[-4000:]
    assert kills.damaged(directory / "results", {}) == []
    assert kills.differences(directory, reference) == []


def content(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """The short study, undisturbed."""
    directory = tmp_path_factory.mktemp("undisturbed")
    code, output = kills.run(directory, *SHORT)
    assert code == 0, output[-4000:]
    return directory


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 2 MB, and what gives it more room."""
    directory = tmp_path / "small"
    (directory / "results").mkdir(parents=True)
    mount = ("mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", directory / "results")
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(
            f"mount: {done.stderr.strip()}; the test with a limit on files stands in for this one"
        )

    def grow():
        more = ("mount", "-o", "remount,size=64m", directory / "results")
        subprocess.run(more, check=True)

    yield directory, grow
    subprocess.run(("umount", directory / "results"), check=True)


@pytest.mark.slow
def test_a_full_disk(small_disk, prepared):
    directory, grow = small_disk
    code, output = kills.run(directory, *SHORT)
    assert code != 0
    assert "cannot be written: the disk is full" in output
    assert "results/kills/" in output.split("cannot be written: the disk is full")[0][-80:]
    assert "Traceback" not in output
    assert kills.damaged(directory / "results", {}) == []
    kept = content(directory / "results" / "kills" / "raw")
    assert kept  # what fitted before the disk was full
    grow()
    completes(directory, prepared)
    assert kept.items() <= content(directory / "results" / "kills" / "raw").items()


@pytest.mark.slow
def test_a_limit_on_the_size_of_files(tmp_path, prepared):
    def limited():
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))

    code, output = kills.run(tmp_path, *SHORT, preexec_fn=limited)
    assert code != 0
    assert ".nii.gz' cannot be written: it is larger than a file may be here" in output
    assert "Traceback" not in output
    assert kills.damaged(tmp_path / "results", {}) == []
    completes(tmp_path, prepared)


@pytest.fixture
def before():
    """What a command stands behind, so that a read-only folder is read-only for it."""
    if os.geteuid() != 0:
        return ()
    assert shutil.which("setpriv"), "root may write anywhere: util-linux's setpriv is needed"
    return ("setpriv", CAPABILITIES)


@pytest.mark.slow
def test_a_folder_that_is_read_only_from_the_start(tmp_path, before):
    config = tmp_path / "study.json"
    kills.command(tmp_path)
    (tmp_path / "study").mkdir(mode=0o555)
    done = subprocess.run(
        [*before, *kills.command(tmp_path), "--directory", tmp_path / "study", *SHORT],
        capture_output=True,
        text=True,
        cwd=kills.ROOT,
    )
    assert config.exists()
    assert done.returncode != 0
    output = done.stdout + done.stderr
    assert "'.snakemake' cannot be written: its folder is read-only" in output
    assert "Traceback" not in output


@pytest.mark.slow
def test_a_read_only_folder_of_results(tmp_path, prepared, before):
    directory = tmp_path / "study"
    shutil.copytree(prepared, directory, symlinks=True)
    missing = sorted((directory / "results/kills/preprocessed").iterdir())[0]
    missing.unlink()
    held = content(directory / "results")
    folders = [directory / "results", *(p for p in directory.glob("results/**/*") if p.is_dir())]
    for folder in folders:
        folder.chmod(0o555)
    code, output = kills.run(directory, *SHORT, before=before)
    planned, _ = kills.run(directory, *SHORT, "--dry-run", before=before)
    for folder in folders:
        folder.chmod(0o755)
    assert code != 0
    assert "'results/kills' cannot be written: its folder is read-only" in output
    assert "Traceback" not in output
    assert planned == 0
    assert content(directory / "results") == held
    completes(directory, prepared)


@pytest.mark.slow
def test_a_lock_left_behind_and_two_runs_at_once(tmp_path, prepared):
    first = kills.start(tmp_path, *SHORT)
    assert kills.busy(first)
    code, second = kills.run(tmp_path, *SHORT)
    assert first.poll() is None, "the first run ended before the second began: nothing was tested"
    assert code != 0
    assert kills.kill(first, "all")
    code, third = kills.run(tmp_path, *SHORT)
    assert code != 0
    for output in (second, third):
        message = output.split("Directory cannot be locked")[1]
        assert str(tmp_path) in message
        assert "--unlock" in message
        assert "Traceback" not in output
    assert kills.damaged(tmp_path / "results", {}) == []
    code, output = kills.run(tmp_path, "--unlock")
    assert code == 0, output
    completes(tmp_path, prepared)


@pytest.mark.slow
def test_the_first_of_two_runs_is_not_disturbed(tmp_path, prepared):
    first = kills.start(tmp_path, *SHORT)
    assert kills.busy(first)
    code, _ = kills.run(tmp_path, *SHORT)
    assert code != 0
    assert first.wait(timeout=kills.LIMIT) == 0
    completes(tmp_path, prepared)


@pytest.mark.slow
def test_killed_studies_end_like_undisturbed_ones(tmp_path):
    """The whole workflow, its head or a job: SIGKILL at random moments; the long one is soak's."""
    pace = kills.undisturbed(tmp_path / "reference")
    found = kills.kill_study(tmp_path / "killed", tmp_path / "reference", 4, seed=2026, pace=pace)
    assert found["kills"] == 4
    assert found["hangs"] == 0
    for key in ("differences", "damaged", "tracebacks"):
        assert found[key] == []


@pytest.mark.slow
def test_a_damaged_result_would_be_noticed(tmp_path, prepared):
    """The check that the tests above rest on."""
    results = tmp_path / "results"
    shutil.copytree(prepared / "results", results)
    assert kills.differences(tmp_path, prepared) == []
    whole = [path for path in results.rglob("*.*") if path.suffix in (".npz", ".gz", ".json")]
    whole = [path for path in whole if "logs" not in path.parts]
    assert len(whole) > 5
    for path in whole:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    named = {line.split(":")[0] for line in kills.damaged(results, {})}
    assert named == {str(path.relative_to(results)) for path in whole}
    assert kills.differences(tmp_path, prepared) != []
    Path(whole[0]).unlink()
    assert any("only in one" in line for line in kills.differences(tmp_path, prepared))
