"""``hsadml submit``, as far as it goes without Slurm; with it, see tests/slurm."""

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
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=60, check=False)


def test_a_dry_run_prints_the_script_and_writes_nothing(tmp_path: Path) -> None:
    done = hsadml(tmp_path, "demo", "--nodes", "2", "--tasks-per-node", "2", "--time", "1:00:00", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("#!/bin/bash\n#SBATCH --job-name=demo-")
    assert "#SBATCH --time=1:00:00\n" in done.stdout
    assert f"run_dir={tmp_path}/runs/demo-" in done.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("--nodes", "2"), 2, "--tasks-per-node"),
        (("--nodes", "0", "--tasks-per-node", "2"), 2, "--nodes 0: at least 1"),
        (("--nodes", "1", "--tasks-per-node", "5"), 1, "cannot be shared evenly by 5 ranks"),
        (("--nodes", "1", "--tasks-per-node", "2", "--time", "soon"), 1, "time: is 'soon'; allowed forms"),
        (("--nodes", "1", "--tasks-per-node", "2", "--requeue", "always"), 2, "always"),
        (("--nodes", "1", "--tasks-per-node", "2", "train.stepps=3"), 1, "did you mean 'steps'"),
    ],
)
def test_a_wrong_wish_is_refused_by_the_dry_run(
    tmp_path: Path, arguments: tuple[str, ...], code: int, said: str
) -> None:
    done = hsadml(tmp_path, "demo", *arguments, "--dry-run")
    assert done.returncode == code, done.stderr
    assert said in done.stderr
    assert not done.stdout


def test_without_slurm_nothing_is_written(tmp_path: Path) -> None:
    done = hsadml(tmp_path, "demo", "--nodes", "1", "--tasks-per-node", "2", path=str(tmp_path))
    assert done.returncode == 1
    assert "Slurm is not installed here: sbatch is not on PATH" in done.stderr
    assert not list(tmp_path.iterdir())
