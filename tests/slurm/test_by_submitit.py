"""Jobs that submitit starts, on real clusters, with fake ranks; a real training is in the long tests."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hsadml_dist.errors import ConfigError
from hsadml_dist.run.folder import RunFolder
from hsadml_dist.slurm import client
from hsadml_dist.slurm.by_submitit import submit_by_submitit
from hsadml_dist.slurm.devcluster import daemons
from hsadml_dist.slurm.devcluster.cluster import Cluster
from hsadml_dist.slurm.job_records import SUBMITIT_FOLDER, job_output_paths, read_job_records
from hsadml_dist.slurm.sbatch import JobRequest
from tests.slurm.cluster_jobs import count_events, preempt, show_job, wait_for, wait_state
from tests.slurm.fake_slurm_rank import work

ROOT = Path(__file__).parents[2]
RequestOf = Callable[..., JobRequest]
pytestmark = pytest.mark.slurm


@pytest.fixture
def queue(monkeypatch: pytest.MonkeyPatch) -> Callable[[Cluster, JobRequest], str]:
    """Submit with the interpreter and the tests at hand."""

    def put(cluster: Cluster, request: JobRequest) -> str:
        monkeypatch.setenv("SLURM_CONF", str(cluster.conf_file))
        return submit_by_submitit(dataclasses.replace(request, python=sys.executable, working_dir=ROOT), work)

    return put


def said(request: JobRequest) -> str:
    """Return the jobs' output."""
    return "\n".join(path.read_text() for path in sorted((request.run_dir / SUBMITIT_FOLDER).glob("*.out")))


def test_a_preempted_job_comes_back_and_ends(
    make_cluster: Callable[..., Cluster], request_of: RequestOf, queue: Callable[..., str]
) -> None:
    """On a default site, where no user signal is sent: submitit alone would start from the beginning."""
    cluster = make_cluster(site="default")
    request = request_of(time_limit="10")
    job = queue(cluster, request)
    wait_for(request, "started", 0)
    other = preempt(cluster)
    wait_for(request, "stopped", 0)
    wait_state(cluster, other, "COMPLETED")
    found = wait_state(cluster, job, "PENDING")
    assert (found["Restarts"], found["TimeLimit"]) == ("1", "00:10:00")
    cluster.run(["scontrol", "update", f"jobid={job}", "starttime=now"])
    wait_for(request, "finished", 1)
    wait_state(cluster, job, "COMPLETED")
    [row] = read_job_records(RunFolder(request.run_dir))
    assert (row.job, row.requeue, row.backend) == (job, "self", "submitit")
    assert (request.run_dir / "ended" / job).read_text() == "finished\n"
    assert [path.name for path in job_output_paths(RunFolder(request.run_dir), job) if path.exists()] == [
        f"{job}_0_log.out"
    ]


def test_a_notice_alone_brings_it_back_too_and_a_cancelled_one_stays_away(
    local_cluster: Cluster, request_of: RequestOf, queue: Callable[..., str]
) -> None:
    told, cancelled = request_of("told"), request_of("cancelled")
    job = queue(local_cluster, told)
    wait_for(told, "started", 0)
    local_cluster.run(["scancel", "--signal=USR2", job])
    wait_for(told, "finished", 1)
    assert count_events(told, "stopped", 0) == 4
    other = queue(local_cluster, cancelled)
    wait_for(cancelled, "started", 0)
    client.cancel(other, local_cluster.env())
    found = wait_state(local_cluster, other, "CANCELLED")
    assert found["Restarts"] == "0"


def test_of_an_array_only_what_was_stopped_comes_back(
    local_cluster: Cluster, request_of: RequestOf, queue: Callable[..., str], folder: Path
) -> None:
    parts = [request_of(f"part-{index}", seconds=seconds) for index, seconds in enumerate((0.2, 60))]
    (folder / "array").mkdir()
    elements = tuple(part.run_dir for part in parts)
    job = queue(local_cluster, dataclasses.replace(parts[0], run_dir=folder / "array", elements=elements))
    wait_for(parts[0], "finished", 0)
    wait_for(parts[1], "started", 0)
    local_cluster.run(["scancel", "--signal=USR2", f"{job}_1"])
    wait_for(parts[1], "finished", 1)
    gone = ["squeue", "--noheader"]
    assert daemons.wait_until(lambda: not local_cluster.run(gone).stdout.strip(), seconds=30, pause=0.1)
    assert [count_events(part, "started", 1) for part in parts] == [0, 4]
    assert [[row.job for row in read_job_records(RunFolder(one))] for one in elements] == [[f"{job}_0"], [f"{job}_1"]]


def test_what_submitit_cannot_do_is_refused_before_anything_is_written(request_of: RequestOf) -> None:
    request = dataclasses.replace(request_of(requeue="chain"), launcher=("apptainer", "exec"))
    with pytest.raises(ConfigError) as caught:
        submit_by_submitit(request, work)
    told = [str(fault) for fault in caught.value.faults]
    assert told == [
        "job: requeue: is 'chain'; with --backend submitit allowed: self, none",
        "job: container: cannot be had with --backend submitit; allowed: none",
    ]
    assert not (request.run_dir / SUBMITIT_FOLDER).exists()


def test_options_reach_slurm(local_cluster: Cluster, request_of: RequestOf, queue: Callable[..., str]) -> None:
    wanted: dict[str, Any] = {"mem": "100M", "gres": "gpu:1", "options": ("--comment=a b", "--exclusive")}
    request = dataclasses.replace(request_of(seconds=0.1, requeue="none"), partition="high", **wanted)
    job = queue(local_cluster, request)
    wait_for(request, "finished", 0)
    found = show_job(local_cluster, job)
    assert (found["Partition"], found["Requeue"], found["MinMemoryNode"]) == ("high", "0", "100M")
    started = [json.loads(line) for path in request.run_dir.glob("rank-*") for line in path.read_text().splitlines()]
    assert {row["node"] for row in started} == {"n1", "n2"}, said(request)
