"""Jobs submitted from shells that carry the variables of other jobs and launchers: the same job, the same result."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from hsadml_dist.slurm import client
from hsadml_dist.slurm.devcluster.cluster import Cluster
from hsadml_dist.slurm.sbatch import JobRequest
from tests.slurm.cluster_jobs import RANKS, count_events, job_output, rank_rows, read_end, wait_for, wait_state
from tests.test_launch_environment import LAUNCHERS, SLURM

pytestmark = pytest.mark.slurm

SHELLS = {
    "array element": {"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_JOB_ID": "90", "SLURM_JOB_ID": "93"},
    "requeued job": {"SLURM_JOB_ID": "90", "SLURM_RESTART_COUNT": "1"},
    "allocation": {"SLURM_JOB_ID": "90", "SLURM_MEM_PER_CPU": "64", "SLURM_GPUS": "1", "SLURM_NTASKS": "7"},
    "torchrun": {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "x"},
    "sbatch options": {"SBATCH_PARTITION": "none", "SBATCH_TIMELIMIT": "1", "SBATCH_NO_REQUEUE": "1"},
    "everything": dict.fromkeys((*LAUNCHERS, *SLURM), "hostile"),
}


@pytest.mark.parametrize("requeue", ["self", "chain"])
@pytest.mark.parametrize("shell", SHELLS)
def test_job_is_the_same_from_any_shell(
    local_cluster: Cluster,
    request_of: Callable[..., JobRequest],
    queue: Callable[[Cluster, JobRequest], str],
    monkeypatch: pytest.MonkeyPatch,
    shell: str,
    requeue: str,
) -> None:
    for name, value in SHELLS[shell].items():
        monkeypatch.setenv(name, value)
    request = request_of(seconds=0.2, requeue=requeue)
    job = queue(local_cluster, request)
    assert job in client.squeue([f"--jobs={job}"])
    wait_for(request, "finished", 0)
    monkeypatch.undo()
    wait_state(local_cluster, job, "COMPLETED")
    assert read_end(request, job) == "finished", job_output(request)
    assert count_events(request, "started", 0) == RANKS == len({row["node"] for row in rank_rows(request)}) * 2
