"""The benchmark of growth: its simulated tables are like real ones, its sums are right."""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from xaiclip.metrics.schema import EXPLANATIONS, concat_tables
from xaiclip.report.tables.data import read_rows
from xaiclip.report.tables.explanations import COLUMNS, table3
from xaiclip.report.tables.variants import table3_variants

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
import scale


@pytest.mark.slow
def test_simulated_parts_become_the_tables_of_a_study(tmp_path):
    rng = np.random.default_rng(0)
    paths = []
    for method, variants in scale.VARIANTS.items():
        for guidance in ("full", "roi"):
            paths.append(tmp_path / f"{method}_{guidance}.parquet")
            pq.write_table(scale._part(rng, ["a", "b"], method, guidance, variants), paths[-1])
    out = tmp_path / "explanations.parquet"
    concat_tables(paths, out, EXPLANATIONS)
    # five organs; values times variants of occlusion, LIME and RISE; two guidances
    assert pq.read_metadata(out).num_rows == 2 * 5 * 2 * (1 + 4 + 3) * 2
    rows = read_rows(out, COLUMNS)
    assert set(table3(rows, resamples=50).frame.n_cases) >= {2}
    assert len(table3_variants(rows, resamples=50).frame) > 0


def test_overhead_is_scheduling_and_starts_over_compute():
    rows = [
        {"part": "explanations", "cases": 8, "seconds": 240.0},
        {"part": "cheap jobs, dry run", "cpu_seconds": 2.0},
        {"part": "cheap jobs", "cpu_seconds": 2.0 + 0.2 * scale.JOBS},
        *({"part": f"start: {kind}", "cpu_seconds": 2.0} for kind in scale.STARTS),
        {"part": "dry run", "cases": 1000, "cases_per_job": 25, "n": 1600, "cpu_seconds": 6.0},
        {"part": "dry run", "cases": 50, "cases_per_job": 10, "n": 200, "cpu_seconds": 3.0},
    ]
    one, both = scale.overhead(pd.DataFrame(rows))
    assert one["cpu_seconds"] == pytest.approx(6 + 1600 * 0.2)
    assert one["share_of_compute"] == pytest.approx(one["cpu_seconds"] / 30_000)
    assert both["cpu_seconds"] - one["cpu_seconds"] == pytest.approx(1600 * 2)
    assert list(scale.overhead(pd.DataFrame(rows[:3]))) == []
