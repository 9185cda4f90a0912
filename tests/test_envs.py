"""The locks hold all that their packages need; the conda environments what the scripts import."""

import importlib.util
import re
import sys
from importlib.metadata import distribution, version
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from xaiclip.config.methods import methods
from xaiclip.published.catalogue import DATASETS
from xaiclip.workflow.provenance import SCRIPTS, STAGES, Reach

ROOT = Path(__file__).parents[1]
ENVS = ROOT / "envs"
STACKS = ("data", "report", "torch")
LOCKS = ("requirements-build", "requirements", "requirements-dev")
PACKAGES = {
    "cv2": "opencv-python-headless",
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
    "PIL": "pillow",
    "SimpleITK": "simpleitk",
    "open_clip": "open-clip-torch",
    "segment_anything": "segment-anything",
    "yaml": "pyyaml",
    "gdcm": "python-gdcm",
}
LOCAL = {"_job", "compact", "xaiclip"}


def lines_of(name):
    """Requirements of a lock or of the pip part of a conda environment, hashes and all."""
    if name in STACKS:
        content = yaml.safe_load((ENVS / f"{name}.yaml").read_text(encoding="utf-8"))
        (pip,) = [entry["pip"] for entry in content["dependencies"] if isinstance(entry, dict)]
        return pip
    return lock_module().requirements((ENVS / f"{name}.txt").read_text(encoding="utf-8"))


def lock_module():
    spec = importlib.util.spec_from_file_location("lock", ENVS / "lock.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def pins(name):
    """Package → what is pinned of it for this Python and machine."""
    found = {}
    for line in lines_of(name):
        requirement = Requirement(line.split(" --hash")[0])
        if requirement.marker is None or requirement.marker.evaluate():
            package = canonicalize_name(requirement.name)
            assert package not in found, f"{name}: {package} is pinned twice"
            found[package] = requirement
    return found


def version_of(requirement):
    (pin,) = requirement.specifier
    assert pin.operator == "=="
    return pin.version


def needs(package, extras):
    """What an installed package asks for, with these extras of its own."""
    for text in distribution(package).requires or ():
        requirement = Requirement(text)
        marker = requirement.marker
        if marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            yield requirement


def missing(locked):
    """What the packages of a lock need and the lock does not hold."""
    for package, pinned in locked.items():
        for wanted in needs(package, pinned.extras):
            held = locked.get(canonicalize_name(wanted.name))
            if held is None:
                yield f"{package} needs {wanted}"
            elif not wanted.specifier.contains(version_of(held), prereleases=True):
                yield f"{package} needs {wanted}, not {held}"
            elif not wanted.extras <= held.extras:
                yield f"{package} needs {wanted}; the lock has no such extra"


@pytest.mark.parametrize("name", [*LOCKS, *STACKS])
def test_every_line_is_one_version_with_hashes(name):
    for line in lines_of(name):
        version_of(Requirement(line.split(" --hash")[0]))
        assert re.search(r"( --hash=sha256:[0-9a-f]{64})+$", line), line
        assert "://" not in line


@pytest.mark.slow
@pytest.mark.parametrize("name", [*LOCKS, *STACKS])
def test_the_lock_holds_all_that_its_packages_need(name):
    locked = pins(name)
    assert locked
    for package, pinned in locked.items():  # else what it needs cannot be looked up
        assert version(package) == version_of(pinned), "the environment is not that of the locks"
    assert list(missing(locked)) == []


def test_a_lock_with_a_hole_is_seen():
    locked = pins("requirements-dev")
    without = {name: pin for name, pin in locked.items() if name != "iniconfig"}
    assert any(words.startswith("pytest needs iniconfig") for words in missing(without))
    bare = locked | {"coverage": Requirement(f"coverage=={version('coverage')}")}
    assert any("no such extra" in words for words in missing(bare))
    old = locked | {"numpy": Requirement("numpy==1.0")}
    assert any("not numpy==1.0" in words for words in missing(old))


@pytest.mark.parametrize("name", ["requirements-build", "requirements", *STACKS])
def test_the_locks_agree(name):
    everything = pins("requirements-dev") | pins("requirements-build")
    for package, pinned in pins(name).items():
        assert version_of(pinned) == version_of(everything[package])


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_holds_what_its_source_names(name):
    names = set()
    for line in (ENVS / f"{name}.in").read_text(encoding="utf-8").splitlines():
        if line and line[0] not in "#-":
            names.add(canonicalize_name(line))
    assert names <= set(pins(name))


def test_packages_that_are_published_as_source_find_what_builds_them():
    # these two have no wheel; setuptools alone builds both, and no other build tool is locked
    for package in ("lime", "connection-pool"):
        assert package in pins("requirements")
    assert {"pip", "setuptools"} == set(pins("requirements-build"))


def test_readme_and_makefile_install_alike():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for words in (
        "install --no-deps --require-hashes -r envs/requirements-build.txt",
        "install --no-deps --no-build-isolation --require-hashes -r envs/requirements.txt",
        "pip check",
    ):
        assert words in readme
        assert words.replace("envs/requirements.txt", "$<") in makefile.replace("--quiet ", "")


def rules():
    """Script and environment of every rule."""
    text = "\n".join(
        path.read_text(encoding="utf-8") for path in sorted((ROOT / "rules").glob("*.smk"))
    )
    pattern = r'conda:\s+"\.\./envs/(\w+)\.yaml".*?script:\s+"\.\./scripts/(\w+\.py)"'
    return sorted({(script, env) for env, script in re.findall(pattern, text, re.S)})


def third_party(script):
    """Packages that a script and the project's code behind it import."""
    reach = Reach(SCRIPTS)
    reach.script(script)
    for part in STAGES.get(script, ()):  # methods are imported by name
        for one in methods(own=True).values():
            reach.named(f"{one.module}:{part}")
    if script == "prepare.py":  # so are adapters
        for name in DATASETS:
            reach.whole(f"xaiclip.data.{name}")
    modules = {
        imported.split(".")[0]
        for name, number in reach.reached | reach.touched
        for imported in reach.modules[name].units[number].imports
    }
    return {
        canonicalize_name(PACKAGES.get(module, module))
        for module in modules - LOCAL - set(sys.stdlib_module_names)
    }


def test_every_rule_with_a_script_names_an_environment():
    text = "\n".join(
        path.read_text(encoding="utf-8") for path in sorted((ROOT / "rules").glob("*.smk"))
    )
    assert text.count("script:") == text.count("conda:") == len(re.findall(r"\n +log:", text))


@pytest.mark.slow
@pytest.mark.parametrize(("script", "env"), rules())
def test_environment_holds_what_the_script_imports(script, env):
    assert third_party(script) - set(pins(env)) == set()


@pytest.mark.parametrize("env", STACKS)
def test_environments_are_what_make_lock_writes(env):
    lock = lock_module()
    words, packages = lock.STACKS[env]
    assert {canonicalize_name(name) for name in packages.split()} <= set(pins(env))
    text = (ENVS / f"{env}.yaml").read_text(encoding="utf-8")
    body = "\n".join(f"{line}" for line in lines_of(env))
    assert text == lock.environment(words, body)
