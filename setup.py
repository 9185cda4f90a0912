"""What pyproject.toml cannot say: files of other folders become part of the package.

`xaiclip.resources` finds them, in a clone as in an installed package.
"""

from setuptools import find_packages, setup

SHIPPED = {
    "xaiclip._shipped.compact": "resources/compact",
    "xaiclip._shipped.config": "config",
}

setup(
    packages=[*find_packages("scripts", include=["xaiclip", "xaiclip.*"]), *SHIPPED],
    package_dir={"": "scripts", **SHIPPED},
    package_data={
        "": ["py.typed", "*.toml", "*.yaml", "*.json"],
        "xaiclip._shipped.compact": ["*"],
        "xaiclip._shipped.config": ["*.schema.json", "schema.json"],
    },
    exclude_package_data={"xaiclip._shipped.config": ["*.yaml", "*.md"]},
    include_package_data=False,
)
