"""What docs/security.md says is tried, is tried somewhere."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| (?!---)(?!.*\| tried by \|).*\|$", PAGE, re.M)


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`(test_\w+\.py)`", PAGE))))
def test_every_test_that_is_named_is_there(name):
    assert "def test_" in (ROOT / "tests" / name).read_text(encoding="utf-8")


def test_every_row_names_its_test():
    assert len(ROWS) > 20
    for row in ROWS:
        assert re.fullmatch(r"(`test_\w+\.py`(, )?)+ \|", row.rsplit(" | ", 1)[1]), row


def test_the_limits_are_the_codes():
    from xaiclip import weights
    from xaiclip.localizer.clip_weights import openai_checksums
    from xaiclip.published import download

    assert f"under {download.SLOWEST} bytes a second" in PAGE
    assert f"{weights.MAX_BYTES >> 30} GiB at most" in PAGE
    assert len(openai_checksums()) == 9
    assert "one of the nine that OpenAI published" in PAGE
