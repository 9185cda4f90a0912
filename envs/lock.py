"""Pin every package with its hashes (needs uv): `make lock`.

Writes a lock for each requirements*.in, and for each stack a conda environment whose pip part is
the whole closure of its packages, so that pip has nothing to choose there either.
"""

import subprocess
import tempfile
from pathlib import Path

ENVS = Path(__file__).parent
LOCKS = ("requirements-build", "requirements", "requirements-dev")
#: What each stack imports, and what its environment is for. The other packages follow from these.
STACKS = {
    "data": (
        "Volumes, slices, preprocessing, metrics: no models.",
        "jsonschema nibabel numpy opencv-python-headless pandas pillow pyarrow pydicom python-gdcm "
        "scikit-image scikit-learn scipy SimpleITK",
    ),
    "report": (
        "Tables and figures.",
        "jsonschema matplotlib nibabel numpy opencv-python-headless pandas pillow pyarrow pydicom "
        "python-gdcm scikit-image scikit-learn scipy SimpleITK",
    ),
    "torch": (
        "Everything that loads a model.",
        "captum jsonschema lime matplotlib monai nibabel numpy open_clip_torch "
        "opencv-python-headless pandas pillow ptflops pyarrow pydicom python-gdcm safetensors "
        "scikit-image scikit-learn scipy segment-anything SimpleITK torch torchvision tqdm "
        "transformers",
    ),
}


def pinned(source: Path, target: Path, *options: str) -> None:
    """Resolve ``source`` into ``target``; what ``target`` pins already stays where it can."""
    subprocess.run(
        [
            *("uv", "pip", "compile", "--quiet", "--universal", "--python-version", "3.11"),
            *("--generate-hashes", "--no-annotate", "--no-strip-extras", *options),
            *("--custom-compile-command", "make lock", str(source), "--output-file", str(target)),
        ],
        check=True,
    )


def requirements(lock: str) -> list[str]:
    """Each requirement of a lock on one line, with its hashes."""
    lines = lock.replace("\\\n", " ").splitlines()
    return [" ".join(line.split()) for line in lines if line and not line.startswith("#")]


def environment(words: str, lock: str) -> str:
    """A conda environment that holds a lock."""
    lines = [
        f"# {words} Written by `make lock`: do not edit.",
        *("channels:", "  - conda-forge", "  - nodefaults", "dependencies:"),
        *("  - python =3.11", "  - pip", "  - pip:"),
        *(f'      - "{line}"' for line in requirements(lock)),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    for name in LOCKS:
        pinned(ENVS / f"{name}.in", ENVS / f"{name}.txt")
    with tempfile.TemporaryDirectory() as folder:
        for name, (words, packages) in STACKS.items():
            source, target = Path(folder, f"{name}.in"), Path(folder, f"{name}.txt")
            source.write_text("\n".join([*packages.split(), "setuptools", ""]), encoding="utf-8")
            pinned(source, target, "--constraints", str(ENVS / "requirements.txt"))
            text = environment(words, target.read_text(encoding="utf-8"))
            (ENVS / f"{name}.yaml").write_text(text, encoding="utf-8")
