"""Content hashes: they follow imports, and nothing else."""

import pytest

from xaiclip.provenance import SCRIPTS, code_hash, imported_files


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
