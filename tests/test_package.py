"""The package: what is in the wheel, what it needs, and that it works where it is installed."""

import json
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import xaiclip
from xaiclip.errors import ConfigError, left_out, named_extras
from xaiclip.extras import EXTRAS
from xaiclip.resources import shipped
from xaiclip.workflow.units import units_of

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
LIBRARY = ROOT / "scripts" / "xaiclip"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
#: Import name → package, where they differ.
PACKAGES = {
    "cv2": "opencv-python-headless",
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
    "PIL": "pillow",
    "open_clip": "open_clip_torch",
    "segment_anything": "segment-anything",
    "yaml": "pyyaml",
    "gdcm": "python-gdcm",
    "mpl_toolkits": "matplotlib",
}
#: What a package brings along, and is imported through it or with it.
BROUGHT = {"timm": "open_clip_torch"}


def run(*command, folder):
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel of a copy: building leaves files behind."""
    copy = tmp_path_factory.mktemp("clone")
    for name in ("scripts/xaiclip", "config", "resources/compact"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, copy / name, ignore=ignored)
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copyfile(ROOT / name, copy / name)
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    run(*pip, "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", "made", ".", folder=copy)
    (made,) = (copy / "made").iterdir()
    return made


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    folder = tmp_path_factory.mktemp("installed")
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    run(*pip, "install", "-q", "--no-deps", "--target", str(folder), str(wheel), folder=folder)
    return folder


def python(folder, code, tmp_path):
    """Run code where the package is installed in ``folder``, in another folder; what it prints."""
    begin = f"import sys; sys.path.insert(0, {str(folder)!r})\n"
    return run(sys.executable, "-P", "-c", begin + code, folder=tmp_path)


# --- the wheel -----------------------------------------------------------------------------------


def test_the_wheel_holds_every_file_of_the_library_and_what_is_shipped(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    for file in LIBRARY.rglob("*"):
        if file.is_file() and "__pycache__" not in file.parts:
            assert f"xaiclip/{file.relative_to(LIBRARY).as_posix()}" in names
    for file in (ROOT / "resources" / "compact").iterdir():
        assert f"xaiclip/_shipped/compact/{file.name}" in names
    assert {name for name in names if name.startswith("xaiclip/_shipped/config/")} == {
        "xaiclip/_shipped/config/schema.json",
        "xaiclip/_shipped/config/samples.schema.json",
    }


def test_the_wheel_holds_nothing_else(wheel):
    tops = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert tops == {"xaiclip", f"xaiclip-{xaiclip.__version__}.dist-info"}
    assert wheel.stat().st_size < 20e6


def test_what_is_shipped_is_small_and_as_its_checksums_say():
    from xaiclip.files import sha256

    folder = ROOT / "resources" / "compact"
    lines = (folder / "SHA256SUMS").read_text(encoding="utf-8").splitlines()
    sums = {name: wanted for wanted, name in (line.split("  ") for line in lines)}
    files = {file.name for file in folder.iterdir()} - {"SHA256SUMS", "README.md"}
    assert sums.keys() == files
    assert all(sha256(folder / name) == wanted for name, wanted in sums.items())
    assert sum(file.stat().st_size for file in folder.iterdir()) <= 19e6


def test_installed_it_finds_its_files_and_explains(installed, tmp_path):
    code = """
import json, xaiclip
from xaiclip.resources import shipped
from xaiclip.config import default_config
maps = xaiclip.explain(
    "compact", shipped("compact", "example_ct.nii.gz"), boxes={"liver": (19, 48, 148, 164)},
    window=256, stride=256,
)
print(json.dumps([xaiclip.__file__, str(shipped("compact")), default_config()["run"],
                  maps.n_forwards, maps["liver"].shape, maps.guidance]))
"""
    file, folder, run_name, forwards, shape, guidance = json.loads(
        python(installed, code, tmp_path).splitlines()[-1]
    )
    assert Path(file).is_relative_to(installed)
    assert Path(folder) == installed / "xaiclip" / "_shipped" / "compact"
    assert (run_name, forwards, shape, guidance) == ("demo", 5, [225, 225], "full")


def test_in_a_clone_the_files_are_the_clones():
    assert shipped("compact", "sam.json") == ROOT / "resources" / "compact" / "sam.json"
    assert shipped("config", "schema.json") == ROOT / "config" / "schema.json"


def test_import_loads_no_other_library(installed, tmp_path):
    code = """
before = set(sys.modules)
import xaiclip
xaiclip.explain, dir(xaiclip)
new = {name.partition(".")[0] for name in set(sys.modules) - before}
print(sorted(new - set(sys.stdlib_module_names)))
"""
    assert python(installed, code, tmp_path).strip() == "['xaiclip']"


def test_the_command_is_an_entry_point(installed):
    (metadata,) = installed.glob("xaiclip-*.dist-info")
    assert "xaiclip = xaiclip.cli:main" in (metadata / "entry_points.txt").read_text()


# --- what it needs -------------------------------------------------------------------------------


def parts():
    """The requirements of the base (under '') and of each extra."""
    texts = {"": PROJECT["dependencies"], **PROJECT["optional-dependencies"]}
    return {extra: [Requirement(text) for text in some] for extra, some in texts.items()}


def names_of(requirements):
    return {canonicalize_name(one.name) for one in requirements}


def third_party():
    """Every package that the library imports, with a file that does."""
    found = {}
    for path in LIBRARY.rglob("*.py"):
        for unit in units_of(path, path.relative_to(LIBRARY.parent).parts[:-1]):
            for module in unit.imports:
                top = module.partition(".")[0]
                if top not in sys.stdlib_module_names and top != "xaiclip":
                    found[top] = path
    return found


def test_every_import_is_of_the_base_or_of_the_extra_that_is_named():
    every = parts()
    for top, path in third_party().items():
        package = canonicalize_name(BROUGHT.get(top) or PACKAGES.get(top, top))
        extra = EXTRAS.get(top, "")
        assert package in names_of(every[extra]), f"{path} imports {top}: extra {extra!r}"


def test_the_table_of_extras_is_the_projects():
    every = parts()
    for top, extra in EXTRAS.items():
        package = canonicalize_name(BROUGHT.get(top) or PACKAGES.get(top, top))
        assert package in names_of(every[extra])
        assert package not in names_of(every[""])


def test_every_requirement_has_a_lower_bound_that_the_lock_satisfies():
    lock = (ROOT / "envs" / "requirements.txt").read_text(encoding="utf-8")
    pins = {canonicalize_name(name): pin for name, pin in re.findall(r"^(\S+)==(\S+)", lock, re.M)}
    for requirement in (one for some in parts().values() for one in some):
        if requirement.name == "xaiclip":
            continue
        assert [one.operator for one in requirement.specifier] == [">="], requirement
        pin = pins[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(pin), f"{requirement}, but the lock has {pin}"


def test_all_is_every_extra_but_the_workflow():
    (whole,) = parts()["all"]
    assert whole.extras == set(parts()) - {"", "all", "workflow"}
    assert "xaiclip[all]" in PROJECT["optional-dependencies"]["workflow"]


def test_version_licence_and_authors_are_said_once(wheel):
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert PROJECT["dynamic"] == ["version"]
    assert citation["version"] == xaiclip.__version__
    assert f"-{xaiclip.__version__}-" in wheel.name
    assert citation["license"] == PROJECT["license"]
    authors = [one["name"] for one in citation["authors"]]
    assert authors == [one["name"] for one in PROJECT["authors"]]
    assert version("setuptools")  # the backend, which the lock of build tools pins


# --- an extra that is not installed --------------------------------------------------------------


@pytest.mark.parametrize(
    ("top", "extra"), [("open_clip", "localizer"), ("lime", "lime"), ("pydicom", "dicom")]
)
def test_an_extra_that_is_missing_is_named(top, extra, monkeypatch):
    monkeypatch.setitem(sys.modules, top, None)
    words = rf"'{top}'.*pip install 'xaiclip\[{extra}\]'"
    with pytest.raises(ConfigError, match=words), named_extras():
        __import__(top)
    skips = []
    # it is no case's fault
    with pytest.raises(ConfigError, match=words), left_out(skips, "case", "slices"):
        __import__(top)
    assert skips == []


def test_another_module_that_is_missing_is_what_it_is(monkeypatch):
    monkeypatch.setitem(sys.modules, "tarfile", None)
    with pytest.raises(ModuleNotFoundError, match="tarfile"), named_extras():
        __import__("tarfile")


def test_without_extras_the_base_explains(installed, tmp_path):
    code = f"""
for name in {sorted(EXTRAS)!r}:
    sys.modules[name] = None
import xaiclip
from xaiclip.resources import shipped
scan = shipped("compact", "example_ct.nii.gz")
box = {{"liver": (19, 48, 148, 164)}}
for method, settings in (("occlusion", dict(window=256, stride=256)), ("rise", dict(masks=4))):
    maps = xaiclip.explain("compact", scan, box, method, **settings)
    maps.metrics(), maps.picture()
from xaiclip.errors import ConfigError
for call in (lambda: xaiclip.locate(scan), lambda: xaiclip.explain("compact", scan, box, "lime")):
    try:
        call()
    except ConfigError as error:
        print(error)
"""
    localizer, lime = python(installed, code, tmp_path).splitlines()
    assert "xaiclip[localizer]" in localizer
    assert "xaiclip[lime]" in lime
