"""What looks wrong about a scan reaches warnings.tsv, beside skipped.tsv."""

import logging
import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from xaiclip.data.geometry import Geometry
from xaiclip.data.record import Slice, save_slices
from xaiclip.errors import Caution, Skip
from xaiclip.files import save_arrays
from xaiclip.metrics.schema import SEGMENTER, write_table

SCRIPTS = Path(__file__).parents[1] / "scripts"


class Named(SimpleNamespace):
    """Files by name that can be walked over, as Snakemake's are."""

    def __iter__(self):
        return iter(vars(self).values())


def run(script, **given):
    """Run a script as its rule would."""
    root = logging.getLogger()
    level, handlers = root.level, root.handlers[:]
    snakemake = SimpleNamespace(
        **{"params": SimpleNamespace(), **given},
        resources=SimpleNamespace(),
        threads=1,
        log=[],
        rule=script,
    )
    try:
        runpy.run_path(str(SCRIPTS / script), init_globals={"snakemake": snakemake})
    finally:
        root.setLevel(level)
        root.handlers[:] = handlers


def test_both_lists_are_written(tmp_path):
    first, second = tmp_path / "a.npz", tmp_path / "b.npz"
    doubt = Caution("case_2", "slices", "image: its grey values are not Hounsfield units.")
    save_slices(first, [], [Skip("case_1", "slices", "image: damaged.")], [doubt, doubt])
    save_slices(second, [], [], [Caution("case_1", "slices", "label: 3 voxels.")])
    save_arrays(tmp_path / "none.npz", {}, {"skips": []})
    columns = ["case", "slice", "organ", "method", "guidance", "skipped"]
    pd.DataFrame({column: pd.Series(dtype=object) for column in columns}).to_parquet(
        tmp_path / "explanations.parquet"
    )
    write_table(tmp_path / "segmenter.parquet", [], SEGMENTER)
    run(
        "skipped.py",
        input=Named(
            slices=[first, second],
            preprocessed=[tmp_path / "none.npz"],
            stages=[],
            maps=[],
            segmenter=tmp_path / "segmenter.parquet",
            explanations=tmp_path / "explanations.parquet",
        ),
        output=Named(skipped=tmp_path / "skipped.tsv", warnings=tmp_path / "warnings.tsv"),
    )
    skipped = pd.read_csv(tmp_path / "skipped.tsv", sep="\t")
    assert skipped[["case", "reason"]].to_numpy().tolist() == [["case_1", "image: damaged."]]
    warnings = pd.read_csv(tmp_path / "warnings.tsv", sep="\t")
    assert warnings.to_numpy().tolist() == [
        ["case_1", "slices", "label: 3 voxels."],
        ["case_2", "slices", "image: its grey values are not Hounsfield units."],
    ]


def test_distances_in_mm_need_pixels_of_a_size(tmp_path):
    """A picture has Dice and IoU, but no HD95 and no ASSD."""
    label = np.zeros((8, 8), np.uint8)
    label[2:6, 2:6] = 1
    affine = np.diag([-1.0, -1.0, 1.0, 1.0])
    slices = [
        Slice(name, 0, "CT", label * 99, label, Geometry(affine, (8, 8, 1), measured))
        for name, measured in (("scan", True), ("picture", False))
    ]
    save_slices(tmp_path / "slices.npz", slices)
    mask = np.roll(label > 0, 1, axis=0)
    masks = {f"{one.key}/liver/{kind}": mask for one in slices for kind in ("roi", "reference")}
    save_arrays(tmp_path / "masks.npz", masks, {"skips": []})
    cases = [
        {"name": name, "modality": "CT", "split": "test", "image": "", "label": "", "problem": None}
        for name in ("scan", "picture")
    ]
    run(
        "evaluate_segmenter.py",
        input=Named(slices=tmp_path / "slices.npz", segmentation=tmp_path / "masks.npz"),
        output=Named(rows=tmp_path / "rows.parquet"),
        params=SimpleNamespace(cfg={"organs": ["liver"], "cases": cases}),
    )
    rows = pd.read_parquet(tmp_path / "rows.parquet").set_index("case")
    assert rows["dice"].to_list() == pytest.approx([0.75] * 4)
    assert rows.loc["picture", ["hd95_mm", "assd_mm"]].isna().all(axis=None)
    assert (rows.loc["scan", ["hd95_mm", "assd_mm"]] > 0).all(axis=None)
