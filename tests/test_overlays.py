"""Config files: what YAML would swallow in silence is refused, with the file and the line."""

import re

import pytest

from xaiclip.config.overlays import check_file
from xaiclip.errors import ConfigError

DOUBLE = [
    ("data: {sheet: a}\nseed: 1\ndata: {source: sheet}\n", "data", 3, 1),
    ("a:\n  b: 1\n  c: 2\n  b: 3\n", "b", 4, 2),
    ("a: [1, {x: 1, y: 2, x: 1}]\n", "x", 1, 1),
    ("data: {labels: {1: liver, 2: spleen,\n  1: x}}\n", "1", 2, 1),
    ('labels: {1: liver, "1": spleen}\n', "1", 1, 1),
    ('"data": 1\n\ndata: 2\n', "data", 3, 1),
    ("? data\n: 1\n? data\n: 2\n", "data", 3, 1),
    ("x: &a {b: 1, b: 2}\ny: *a\n", "b", 1, 1),
    ('{"data": {"a": 1},\n "data": {}}', "data", 2, 1),
]


@pytest.mark.parametrize(("text", "key", "line", "first"), DOUBLE)
def test_a_key_that_stands_twice(tmp_path, text, key, line, first):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        check_file(path)
    assert str(caught.value) == (
        f"{path}, line {line}: the key '{key}' stands there twice, first in line {first}, and the "
        "last would win: join them."
    )


def test_a_key_that_stands_twice_in_json_with_tabs(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text('{\n\t"data": {"a": 1},\n\t"data": {}}')
    with pytest.raises(ConfigError, match=re.escape(f"{path}: the key 'data' stands twice")):
        check_file(path)
    path.write_text('{\n\t"data": {"a": 1}}')
    check_file(path)


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("run: 0012", "0012 as 10"),
        ("data: {cases: [0012]}", "0012 as 10"),
        ("labels: {010: liver}", "010 as 8"),
        ("run: 2024-01-31", "2024-01-31"),
        ("time: 1:30", "1:30 as 90"),
        ("window: 1:30.5", "1:30.5 as 90.5"),
        ("x: 0_7", "0_7 as 7"),
    ],
)
def test_numbers_that_are_not_what_they_look_like(tmp_path, text, read):
    path = tmp_path / "mine.yaml"
    path.write_text(f"a: 1\n{text}\n")
    with pytest.raises(ConfigError) as caught:
        check_file(path)
    assert f"{path}, line 2: YAML reads" in str(caught.value)
    assert read in str(caught.value)
    assert "quotes" in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "# nothing",
        "a: {x: 1}\nb: {x: 1}\n",
        "run: '0012'\nb: \"2024-01-31\"\n",
        "seed: 0\nx: 0.5\ny: -0.5\nz: 10\nw: 1e-3\n",
        "base: &b {x: 1}\nmine: {<<: *b, x: 2}\n",
        "a: &a [*a]\n",
        "\ufeffrun: a\n",
    ],
)
def test_what_is_fine(tmp_path, text):
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    check_file(path)


def test_files_that_are_no_text_and_templates(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_bytes(b"\xff\xfea\0")
    with pytest.raises(ConfigError, match="not a UTF-8 text file"):
        check_file(path)
    path.write_text("__use_yte__: true\nrun: a\n")
    with pytest.raises(ConfigError, match="line 1: templates"):
        check_file(path)
    with pytest.raises(ConfigError, match="not a UTF-8 text file"):
        check_file(tmp_path / "none.yaml")
