"""Content hashes: they follow imports, and nothing else."""

import os
import subprocess
import sys
import textwrap

import pytest

from xaiclip.workflow.provenance import SCRIPTS, Reach, code_hash


def write(root, files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
    return root


@pytest.fixture
def tree(tmp_path):
    files = {
        "run.py": """
            import numpy
            from lib.a import f
            from lib import sub
            f(sub.y)
        """,
        "lib/__init__.py": "",
        "lib/a.py": """
            from . import b
            def f(x):
                return b.g() + x
            def unused():
                return b.unused()
        """,
        "lib/b.py": """
            from typing import TYPE_CHECKING
            if TYPE_CHECKING:
                from lib.unused import x
            def g():
                from lib.late import h
                return h
            def unused():
                return 1
        """,
        "lib/late.py": "h = 1\n",
        "lib/unused.py": "x = 1\n",
        "lib/sub/__init__.py": "from .deep import y\n",
        "lib/sub/deep.py": "y = 1\n",
    }
    return write(tmp_path, files)


def behind(script, root=SCRIPTS):
    """The files that a script leads to, itself among them."""
    reach = Reach(root)
    reach.script(script)
    return {str(module.path.relative_to(root)) for module in reach.modules.values()}


def test_imports_are_followed_absolute_relative_and_late(tree):
    library = ("__init__", "a", "b", "late", "sub/__init__", "sub/deep")
    assert behind("run.py", tree) == {"run.py", *(f"lib/{name}.py" for name in library)}


@pytest.mark.parametrize(
    ("name", "old", "new", "changes"),
    [
        ("run.py", "f(sub.y)", "f(sub.y + 1)", True),
        ("lib/a.py", "b.g() + x", "b.g() - x", True),
        ("lib/late.py", "h = 1", "h = 2", True),
        ("lib/sub/deep.py", "y = 1", "y = 2", True),
        ("lib/unused.py", "x = 1", "x = 2", False),
        ("lib/a.py", "return b.unused()", "return 5", False),
        ("lib/b.py", "return 1", "return 2", False),
        ("lib/b.py", "    from lib.unused import x", "    from lib.unused import z", False),
    ],
)
def test_hash_changes_with_the_code_that_is_reached(tree, name, old, new, changes):
    before = code_hash("run.py", root=tree)
    text = (tree / name).read_text()
    assert old in text
    (tree / name).write_text(text.replace(old, new))
    assert (code_hash("run.py", root=tree) != before) == changes
    (tree / name).write_text(text)
    assert code_hash("run.py", root=tree) == before


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("def f(x):", "# a comment\ndef f(x):"),
        ("def f(x):", '"""Words."""\n\n\ndef f(x):'),
        ("def f(x):\n", 'def f(x):\n    """What it does."""\n'),
        ("b.g() + x", "(b.g()\n        + x)  # why"),
        ("def f(x):\n", "def f(\n    x,\n):\n\n"),
    ],
)
def test_comments_docstrings_and_layout_are_no_code(tree, old, new):
    before = code_hash("run.py", root=tree)
    path = tree / "lib" / "a.py"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    assert code_hash("run.py", root=tree) == before


def test_docstrings_are_code_where_code_reads_them(tree):
    path = tree / "lib" / "a.py"
    path.write_text(
        path.read_text().replace("def f(x):", 'def f(x):\n    """One."""\n    f.__doc__')
    )
    before = code_hash("run.py", root=tree)
    path.write_text(path.read_text().replace("One", "Two"))
    assert code_hash("run.py", root=tree) != before


#: Ways of a module to run ``target`` of lib.low, or to read its number, from lib.top's ``f``.
WAYS = {
    "call": ("from lib.low import target", "def f(): return target()"),
    "alias": ("import lib.low as low", "def f(): return low.target()"),
    "dotted": ("import lib.low", "def f(): return lib.low.target()"),
    "from package": ("from lib import low as other", "def f(): return other.target()"),
    "late": ("", "def f():\n    from lib.low import target as t\n    return t()"),
    "re-exported": ("from lib.between import target", "def f(): return target()"),
    "star": ("from lib.low import *", "def f(): return target()"),
    "star of a star": ("from lib.stars import *", "def f(): return target()"),
    "handed on": ("from lib.low import target", "def f(): return list(map(target, []))"),
    "getattr": ("from lib import low", "def f(): return getattr(low, 'tar' + 'get')()"),
    "by name": ("import importlib", "def f(): return importlib.import_module('lib.low')"),
    "a table": (
        "from lib.low import target",
        "TABLE = {'t': target}\ndef f(): return TABLE['t']()",
    ),
    "a table of others": ("from lib.between import TABLE", "def f(): return TABLE['t']()"),
    "at import": ("from lib.low import target", "VALUE = target()\ndef f(): return 1"),
    "bare at import": ("from lib.low import target", "target()\ndef f(): return 1"),
    "in a branch": ("from lib.low import target", "if True:\n    v = target()\ndef f(): return 1"),
    "in a loop": ("from lib.low import target", "for v in [target()]: pass\ndef f(): return 1"),
    "decorator": ("from lib.low import target", "@target\ndef g(): pass\ndef f(): return 1"),
    "decorator of a method": (
        "from lib.low import target",
        "class A:\n    @target\n    def g(self): pass\ndef f(): return 1",
    ),
    "default": ("from lib.low import target", "def g(x=target()): pass\ndef f(): return 1"),
    "default of a method": (
        "from lib.low import target",
        "class A:\n    def g(self, x=target()): pass\ndef f(): return 1",
    ),
    "field": ("from lib.low import target", "class A:\n    x = target()\ndef f(): return 1"),
    "base": ("from lib.low import Target", "class A(Target): pass\ndef f(): return A().go()"),
    "made base": ("from lib.low import target", "class A(target()): pass\ndef f(): return 1"),
    "metaclass": ("from lib.low import Meta", "class A(metaclass=Meta): pass\ndef f(): return 1"),
    "told of": ("from lib.low import Told", "class A(Told):\n    n = 1\ndef f(): return 1"),
    "method": ("from lib.low import Target", "def f(): return Target().go()"),
    "closure": (
        "from lib.low import target",
        "def f():\n    def g(): return target()\n    return g",
    ),
    "lambda": ("from lib.low import target", "f = lambda: target()"),
    "assigned": ("from lib.low import target", "f = target"),
    "global": (
        "from lib.low import target",
        "f = None\ndef make():\n    global f\n    f = target\nmake()",
    ),
    "either": (
        "try:\n    from lib.low import target\nexcept ImportError:\n    target = None",
        "def f(): return target()",
    ),
    "other branch": (
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    target = 1\nelse:\n"
        "    from lib.low import target",
        "def f(): return target()",
    ),
    "globals": ("from lib.low import target", "def f(): return globals()['target']()"),
    "default argument's name": (
        "from lib.low import target",
        "def f(target=target): return target()",
    ),
    "lazy attribute": ("import lib", "def f(): return lib.lazy"),
}
LAZY = """
    def __getattr__(name):
        import lib.low
        return lib.low.target
"""
LOW = """
    NUMBER = 1
    def target(*args):
        return NUMBER
    class Target:
        def go(self):
            return NUMBER
    class Meta(type):
        def __new__(cls, *args):
            return super().__new__(cls, *args) if NUMBER else None
    class Told:
        def __init_subclass__(cls):
            cls.number = NUMBER
"""


@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_code_is_followed(tmp_path, way):
    files = {
        "run.py": "from lib.top import f\nf()\n",
        "lib/__init__.py": LAZY,
        "lib/between.py": "from lib.low import target\nTABLE = dict(t=target)\n",
        "lib/stars.py": "from lib.low import *\n",
        "lib/low.py": LOW,
        "lib/top.py": "\n".join(WAYS[way]) + "\n",
    }
    write(tmp_path, files)
    before = code_hash("run.py", root=tmp_path)
    path = tmp_path / "lib" / "low.py"
    path.write_text(path.read_text().replace("NUMBER = 1", "NUMBER = 2"))
    assert code_hash("run.py", root=tmp_path) != before


@pytest.mark.parametrize(
    "text",
    [
        "def f(): return 1\ndef other(): return target()",
        "def f(): return 1\nclass A:\n    def go(self): return target()",
        "def f(): return 1\nTABLE = {'t': target}",
        "def f(): return 1\nother = lambda: target()",
        "def f(target): return target",
        "def f(*, target=1): return lambda: target",
        "@cache\ndef other(): return target()\ndef f(): return 1",
        "@dataclass(frozen=True)\nclass A:\n    x: target = 1\ndef f(): return 1",
        "@told()\ndef other(): return target()\ndef f(): return 1",
    ],
)
def test_code_that_is_not_reached_does_not_count(tmp_path, text):
    head = (
        "from __future__ import annotations\nfrom functools import cache\n"
        "from contextlib import contextmanager\nfrom dataclasses import dataclass\n"
        "from lib.low import target\n@contextmanager\ndef told(): yield\n"
    )
    files = {
        "run.py": "from lib.top import f\nf(1)\n",
        "lib/__init__.py": "",
        "lib/low.py": LOW,
        "lib/top.py": head + text + "\n",
    }
    write(tmp_path, files)
    before = code_hash("run.py", root=tmp_path)
    path = tmp_path / "lib" / "low.py"
    path.write_text(path.read_text().replace("NUMBER = 1", "NUMBER = 2"))
    assert code_hash("run.py", root=tmp_path) == before


def test_a_name_that_stands_for_something_else_is_other_code(tmp_path):
    """The functions are the same; which one is called is not."""
    files = {"run.py": "from math import floor as f\nf(1)\n", "low.py": ""}
    write(tmp_path, files)
    before = code_hash("run.py", root=tmp_path)
    (tmp_path / "run.py").write_text("from math import ceil as f\nf(1)\n")
    assert code_hash("run.py", root=tmp_path) != before


def test_hash_changes_with_the_data_beside_a_module(tree):
    before = code_hash("run.py", root=tree)
    (tree / "lib" / "unused.toml").write_text("x = 1\n")
    assert code_hash("run.py", root=tree) == before
    for name in ("late.toml", "a.yaml"):
        (tree / "lib" / name).write_text("x = 1\n")
        first = code_hash("run.py", root=tree)
        (tree / "lib" / name).write_text("x = 2\n")
        assert len({before, first, code_hash("run.py", root=tree)}) == 3
        before = code_hash("run.py", root=tree)


def test_hash_changes_with_a_file_that_the_code_names(tree):
    (tree / "lib" / "late.py").write_text("h = open('numbers.csv')\n")
    (tree / "lib" / "numbers.csv").write_text("1\n")
    before = code_hash("run.py", root=tree)
    (tree / "lib" / "numbers.csv").write_text("2\n")
    assert code_hash("run.py", root=tree) != before


def test_a_definition_given_by_name_counts_and_those_beside_it_do_not(tree):
    path = tree / "lib" / "unused.py"
    path.write_text("def one(): return two()\ndef two(): return 2\ndef three(): return 3\n")
    before = code_hash("run.py", ["lib.unused:one", "lib.unused:four?"], root=tree)
    assert before != code_hash("run.py", root=tree)
    path.write_text(path.read_text().replace("return 3", "return 4"))
    assert code_hash("run.py", ["lib.unused:one", "lib.unused:four?"], root=tree) == before
    path.write_text(path.read_text().replace("return 2", "return 4"))
    assert code_hash("run.py", ["lib.unused:one", "lib.unused:four?"], root=tree) != before
    with pytest.raises(FileNotFoundError, match="no 'four'"):
        code_hash("run.py", ["lib.unused:four"], root=tree)


def test_what_a_module_given_by_name_imports_counts_too(tree):
    (tree / "lib" / "unused.py").write_text("from lib import far\n")
    (tree / "lib" / "far.py").write_text("z = 1\n")
    before = code_hash("run.py", ["lib.unused"], root=tree)
    (tree / "lib" / "far.py").write_text("z = 2\n")
    assert code_hash("run.py", ["lib.unused"], root=tree) != before


def test_code_of_another_package_counts_where_it_is_given(tree, tmp_path_factory):
    other = write(
        tmp_path_factory.mktemp("site"),
        {
            "mine/__init__.py": "",
            "mine/way.py": "def plans(): return 1\ndef far(): return 1\n",
        },
    )
    given = {"also": ["mine.way:plans"], "root": tree, "brought": {"mine": other}}
    before = code_hash("run.py", **given)
    path = other / "mine" / "way.py"
    path.write_text(path.read_text().replace("far(): return 1", "far(): return 2"))
    assert code_hash("run.py", **given) == before
    path.write_text(path.read_text().replace("plans(): return 1", "plans(): return 2"))
    assert code_hash("run.py", **given) != before


def test_the_same_content_under_another_name_is_other_code(tree):
    """Two modules that change places."""
    before = code_hash("run.py", root=tree)
    late, deep = tree / "lib" / "late.py", tree / "lib" / "sub" / "deep.py"
    late.write_text("h = y = 2\n")
    between = code_hash("run.py", root=tree)
    late.write_text("h = 1\n")
    deep.write_text("h = y = 2\n")
    assert len({before, between, code_hash("run.py", root=tree)}) == 3


def test_what_a_package_answers_for_a_missing_name_counts_and_leads_nowhere(tree):
    text = "def __getattr__(name):\n    from lib.unused import x\n    raise AttributeError({})\n"
    (tree / "lib" / "__init__.py").write_text(text.format("name"))
    before = code_hash("run.py", root=tree)
    (tree / "lib" / "unused.py").write_text("x = 2\n")
    assert code_hash("run.py", root=tree) == before
    (tree / "lib" / "__init__.py").write_text(text.format("'none'"))
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
        subprocess.check_output(
            [sys.executable, "-c", program, SCRIPTS, tree],
            env=os.environ | {"PYTHONHASHSEED": seed},
            text=True,
        ).strip()
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
    assert module in behind(script)


def test_touching_a_file_changes_nothing(tree):
    before = code_hash("run.py", root=tree)
    (tree / "lib" / "a.py").touch()
    assert code_hash("run.py", root=tree) == before


def test_modules_imported_by_name_are_given(tree):
    assert code_hash("run.py", root=tree) != code_hash("run.py", ["lib.unused"], root=tree)
    with pytest.raises(FileNotFoundError, match=r"lib\.nothing"):
        code_hash("run.py", ["lib.nothing"], root=tree)
