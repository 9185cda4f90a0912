"""Packages that only some need, and what others bring: the two ways in which an install differs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import EntryPoint, entry_points

from xaiclip.errors import ConfigError

#: Import name → the extra of this package that brings it (pyproject.toml).
EXTRAS = {
    "monai": "localizer",
    "open_clip": "localizer",
    "timm": "localizer",
    "transformers": "localizer",
    "lime": "lime",
    "captum": "gradients",
    "pydicom": "dicom",
    "gdcm": "dicom",
    "ptflops": "cost",
    "SimpleITK": "workflow",
    "snakemake": "workflow",
    "yaml": "workflow",
}

#: Groups of entry points through which other packages bring methods and models.
METHODS = "xaiclip.methods"
MODELS = "xaiclip.models"


def missing(error: BaseException) -> str | None:
    """The sentence for an import that failed because an extra is not installed, or None."""
    if not isinstance(error, ModuleNotFoundError) or not error.name:
        return None
    package = error.name.partition(".")[0]
    if package not in EXTRAS:
        return None
    return (
        f"the package '{package}' is not installed: it comes with the extra '{EXTRAS[package]}', "
        f"pip install 'xaiclip[{EXTRAS[package]}]'."
    )


@contextmanager
def named() -> Iterator[None]:
    """Where the block imports a package that an extra brings, its absence gets a sentence.

    Raises:
        ConfigError: it names the extra.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if sentence := missing(error):
            raise ConfigError(sentence) from error
        raise


def brought(group: str) -> dict[str, EntryPoint]:
    """What installed packages bring to a group, by name.

    Raises:
        ConfigError: two packages bring different things under one name.
    """
    found: dict[str, EntryPoint] = {}
    for one in entry_points(group=group):
        other = found.setdefault(one.name, one)
        if other.value != one.value:
            raise ConfigError(
                f"two packages bring '{one.name}' to '{group}' ({other.value} and {one.value}): "
                "uninstall one of them."
            )
    return found


def load(group: str, name: str) -> object | None:
    """What an installed package brings to a group under a name; None if nothing does.

    Raises:
        ConfigError: it cannot be imported.
    """
    point = brought(group).get(name)
    if point is None:
        return None
    try:
        return point.load()
    except Exception as error:  # somebody else's code
        raise ConfigError(
            f"'{name}' of '{group}' ({point.value}) cannot be imported "
            f"({type(error).__name__}: {error}): mend or uninstall the package that brings it."
        ) from error
