"""Packages that only some need: each belongs to an extra of this one (pyproject.toml)."""

from __future__ import annotations

#: Import name → the extra that brings it.
EXTRAS = {
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


def missing(error: BaseException) -> str | None:
    """The sentence for an import that failed because an extra is not installed; else None."""
    if not isinstance(error, ModuleNotFoundError) or not error.name:
        return None
    package = error.name.partition(".")[0]
    if package not in EXTRAS:
        return None
    extra = EXTRAS[package]
    return (
        f"the package '{package}' is not installed: the extra '{extra}' brings it "
        f"(pip install 'xaiclip[{extra}]')."
    )
