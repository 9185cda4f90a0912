"""What looks wrong about a scan reaches warnings.tsv, beside skipped.tsv."""

import logging
import runpy
from pathlib import Path
from types import SimpleNamespace

import pandas as pd

from xaiclip.data.slices import save_slices
from xaiclip.errors import Caution, Skip
from xaiclip.files import save_arrays

SCRIPTS = Path(__file__).parents[1] / "scripts"


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
    level = logging.getLogger().level
    handlers = logging.getLogger().handlers[:]
    try:
        runpy.run_path(
            str(SCRIPTS / "skipped.py"),
            init_globals={
                "snakemake": SimpleNamespace(
                    input=SimpleNamespace(
                        slices=[first, second],
                        roi=[tmp_path / "none.npz"],
                        segmentation=[],
                        explanations=tmp_path / "explanations.parquet",
                    ),
                    output=SimpleNamespace(
                        skipped=tmp_path / "skipped.tsv", warnings=tmp_path / "warnings.tsv"
                    ),
                    params=SimpleNamespace(),
                    resources=SimpleNamespace(),
                    threads=1,
                    log=[],
                    rule="skipped",
                )
            },
        )
    finally:
        logging.getLogger().setLevel(level)
        logging.getLogger().handlers[:] = handlers
    skipped = pd.read_csv(tmp_path / "skipped.tsv", sep="\t")
    assert skipped[["case", "reason"]].to_numpy().tolist() == [["case_1", "image: damaged."]]
    warnings = pd.read_csv(tmp_path / "warnings.tsv", sep="\t")
    assert warnings.to_numpy().tolist() == [
        ["case_1", "slices", "label: 3 voxels."],
        ["case_2", "slices", "image: its grey values are not Hounsfield units."],
    ]
