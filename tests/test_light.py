"""What takes a second to load is loaded only where it is used: each job is a process of its own."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = str(Path(__file__).parents[1] / "scripts")


def loaded(code, *modules):
    """Which of the modules a fresh Python holds after ``code``."""
    code += f"\nimport sys; print([name for name in {modules!r} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {SCRIPTS!r})\n{code}"],
        capture_output=True,
        text=True,
        check=True,
    )
    return ast.literal_eval(done.stdout.splitlines()[-1])


def imports(script):
    """The imports of a script, as it does them."""
    with open(f"{SCRIPTS}/{script}.py", encoding="utf-8") as file:
        body = file.read().partition("with job(")[2]
    lines = [line.removeprefix("    ") for line in body.splitlines()[1:]]
    taken, more = [], False
    for line in lines:
        if more or line.startswith(("import ", "from ")):
            taken.append(line)
            more = "(" in line or (more and ")" not in line)
    assert taken
    return "\n".join(taken)


@pytest.mark.parametrize(
    "script",
    [
        *("attribute", "maps", "figures", "metrics", "skipped", "provenance"),
        *("table", "slices", "preprocess", "roi"),
        *("evaluate_localizer", "evaluate_segmenter", "savings"),
    ],
)
def test_a_job_without_a_model_loads_no_torch(script):
    code = imports(script)
    if script in ("attribute", "savings"):  # what they load by name
        code += "\nfrom xaiclip.explain import method"
        code += "\nfor name in ('occlusion', 'lime', 'rise', 'shapley'): method(name)"
    assert loaded(code, "torch") == []


def test_a_job_that_runs_models_loads_torch():
    assert loaded(imports("score"), "torch") == ["torch"]


def test_the_compact_model_is_loaded_without_the_compiler():
    code = "from xaiclip.models.segmenters.loading import load_segmenter"
    code += "\nload_segmenter({'model': 'compact'}, 'cpu', 'fp32')"
    assert loaded(code, "torch", "torch._dynamo") == ["torch"]


def test_a_network_of_shapes_only_has_the_shapes():
    from xaiclip.models.segmenters import compact
    from xaiclip.weights import shapes_only

    with shapes_only():
        outline = compact.build().state_dict()
    made = compact.build().state_dict()
    assert {name: value.shape for name, value in outline.items()} == {
        name: value.shape for name, value in made.items()
    }
    assert {value.device.type for value in outline.values()} == {"meta"}
    assert all(bool(value.isfinite().all()) for value in made.values())
