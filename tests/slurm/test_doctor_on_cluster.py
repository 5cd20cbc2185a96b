"""``hsadml doctor`` on private clusters: its findings about the site, and those of the ranks of its job."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hsadml_dist.slurm.devcluster.cluster import Cluster
from tests.slurm.cluster_jobs import wait_empty

pytestmark = pytest.mark.slurm
ROOT = Path(__file__).parents[2]


def doctor(cluster: Cluster, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "hsadml_dist.launch.cli", "doctor", "--json", *arguments]
    environ = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return cluster.run(command, cwd=cluster.folder, extra_env=environ, timeout=600, check=False)


def findings(done: subprocess.CompletedProcess[str]) -> dict[tuple[str, str], dict[str, Any]]:
    return {(one["group"], one["name"]): one for one in json.loads(done.stdout)}


def test_doctor_detects_the_limits_of_a_strict_site(make_cluster: Callable[..., Cluster]) -> None:
    cluster = make_cluster(mode="netns", site="strict")
    done = doctor(cluster, "--nodes", "2", "--tasks-per-node", "1")
    assert done.returncode == 0, done.stdout + done.stderr
    found = findings(done)
    assert "2 of 2" in found["nodes", "ranks"]["found"]
    refused = found["nodes", "sbatch on nodes"]
    assert refused["verdict"] == "warn"
    assert "--requeue self" in refused["todo"]
    assert "sbatch" in found["nodes", "slurm programs"]["found"]
    addresses = found["network", "addresses"]["found"]
    assert "n1 " in addresses and "n2 " in addresses and "(eth0)" in addresses
    assert found["folder on the nodes", "exclusive mkdir"]["verdict"] == "ok"
    assert found["folder on the nodes", "shared"]["verdict"] == "ok"
    assert found["slurm", "requeue wait"]["found"].startswith("121 s")
    assert "job 1: " in done.stderr
    assert not list(cluster.folder.glob(".hsadml-doctor-*"))


def test_doctor_cancels_a_job_that_cannot_start(local_cluster: Cluster) -> None:
    local_cluster.run(["scontrol", "update", "NodeName=n1", "State=DRAIN", "Reason=test"])
    done = doctor(local_cluster, "--nodes", "2", "--timeout", "1")
    assert done.returncode == 1
    assert "PENDING" in done.stderr and "--timeout" in done.stderr
    wait_empty(local_cluster)
    done = doctor(local_cluster, "--partition", "lwo")
    assert done.returncode == 2
    assert "--partition lwo" in done.stderr and "low, high" in done.stderr and "'low'" in done.stderr
