"""``hsadml cluster``, in a process of its own for each call."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest


def hsadml(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "hsadml_dist.launch.cli", "cluster", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def test_commands_report_a_missing_cluster(tmp_path: Path) -> None:
    for arguments in (("status", tmp_path), ("exec", tmp_path, "squeue")):
        done = hsadml(*arguments)
        assert done.returncode == 1
        assert str(tmp_path) in done.stderr and "hsadml cluster up" in done.stderr
    assert hsadml("down", tmp_path).returncode == 0


def test_unknown_mode_is_a_usage_error(tmp_path: Path) -> None:
    done = hsadml("up", tmp_path / "box", "--mode", "nets")
    assert done.returncode == 2
    assert '"netns"' in done.stderr


@pytest.mark.slurm
@pytest.mark.skipif(not shutil.which("sbatch"), reason="Slurm is not installed: run slurm/devcluster/install.sh")
def test_cluster_up_status_exec_down(tmp_path: Path) -> None:
    box = tmp_path / "box"
    try:
        done = hsadml("up", box, "--nodes", "1")
        assert done.returncode == 0, done.stderr
        assert f"SLURM_CONF={box}/slurm.conf" in done.stdout
        assert hsadml("up", box).returncode == 1
        found = json.loads(hsadml("status", box, "--json").stdout)
        assert found["nodes"] == {"n1": "idle"}
        assert found["ready"] is True
        assert hsadml("exec", box, "srun", "--", "echo", "-n", "hello").stdout == "hello"
        assert hsadml("exec", box, "sh", "-c", "exit 7").returncode == 7
        assert hsadml("exec", box, "no-such-command").returncode == 2
        assert hsadml("exec", box).returncode == 2
    finally:
        done = hsadml("down", box)
    assert "cluster is down" in done.stdout
    assert hsadml("status", box).returncode == 1
