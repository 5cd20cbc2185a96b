"""The benchmark of engines: two of them on a small net."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "engines.py"
HANG_SECONDS = 800


@pytest.mark.soak
def test_small_run_measures_time_and_memory(tmp_path: Path) -> None:
    path = tmp_path / "sub" / "engines.json"
    small = ("--model", "resnet_gn_tiny", "--image-size", "32", "--engines", "bare-pytorch,ours-ddp")
    command = [sys.executable, str(SCRIPT), "--json", str(path), "--steps", "2", *small]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANG_SECONDS, check=False)
    assert done.returncode == 0, done.stderr
    assert "resident memory of a rank" in done.stdout
    cases = json.loads(path.read_text())["cases"]
    assert [case["implementation"] for case in cases] == ["bare-pytorch", "ours-ddp"]
    for case in cases:
        assert len(case["seconds"]) == 2 and min(case["seconds"]) > 0
        assert 0 < case["imports_mib"] < case["peak_mib"]
        assert case["extra_mib"] == case["peak_mib"] - case["imports_mib"]
