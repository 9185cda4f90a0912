# The project's folder, its library, and what can be wrong before the study is looked at.
import sys
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path

from snakemake.exceptions import WorkflowError

# The project, also where another workflow includes it as a module.
ROOT = Path(str(workflow.current_basedir)).parent
if not (ROOT / "scripts" / "xaiclip").is_dir():
    raise WorkflowError(
        f"{ROOT} holds no scripts/xaiclip: clone the project, and give the path of its Snakefile."
    )
if str(workflow.modifier.modify_path("results/x")) != "results/x":
    raise WorkflowError(
        "a module of this project takes no prefix: name the study in 'run'."
    )
# Jobs would import what stands before their own folder, while reruns hang on this one's code.
found = find_spec("xaiclip")
if found is None or found.origin is None:
    sys.path.append(str(ROOT / "scripts"))
elif Path(found.origin).resolve() != (ROOT / "scripts/xaiclip/__init__.py").resolve():
    raise WorkflowError(
        f"the library would be imported from {Path(found.origin).parent} instead of {ROOT}/scripts: "
        "take it out of PYTHONPATH, or uninstall it."
    )

from xaiclip.errors import ConfigError
from xaiclip.config.names import check_path
from xaiclip.config.overlays import check_file as check_overlay
from xaiclip.config.prechecks import (
    check_backbone,
    check_factory,
    check_file,
    check_phantom,
    check_shipped,
)


def check_command():
    """Refuse what Snakemake would leave aside in silence, or a shell take for a command."""
    for option, also in (("--configfile", "--configfiles"), ("--config", "-C")):
        words = [word.split("=")[0] for word in sys.argv]
        if words.count(option) + words.count(also) > 1:
            raise ConfigError(
                f"{option} is given twice, and the last would win: name all after one {option}."
            )
    for file in workflow.configfiles:
        check_overlay(file)
    check_path(str(Path.cwd()), "the working directory")
    check_path(str(ROOT), "the project's folder")


def check_models():
    """Refuse weights, names and functions that no job could use."""
    localizer, segmenter = config["localizer"], config["segmenter"]
    keys = ("backbone", "pretrained", "blocks")
    check_backbone(*(localizer[key] for key in keys), ROOT / "resources" / "compact")
    path = localizer["weights"]
    if path == "compact":
        check_shipped(ROOT / "resources" / "compact" / "localizer.safetensors")
    elif path and path not in BY_HAND:
        check_file(path, "localizer.weights")
    path = segmenter["checkpoint"]
    if segmenter["model"] == "compact" and not segmenter["factory"] and path:
        check_file(f"{path}/sam.safetensors", "segmenter.checkpoint")
    elif path and path != "auto":
        check_file(path, "segmenter.checkpoint")
    if segmenter["factory"]:
        check_factory(segmenter["factory"], segmenter["options"])
    if settings := config["data"]["phantom"]["settings"]:
        from compact.phantom import PhantomSettings  # costs a second

        check_phantom(settings, [field.name for field in fields(PhantomSettings)])
