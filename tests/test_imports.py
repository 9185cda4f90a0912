"""What starts with a script: a job of a second must not load a minute's worth of packages."""

import ast
import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from xaiclip.lazy import defer

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
#: Each takes a quarter of a second or more to load.
HEAVY = {
    *("torch", "torch._dynamo", "torchvision.models.resnet", "timm.models", "monai", "open_clip"),
    *("transformers", "segment_anything.predictor", "lime", "captum", "ptflops", "sklearn"),
    *("scipy.stats", "skimage", "matplotlib", "pandas", "jsonschema", "SimpleITK", "pydicom"),
}
#: Those of `HEAVY` that a script's imports may load; nibabel brings pydicom by itself.
NEEDED = {
    "attribute": {"torch", "pandas", "pydicom"},
    "cost": {"torch", "torch._dynamo", "ptflops", "open_clip", "transformers"},
    "evaluate_localizer": set(),
    "evaluate_segmenter": {"pydicom"},
    "find_slices": {"torch", "open_clip", "transformers", "pydicom"},
    "figures": {"matplotlib", "pandas", "skimage", "pydicom"},
    "localize": {"torch", "open_clip", "transformers"},
    "maps": {"pydicom"},
    "metrics": set(),
    "phantom": {"pydicom"},
    "prepare": set(),
    "preprocess": {"pydicom"},
    "provenance": set(),
    "roi": {"pydicom"},
    "score": {"torch", "pandas", "pydicom"},
    "segment": {"torch", "pydicom"},
    "skipped": {"pandas"},
    "slices": {"pydicom"},
    "table": {"pandas"},
    "train_localizer": {"torch", "open_clip", "transformers", "pandas"},
}


def loaded(code):
    """The modules of `HEAVY` that are there after ``code``, executed and not deferred."""
    code = f"""
import json, sys
sys.path.insert(0, {str(ROOT / "scripts")!r})
{code}
there = [name for name in {sorted(HEAVY)!r} if name in sys.modules]
deferred = lambda name: type(vars(sys.modules[name]).get("__getattr__")).__module__
print(json.dumps([name for name in there if deferred(name) != "xaiclip.lazy"]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize("script", NEEDED)
def test_a_script_loads_only_what_it_needs(script):
    tree = ast.parse((ROOT / f"scripts/{script}.py").read_text(encoding="utf-8"))
    (work,) = (node for node in tree.body if isinstance(node, ast.With))
    imports = [node for node in work.body if isinstance(node, ast.Import | ast.ImportFrom)]
    assert imports
    assert loaded("\n".join(map(ast.unparse, imports))) <= NEEDED[script]


def test_a_deferred_package_is_whole_for_whoever_asks(tmp_path, monkeypatch):
    package = tmp_path / "slow_package"
    (package / "inner").mkdir(parents=True)
    (package / "__init__.py").write_text(
        "__version__ = '2'\nfrom slow_package.part import ONE\nTWO = 2\n"
    )
    (package / "part.py").write_text("ONE = 1\n")
    (package / "inner/__init__.py").write_text("raise_later = 1 / 1\nTHREE = 3\n")
    (package / "inner/leaf.py").write_text("FOUR = 4\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("slow_package", "slow_package.inner", "slow_package.inner.leaf"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    defer("no_such_package", "no_such_package.inner", "slow_package", "slow_package.inner")
    from slow_package.inner.leaf import FOUR

    assert FOUR == 4
    import slow_package

    assert "TWO" not in vars(slow_package)
    assert "THREE" not in vars(slow_package.inner)
    assert not hasattr(slow_package, "__wrapped__")
    assert "TWO" not in vars(slow_package)  # Python's own look-ups load nothing
    assert slow_package.__version__ == "2"  # no look-up of Python's own
    assert slow_package.TWO == 2
    from slow_package.inner import THREE

    assert THREE == 3
    with pytest.raises(AttributeError, match="no attribute 'five'"):
        slow_package.five  # noqa: B018
    before = slow_package
    defer("slow_package")
    assert sys.modules["slow_package"] is before


@pytest.mark.parametrize("name", ["segment_anything", "torchvision", "open_clip", "timm"])
def test_deferred_packages_are_there_for_the_users_own_models(name):
    """After the project's imports, the package gives all that it gives without them."""
    assert find_spec(name)
    probe = {
        "segment_anything": "segment_anything.SamPredictor, segment_anything.modeling.Sam",
        "torchvision": "torchvision.models.resnet18(), torchvision.ops.nms",
        "open_clip": "open_clip.create_model, open_clip.get_model_config('ViT-B-32')['embed_dim']",
        "timm": "timm.create_model('vit_tiny_patch16_224')",
    }[name]
    code = "import xaiclip.localizer.model, xaiclip.models.segmenters.loading"
    assert loaded(f"{code}\nimport {name}\nprint({probe})") >= {"torch"}


def test_litemedsam_is_there_after_the_localizer():
    """Which defers timm: a command that locates, then segments, loads both in this order."""
    code = "import xaiclip.localizer.model, xaiclip.models.segmenters.lite as lite; lite.build()"
    assert loaded(code) >= {"torch"}


def test_library_never_imports_snakemake():
    for path in (ROOT / "scripts/xaiclip").rglob("*.py"):
        assert "snakemake" not in {
            line.split()[1].split(".")[0]
            for line in path.read_text(encoding="utf-8").splitlines()
            if line.strip().startswith(("import ", "from "))
        }, path
