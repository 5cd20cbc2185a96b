"""The benchmark of the intervals: a small run from end to end."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "interval_coverage.py"
HANG_SECONDS = 800


def test_small_run_writes_a_share_for_each_case_and_method(tmp_path: Path) -> None:
    path = tmp_path / "sub" / "coverage.json"
    command = [sys.executable, str(BENCHMARK), "--tiny", "--seed", "3", "--json", str(path)]
    subprocess.run(command, check=True, capture_output=True, timeout=HANG_SECONDS)
    cases = json.loads(path.read_text())["cases"]
    assert len(cases) == 2 * 3 * 2 * 5  # methods, patients, correlations, quantities
    assert {(one["repeats"], one["seed"]) for one in cases} == {(20, 3)}
    ours = [one for one in cases if one["implementation"] == "jackknife_t"]
    assert all(one["share"] >= 0.7 for one in ours if one["case"].startswith("coverage"))
    assert all(one["share"] <= 0.3 for one in ours if one["case"].startswith("type I"))
