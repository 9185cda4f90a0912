"""The notebook of docs/examples runs as it is, and is kept without outputs."""

import ast
import json
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

PATH = Path(__file__).parents[1] / "docs" / "examples" / "explain.ipynb"
CELLS = json.loads(PATH.read_text(encoding="utf-8"))["cells"]


def run(source, names):
    """Run a cell; its last expression's value."""
    tree = ast.parse(source)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, str(PATH), "exec"), names)
    return eval(compile(ast.Expression(last.value), str(PATH), "eval"), names) if last else None


def test_it_is_kept_without_outputs():
    cells = [cell for cell in CELLS if cell["cell_type"] == "code"]
    assert len(cells) >= 5
    for cell in cells:
        assert cell["outputs"] == []
        assert cell["execution_count"] is None


def test_it_runs_without_the_network(monkeypatch):
    import socket

    def refused(*_):
        pytest.fail("the notebook asks the network")

    monkeypatch.setattr(socket.socket, "connect", refused)
    names = {}
    shown = [run("".join(c["source"]), names) for c in CELLS if c["cell_type"] == "code"]
    maps = names["maps"]
    assert list(maps) == ["liver", "spleen"]
    assert shown[-1] == ["liver.nii.gz", "maps.png"]
    rich = [one for one in shown if hasattr(one, "_repr_png_")]
    assert len(rich) == 2
    assert all(one._repr_png_().startswith(b"\x89PNG") for one in rich)
    assert names["guided"].guidance == "roi"
