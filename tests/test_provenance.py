"""Content hashes: they follow imports, and nothing else."""

import os
import subprocess
import sys

import pytest

from xaiclip.workflow.provenance import SCRIPTS, code_hash, imported_files


@pytest.fixture
def tree(tmp_path):
    (tmp_path / "lib" / "sub").mkdir(parents=True)
    (tmp_path / "run.py").write_text("import numpy\nfrom lib.a import f\nfrom lib import sub\n")
    (tmp_path / "lib" / "__init__.py").write_text("")
    (tmp_path / "lib" / "a.py").write_text("from . import b\n")
    (tmp_path / "lib" / "b.py").write_text(
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    from lib.unused import x\n"
        "def g():\n    from lib.late import h\n"
    )
    (tmp_path / "lib" / "late.py").write_text("h = 1\n")
    (tmp_path / "lib" / "unused.py").write_text("x = 1\n")
    (tmp_path / "lib" / "sub" / "__init__.py").write_text("from .deep import y\n")
    (tmp_path / "lib" / "sub" / "deep.py").write_text("y = 1\n")
    return tmp_path


def test_imports_are_followed_absolute_relative_and_late(tree):
    names = {str(path.relative_to(tree)) for path in imported_files(tree / "run.py", tree)}
    assert names == {
        "run.py",
        "lib/__init__.py",
        "lib/a.py",
        "lib/b.py",
        "lib/late.py",
        "lib/sub/__init__.py",
        "lib/sub/deep.py",
    }


@pytest.mark.parametrize(
    ("edited", "changes"),
    [("run.py", True), ("lib/late.py", True), ("lib/sub/deep.py", True), ("lib/unused.py", False)],
)
def test_hash_changes_with_what_is_imported(tree, edited, changes):
    before = code_hash("run.py", root=tree)
    path = tree / edited
    path.write_text(path.read_text() + "# edited\n")
    assert (code_hash("run.py", root=tree) != before) == changes


def test_hash_changes_with_the_data_beside_a_module(tree):
    before = code_hash("run.py", root=tree)
    (tree / "lib" / "unused.toml").write_text("x = 1\n")
    assert code_hash("run.py", root=tree) == before
    (tree / "lib" / "late.toml").write_text("x = 1\n")
    first = code_hash("run.py", root=tree)
    (tree / "lib" / "late.toml").write_text("x = 2\n")
    assert len({before, first, code_hash("run.py", root=tree)}) == 3


def test_every_form_of_an_import_is_followed(tmp_path):
    """Several names at once, aliases, packages on the way, two levels up, the other branch."""
    files = {
        "run.py": "import json, pack.one as o, pack.two\n",
        "pack/__init__.py": "",
        "pack/one.py": "",
        "pack/two.py": "from pack.inner.low import f as g\n",
        "pack/inner/__init__.py": "from .. import three\n",
        "pack/inner/low.py": (
            "import typing\n"
            "if typing.TYPE_CHECKING:\n    from pack import never\n"
            "else:\n    from pack import other\n"
            "try:\n    from ..four import x\nexcept ImportError:\n    from pack import five\n"
        ),
        **{f"pack/{name}.py": "" for name in ("three", "four", "five", "other", "never")},
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    names = {
        p.relative_to(tmp_path).as_posix() for p in imported_files(tmp_path / "run.py", tmp_path)
    }
    assert names == set(files) - {"pack/never.py"}
    before = code_hash("run.py", root=tmp_path)
    for name in files:
        path = tmp_path / name
        path.write_text(files[name] + "# edited\n")
        assert (code_hash("run.py", root=tmp_path) == before) == (name == "pack/never.py"), name
        path.write_text(files[name])
        assert code_hash("run.py", root=tmp_path) == before


def test_what_a_module_given_by_name_imports_counts_too(tree):
    (tree / "lib" / "unused.py").write_text("from lib import far\n")
    (tree / "lib" / "far.py").write_text("z = 1\n")
    before = code_hash("run.py", ["lib.unused"], root=tree)
    (tree / "lib" / "far.py").write_text("z = 2\n")
    assert code_hash("run.py", ["lib.unused"], root=tree) != before


def test_the_same_content_under_another_name_is_other_code(tree):
    """Two modules that change places."""
    before = code_hash("run.py", root=tree)
    late, deep = tree / "lib" / "late.py", tree / "lib" / "sub" / "deep.py"
    one, two = late.read_text(), deep.read_text()
    late.write_text(two)
    deep.write_text(one)
    assert code_hash("run.py", root=tree) != before


def test_a_module_that_becomes_a_package_is_other_code(tmp_path):
    (tmp_path / "run.py").write_text("import lib\n")
    (tmp_path / "lib.py").write_text("x = 1\n")
    before = code_hash("run.py", root=tmp_path)
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib.py").rename(tmp_path / "lib" / "__init__.py")
    assert code_hash("run.py", root=tmp_path) != before


def test_the_hash_does_not_hang_on_the_process(tree):
    """Sets are walked in another order in each process."""
    program = (
        "import sys, pathlib; sys.path.insert(0, sys.argv[1])\n"
        "from xaiclip.workflow.provenance import code_hash\n"
        "print(code_hash('run.py', root=pathlib.Path(sys.argv[2])))"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", program, str(SCRIPTS), str(tree)],
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for seed in ("1", "2", "3")
    }
    assert found == {code_hash("run.py", root=tree)}


@pytest.mark.parametrize(
    ("script", "module"),
    [
        ("score.py", "xaiclip/models/segmenters/frame.py"),
        ("score.py", "xaiclip/models/segmenters/decoder.py"),
        ("roi.py", "xaiclip/preprocess.py"),
        ("train_localizer.py", "xaiclip/localizer/prompts.py"),
        ("localize.py", "xaiclip/localizer/backbone.py"),
        ("slices.py", "xaiclip/data/nifti.py"),
        ("segment.py", "xaiclip/models/segmenters/base.py"),
    ],
)
def test_the_modules_behind_a_script(script, module):
    assert SCRIPTS / module in imported_files(SCRIPTS / script)


def test_touching_a_file_changes_nothing(tree):
    before = code_hash("run.py", root=tree)
    (tree / "lib" / "a.py").touch()
    assert code_hash("run.py", root=tree) == before


def test_modules_imported_by_name_are_given(tree):
    assert code_hash("run.py", root=tree) != code_hash("run.py", ["lib.unused"], root=tree)
    with pytest.raises(FileNotFoundError, match=r"lib\.nothing"):
        code_hash("run.py", ["lib.nothing"], root=tree)


def test_library_never_imports_snakemake():
    for path in (SCRIPTS / "xaiclip").rglob("*.py"):
        assert "snakemake" not in {
            line.split()[1].split(".")[0]
            for line in path.read_text(encoding="utf-8").splitlines()
            if line.strip().startswith(("import ", "from "))
        }, path
