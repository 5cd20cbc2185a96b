"""``hsadml submit`` without Slurm; tests/slurm submits to clusters."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


def hsadml(folder: Path, *arguments: str, path: str | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "hsadml_dist.launch.cli", "submit", *arguments]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PATH": path or os.environ["PATH"]}
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=300, check=False)


def test_dry_run_prints_the_script_and_writes_nothing(tmp_path: Path) -> None:
    done = hsadml(tmp_path, "demo", "--nodes", "2", "--tasks-per-node", "2", "--time", "1:00:00", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("#!/bin/bash\n#SBATCH --job-name=demo-")
    assert "#SBATCH --time=1:00:00\n" in done.stdout
    assert f"run_dir={tmp_path}/runs/demo-" in done.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "code", "fact"),
    [
        (("--nodes", "2"), 2, "--tasks-per-node"),
        (("--nodes", "0", "--tasks-per-node", "2"), 2, "--nodes 0: "),
        (("--nodes", "1", "--tasks-per-node", "5"), 1, "train.global_batch"),
        (("--nodes", "1", "--tasks-per-node", "2", "--time", "soon"), 1, "'soon'"),
        (("--nodes", "1", "--tasks-per-node", "2", "--requeue", "always"), 2, "always"),
        (("--nodes", "1", "--tasks-per-node", "2", "train.stepps=3"), 1, "'steps'"),
    ],
)
def test_dry_run_refuses_invalid_requests(tmp_path: Path, arguments: tuple[str, ...], code: int, fact: str) -> None:
    done = hsadml(tmp_path, "demo", *arguments, "--dry-run")
    assert done.returncode == code, done.stderr
    assert fact in done.stderr
    assert not done.stdout


def test_submit_without_slurm_writes_nothing(tmp_path: Path) -> None:
    done = hsadml(tmp_path, "demo", "--nodes", "1", "--tasks-per-node", "2", path=str(tmp_path))
    assert done.returncode == 1
    assert "sbatch" in done.stderr and done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())
