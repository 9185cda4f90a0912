"""What other packages bring, found by their entry points."""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points

from xaiclip.errors import ConfigError

#: The group of methods: an entry point names a module (`xaiclip.explain`).
METHODS = "xaiclip.methods"
#: The group of models: an entry point names a function that gives one (`xaiclip.load_model`).
MODELS = "xaiclip.models"


def brought(group: str) -> dict[str, EntryPoint]:
    """What installed packages bring to a group, by name; nothing is imported.

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


def stated(group: str, name: str) -> str | None:
    """What tells that another version is installed of what a package brings; None if none does."""
    point = brought(group).get(name)
    if point is None:
        return None
    by = f" of {point.dist.name} {point.dist.version}" if point.dist else ""
    return f"{point.value}{by}"


def load(group: str, name: str) -> object | None:
    """What an installed package brings to a group under a name; None if none does.

    Raises:
        ConfigError: it cannot be imported, or two packages bring it.
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
