"""Fixtures of more than one file, and the order of files.

What fixtures need is imported when they are asked for.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from segment_anything.modeling import Sam

    from picture_study import Stored

# --- a made-up study, as files that figures are drawn from ---


@pytest.fixture(scope="session")
def slices() -> dict[str, Any]:
    from picture_study import some_slices

    return some_slices()


@pytest.fixture(scope="session")
def root(slices: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the study of ``slices``; no test writes into it."""
    from picture_study import make_files

    return make_files(slices, tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="session")
def stored(root: Path) -> Stored:
    """What lies in ``root``, read with numpy alone."""
    from picture_study import Stored

    return Stored(root)


# --- models ---


@pytest.fixture
def ran(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that a payload would make; and no way to the hub."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    return tmp_path / "payload-ran"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """For a model's files."""
    made = tmp_path / "model"
    made.mkdir()
    return made


@pytest.fixture(scope="module")
def sam() -> Sam:
    """A tiny one, whose every weight counts."""
    import torch
    from torch import nn

    from segmenter_models import tiny

    torch.manual_seed(0)
    model = tiny().eval()
    for parameter in model.parameters():  # zeros (positions) would hide what they do
        nn.init.normal_(parameter, std=0.2)
    return model


# --- published data sets ---


@pytest.fixture(scope="session")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CHAOS with two MR patients and one CT."""
    import published
    from dataset_files import LPS, anatomy

    folder = tmp_path_factory.mktemp("chaos")
    image, label = anatomy()
    published.chaos_mr(folder / "in", 13, image, label, LPS)
    published.chaos_mr(folder / "in", 1, image, label, LPS)
    published.chaos_ct(folder / "in", 5, image, label, LPS)
    return published.pack(folder / "in", folder / "CHAOS_Train_Sets.zip")


# --- the order of files ---


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first: one that began last would keep one core alone busy."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)  # stable
