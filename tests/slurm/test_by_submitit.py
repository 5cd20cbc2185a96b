"""Jobs that submitit starts, on real clusters with fake ranks; ``test_preempted_training`` has a real training."""

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
from hsadml_dist.slurm.devcluster.cluster import Cluster
from hsadml_dist.slurm.job_records import SUBMITIT_FOLDER, job_output_paths, read_job_records
from hsadml_dist.slurm.sbatch import JobRequest
from tests.slurm.cluster_jobs import (
    count_events,
    preempt,
    show_job,
    start_requeued,
    wait_empty,
    wait_for,
    wait_state,
)
from tests.slurm.fake_slurm_rank import work

ROOT = Path(__file__).parents[2]
RequestOf = Callable[..., JobRequest]
pytestmark = pytest.mark.slurm


@pytest.fixture
def queue(monkeypatch: pytest.MonkeyPatch) -> Callable[[Cluster, JobRequest], str]:
    """Submit with this interpreter, from the folder of the tests."""

    def put(cluster: Cluster, request: JobRequest) -> str:
        monkeypatch.setenv("SLURM_CONF", str(cluster.conf_file))
        return submit_by_submitit(dataclasses.replace(request, python=sys.executable, working_dir=ROOT), work)

    return put


def submitit_output(request: JobRequest) -> str:
    """Return the output of the jobs."""
    return "\n".join(path.read_text() for path in sorted((request.run_dir / SUBMITIT_FOLDER).glob("*.out")))


def test_preempted_job_resumes_and_finishes(
    make_cluster: Callable[..., Cluster], request_of: RequestOf, queue: Callable[..., str]
) -> None:
    """On a default site, which sends no user signal: submitit alone would start from the beginning."""
    cluster = make_cluster(site="default")
    request = request_of(time_limit="10")
    job = queue(cluster, request)
    wait_for(request, "started", 0)
    other = preempt(cluster)
    wait_for(request, "stopped", 0)
    wait_state(cluster, other, "COMPLETED")
    found = wait_state(cluster, job, "PENDING")
    assert (found["Restarts"], found["TimeLimit"]) == ("1", "00:10:00")
    start_requeued(cluster, job)
    wait_for(request, "finished", 1)
    wait_state(cluster, job, "COMPLETED")
    [row] = read_job_records(RunFolder(request.run_dir))
    assert (row.job, row.requeue, row.backend) == (job, "self", "submitit")
    assert (request.run_dir / "ended" / job).read_text() == "finished\n"
    assert [path.name for path in job_output_paths(RunFolder(request.run_dir), job) if path.exists()] == [
        f"{job}_0_log.out"
    ]


def test_signalled_job_is_requeued_and_cancelled_job_is_not(
    local_cluster: Cluster, request_of: RequestOf, queue: Callable[..., str]
) -> None:
    signalled, cancelled = request_of("signalled"), request_of("cancelled")
    job = queue(local_cluster, signalled)
    wait_for(signalled, "started", 0)
    local_cluster.run(["scancel", "--signal=USR2", job])
    wait_for(signalled, "finished", 1)
    assert count_events(signalled, "stopped", 0) == 4
    other = queue(local_cluster, cancelled)
    wait_for(cancelled, "started", 0)
    client.cancel(other, local_cluster.env())
    found = wait_state(local_cluster, other, "CANCELLED")
    assert found["Restarts"] == "0"


def test_only_the_stopped_element_of_an_array_is_requeued(
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
    wait_empty(local_cluster)
    assert [count_events(part, "started", 1) for part in parts] == [0, 4]
    assert [[row.job for row in read_job_records(RunFolder(one))] for one in elements] == [[f"{job}_0"], [f"{job}_1"]]


def test_unsupported_request_is_refused_before_anything_is_written(request_of: RequestOf) -> None:
    request = dataclasses.replace(request_of(requeue="chain"), launcher=("apptainer", "exec"))
    with pytest.raises(ConfigError) as caught:
        submit_by_submitit(request, work)
    assert [(fault.where, fault.key) for fault in caught.value.faults] == [("job", "requeue"), ("job", "container")]
    assert "self, none" in caught.value.faults[0].problem
    assert not (request.run_dir / SUBMITIT_FOLDER).exists()


def test_options_reach_slurm(local_cluster: Cluster, request_of: RequestOf, queue: Callable[..., str]) -> None:
    wanted: dict[str, Any] = {"mem": "100M", "gres": "gpu:1", "options": ("--comment=a b", "--exclusive")}
    request = dataclasses.replace(request_of(seconds=0.1, requeue="none"), partition="high", **wanted)
    job = queue(local_cluster, request)
    wait_for(request, "finished", 0)
    found = show_job(local_cluster, job)
    assert (found["Partition"], found["Requeue"], found["MinMemoryNode"]) == ("high", "0", "100M")
    started = [json.loads(line) for path in request.run_dir.glob("rank-*") for line in path.read_text().splitlines()]
    assert {row["node"] for row in started} == {"n1", "n2"}, submitit_output(request)
