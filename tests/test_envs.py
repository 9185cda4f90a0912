"""The conda environments hold what the scripts of their rules import, in the pinned versions."""

import ast
import re
import sys
from pathlib import Path

import pytest
import yaml

from xaiclip.catalogue import DATASETS
from xaiclip.provenance import SCRIPTS, executed, imported_files

ROOT = Path(__file__).parents[1]
PACKAGES = {
    "cv2": "opencv-python-headless",
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
    "PIL": "pillow",
    "SimpleITK": "simpleitk",
    "open_clip": "open_clip_torch",
    "segment_anything": "segment-anything",
}
LOCAL = {"_job", "xaiclip"}


def normal(name):
    return name.lower().replace("_", "-")


def pins(name):
    """Package → version of an environment file."""
    content = yaml.safe_load((ROOT / "envs" / f"{name}.yaml").read_text(encoding="utf-8"))
    found = {}
    for entry in content["dependencies"]:
        for line in entry["pip"] if isinstance(entry, dict) else [entry]:
            package, _, version = re.sub(r"\s", "", line).replace("==", "=").partition("=")
            found[normal(package)] = version
    return found


def rules():
    """Script, environment and methods of every rule."""
    text = "\n".join(
        path.read_text(encoding="utf-8") for path in sorted((ROOT / "rules").glob("*.smk"))
    )
    pattern = r'conda:\s+"\.\./envs/(\w+)\.yaml".*?script:\s+"\.\./scripts/(\w+\.py)"'
    return sorted({(script, env) for env, script in re.findall(pattern, text, re.S)})


def third_party(script):
    """Packages that a script and the project's code behind it import."""
    files = set(imported_files(SCRIPTS / script))
    if script in ("score.py", "attribute.py", "savings.py"):  # methods are imported by name
        for method in ("occlusion", "lime", "rise"):
            files |= set(imported_files(SCRIPTS / f"xaiclip/explain/{method}.py"))
    if script == "prepare.py":  # so are adapters
        for name in DATASETS:
            files |= set(imported_files(SCRIPTS / f"xaiclip/data/{name}.py"))
    modules = set()
    for path in files:
        for node in executed(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                modules |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                modules.add(node.module.split(".")[0])
    return {
        normal(PACKAGES.get(module, module))
        for module in modules - LOCAL - set(sys.stdlib_module_names)
    }


def test_every_rule_with_a_script_names_an_environment():
    text = "\n".join(
        path.read_text(encoding="utf-8") for path in sorted((ROOT / "rules").glob("*.smk"))
    )
    assert text.count("script:") == text.count("conda:") == len(re.findall(r"\n +log:", text))


@pytest.mark.parametrize(("script", "env"), rules())
def test_environment_holds_what_the_script_imports(script, env):
    assert third_party(script) - set(pins(env)) == set()


@pytest.mark.parametrize("env", ["data", "torch", "report"])
def test_environments_pin_what_the_requirements_pin(env):
    text = (ROOT / "envs/requirements.txt").read_text(encoding="utf-8")
    locked = {
        (normal(name), version)
        for name, version in re.findall(r"^([\w.-]+)==([^\s;]+)", text, re.M)
    }
    for package, version in pins(env).items():
        if package not in ("python", "pip"):
            assert (package, version) in locked, f"envs/{env}.yaml: {package} {version}"
