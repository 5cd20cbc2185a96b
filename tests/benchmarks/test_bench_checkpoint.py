"""The benchmark of saving: a small run from end to end."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "checkpoint.py"
HANG_SECONDS = 800
WAYS = {"ours-background", "ours-foreground", "torch.save", "dcp-async_save"}
ROUNDS = 2


def test_small_run_measures_every_implementation(tmp_path: Path) -> None:
    path = tmp_path / "sub" / "checkpoint.json"
    sizes = ("--millions", "0.02", "--ranks", "1", "--rounds", str(ROUNDS), "--folder", str(tmp_path))
    command = [sys.executable, str(SCRIPT), "--json", str(path), *sizes]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANG_SECONDS, check=False)
    assert done.returncode == 0, done.stderr
    assert "of the same save in the foreground" in done.stdout
    cases = json.loads(path.read_text())["cases"]
    by_kind = {kind: {c["implementation"] for c in cases if c["case"].startswith(kind)} for kind in ("stall", "until")}
    assert by_kind == {"stall": WAYS, "until": WAYS}
    loaded = {case["implementation"] for case in cases if case["case"].startswith("verify and load")}
    assert loaded == {"ours", "torch.save", "dcp-async_save"}
    assert all(len(case["seconds"]) == ROUNDS and min(case["seconds"]) > 0 for case in cases)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["sub"], "what was written must be gone"
