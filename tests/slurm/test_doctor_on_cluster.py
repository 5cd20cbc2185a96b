"""``hsadml doctor`` on private clusters: what it finds of their sites, and what the ranks of its job find."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hsadml_dist.slurm.devcluster import daemons
from hsadml_dist.slurm.devcluster.cluster import Cluster

pytestmark = pytest.mark.slurm
ROOT = Path(__file__).parents[2]


def doctor(cluster: Cluster, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "hsadml_dist.launch.cli", "doctor", "--json", *arguments]
    environ = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return cluster.run(command, cwd=cluster.folder, extra_env=environ, timeout=120, check=False)


def findings(done: subprocess.CompletedProcess[str]) -> dict[tuple[str, str], dict[str, Any]]:
    return {(one["group"], one["name"]): one for one in json.loads(done.stdout)}


def test_a_strict_site_is_found_out_by_a_job(make_cluster: Callable[..., Cluster]) -> None:
    cluster = make_cluster(mode="netns", site="strict")
    done = doctor(cluster, "--nodes", "2", "--tasks-per-node", "1")
    assert done.returncode == 0, done.stdout + done.stderr
    found = findings(done)
    assert found["nodes", "ranks"]["found"] == "2 of 2 answered, on n1, n2"
    refused = found["nodes", "sbatch on nodes"]
    assert (refused["verdict"], refused["todo"]) == (
        "warn",
        "a chain submits its successor from a node: submit with --requeue self",
    )
    assert found["nodes", "slurm programs"]["found"] == "no sbatch on n1, n2"
    addresses = found["network", "addresses"]["found"]
    assert "n1 " in addresses and "n2 " in addresses and "(eth0)" in addresses
    assert found["folder on the nodes", "exclusive mkdir"]["verdict"] == "ok"
    assert found["folder on the nodes", "shared"]["verdict"] == "ok"
    assert found["slurm", "requeue wait"]["found"].startswith("121 s")
    assert "job 1: " in done.stderr
    assert not list(cluster.folder.glob(".hsadml-doctor-*"))


def test_a_job_that_cannot_start_is_cancelled(local_cluster: Cluster) -> None:
    local_cluster.run(["scontrol", "update", "NodeName=n1", "State=DRAIN", "Reason=test"])
    done = doctor(local_cluster, "--nodes", "2", "--timeout", "1")
    assert done.returncode == 1
    assert "was still PENDING when --timeout was over" in done.stderr
    queue = ["squeue", "--noheader"]
    assert daemons.wait_until(lambda: not local_cluster.run(queue).stdout, seconds=10)
    done = doctor(local_cluster, "--partition", "lwo")
    assert done.returncode == 2
    assert "--partition lwo: no such partition; there are: low, high (did you mean 'low'?)" in done.stderr
