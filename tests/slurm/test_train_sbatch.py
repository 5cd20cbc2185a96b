"""The batch script on real clusters in the modes ``self`` and ``none``: it stops, is requeued, or ends."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from hsadml_dist.run.folder import RunFolder
from hsadml_dist.slurm import client
from hsadml_dist.slurm.client import parse_timestamp
from hsadml_dist.slurm.devcluster import daemons
from hsadml_dist.slurm.devcluster.cluster import Cluster
from hsadml_dist.slurm.devcluster.slurm_conf import DEFAULT
from hsadml_dist.slurm.job_records import read_decline
from hsadml_dist.slurm.sbatch import JobRequest, render
from tests.slurm.cluster_jobs import (
    HANG_SECONDS,
    RANKS,
    count_events,
    job_output,
    preempt,
    rank_rows,
    read_end,
    show_job,
    start_requeued,
    wait_empty,
    wait_for,
    wait_state,
    write_stop_event,
)

RequestOf = Callable[..., JobRequest]
Queue = Callable[[Cluster, JobRequest], str]
pytestmark = pytest.mark.slurm


def test_job_fails_with_the_exit_code_of_its_ranks(local_cluster: Cluster, request_of: RequestOf, queue: Queue) -> None:
    request = request_of(seconds=0.2, code=3)
    job = queue(local_cluster, request)
    found = wait_state(local_cluster, job, "COMPLETED", "FAILED")
    assert (found["JobState"], found["ExitCode"], found["Restarts"]) == ("FAILED", "3:0", "0")
    assert read_end(request, job) == "failed:3"


def test_preempted_job_on_a_friendly_site_gets_usr2_and_resumes(
    cluster: Cluster, request_of: RequestOf, queue: Queue, record_property: Callable[..., None]
) -> None:
    request = request_of()
    job = queue(cluster, request)
    wait_for(request, "started", 0)
    begin = time.monotonic()
    other = preempt(cluster)
    wait_for(request, "stopped", 0)
    assert {row["signal"] for row in rank_rows(request) if row["event"] == "stopped"} == {12}, "USR2"
    wait_state(cluster, other, "RUNNING", "COMPLETED")
    wait_for(request, "finished", 1)
    seconds = time.monotonic() - begin
    record_property("requeue_seconds", seconds)
    assert seconds < DEFAULT.credential_seconds, "cred_expire is 5 s here: about 7 s are expected"
    found = wait_state(cluster, job, "COMPLETED")
    assert found["Restarts"] == "1"
    assert read_end(request, job) == "finished"
    assert "not requeued" not in job_output(request)


def test_preempted_job_on_a_default_site_frees_its_nodes_at_once_and_resumes(
    make_cluster: Callable[..., Cluster], request_of: RequestOf, queue: Queue
) -> None:
    cluster = make_cluster(site="default")
    request = request_of()
    job = queue(cluster, request)
    wait_for(request, "started", 0)
    other = preempt(cluster)
    wait_for(request, "stopped", 0)
    found = wait_state(cluster, other, "RUNNING", "COMPLETED")
    stopped = max(row["time"] for row in rank_rows(request) if row["event"] == "stopped")
    waited = (parse_timestamp(found["StartTime"]) or 0.0) - stopped
    assert waited < DEFAULT.kill_wait_seconds, "a script that lingers would hold the nodes for KillWait"
    found = wait_state(cluster, job, "PENDING")
    assert found["Restarts"] == "1"
    # cred_expire delays it by 121 s; the owner may shorten that once the old run has ended.
    wait_state(cluster, other, "COMPLETED")
    start_requeued(cluster, job)
    wait_for(request, "finished", 1)
    assert "not requeued" not in job_output(request)


def test_cancelled_job_is_not_requeued(local_cluster: Cluster, request_of: RequestOf, queue: Queue) -> None:
    request = request_of()
    job = queue(local_cluster, request)
    wait_for(request, "started", 0)
    client.cancel(job, local_cluster.env())
    wait_for(request, "stopped", 0)
    wait_state(local_cluster, job, "CANCELLED")
    time.sleep(1)
    found = show_job(local_cluster, job)
    assert (found["JobState"], found["Restarts"]) == ("CANCELLED", "0")


def test_stopped_job_without_requeue_ends_with_85(local_cluster: Cluster, request_of: RequestOf, queue: Queue) -> None:
    request = request_of(requeue="none")
    job = queue(local_cluster, request)
    wait_for(request, "started", 0)
    local_cluster.run(["scancel", "--signal=USR2", job])
    found = wait_state(local_cluster, job, "FAILED", "PENDING", "COMPLETED")
    assert (found["JobState"], found["ExitCode"], found["Restarts"]) == ("FAILED", "85:0", "0")
    assert read_end(request, job) == "stopped"


def test_batch_shell_survives_signals_meant_for_its_ranks(
    local_cluster: Cluster, request_of: RequestOf, queue: Queue
) -> None:
    request = request_of(seconds=3)
    job = queue(local_cluster, request)
    wait_for(request, "started", 0)
    for _ in range(3):
        local_cluster.run(["scancel", "--batch", "--signal=TERM", job])
        time.sleep(0.3)
    found = wait_state(local_cluster, job, "COMPLETED", "FAILED")
    assert found["JobState"] == "COMPLETED"
    assert count_events(request, "finished", 0) == RANKS


def test_signal_at_the_end_of_the_ranks_does_not_hide_their_exit_code(tmp_path: Path, request_of: RequestOf) -> None:
    """A lost node, for instance, ends srun and makes Slurm signal the script at the same moment; 20 times here."""
    commands = {"srun": "kill -USR2 $PPID; kill -TERM $PPID; exit 70", "scontrol": "", "squeue": "exit 1"}
    for name, text in commands.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    request = request_of(requeue="none")
    script = tmp_path / "job.sbatch"
    script.write_text(render(request))
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_JOB_ID": "7"}
    for _ in range(20):
        done = subprocess.run(["bash", script], env=environment, capture_output=True, text=True, check=False)
        assert (done.returncode, read_end(request, "7")) == (70, "failed:70"), done.stderr


def run_script(folder: Path, request: JobRequest, commands: dict[str, str], *words: str) -> int:
    """Run the batch script as job 7 with shell texts in place of Slurm's commands; return its exit code."""
    defaults = {
        "srun": "exit 0",
        "scontrol": "exit 1",
        "sacct": "",
        "squeue": "exit 1",
        "sbatch": "echo 8",
        "scancel": "",
    }
    for name, text in (defaults | commands).items():
        (folder / name).write_text(f"#!/bin/bash\n{text}\n")
        (folder / name).chmod(0o755)
    script = folder / "job.sbatch"
    script.write_text(render(request))
    environment = {"PATH": f"{folder}:/usr/bin:/bin", "SLURM_JOB_ID": "7"}
    return subprocess.run(["bash", script, *words], env=environment, capture_output=True, check=False).returncode


def write_events(request: JobRequest, *rows: str) -> None:
    attempt = request.run_dir / "attempts" / "0001"
    attempt.mkdir(parents=True)
    (attempt / "events.jsonl").write_text("".join(f"{row}\n" for row in rows))


@pytest.mark.parametrize("requeue", ["none", "self", "chain"])
def test_exit_code_0_of_srun_alone_does_not_finish_a_run(tmp_path: Path, request_of: RequestOf, requeue: str) -> None:
    """As when a node is set down. The successor of a chain stays in the queue."""
    request = request_of(requeue=requeue)
    write_events(request, '{"event": "started"}', '{"event": "checkpoint", "step": 5}')
    assert run_script(tmp_path, request, {"scancel": f"touch {tmp_path}/cancelled"}) == 70
    assert read_end(request, "7") == "lost"
    assert not (tmp_path / "cancelled").exists()


FORGOTTEN = {
    "killed": ((), "", None),
    "stopped": (('{"event": "stopped", "final": false}',), "", None),
    "lost a peer": (('{"event": "failed", "reason": "x", "exit_code": 70}',), "", None),
    "finished": (('{"event": "finished"}',), "", "run_over"),
    "stopped for good": (('{"event": "stopped", "final": true}',), "", "run_over"),
    "failed": (('{"event": "failed", "reason": "x", "exit_code": 1}',), "", "predecessor_failed"),
    "accounts: node failed": ((), "NODE_FAIL", None),
    "accounts: cancelled": ((), "CANCELLED by 0", "predecessor_cancelled"),
    "accounts: failed": ((), "FAILED", "predecessor_failed"),
}


@pytest.mark.parametrize("case", FORGOTTEN)
def test_job_whose_predecessor_is_forgotten_asks_the_accounts_and_the_run(
    tmp_path: Path, request_of: RequestOf, case: str
) -> None:
    rows, state, declined = FORGOTTEN[case]
    request = request_of(requeue="chain")
    write_events(request, '{"event": "started"}', *rows)
    run_script(tmp_path, request, {"srun": f"touch {tmp_path}/trained", "sacct": f"echo '{state}'"}, "6")
    assert (tmp_path / "trained").exists() == (declined is None)
    assert read_decline(RunFolder(request.run_dir), "7") == declined


def has_resumed(cluster: Cluster, node: str) -> bool:
    """Ask for a node to be resumed, which is refused while its job is completing; return whether it is not down."""
    cluster.run(["scontrol", "update", f"nodename={node}", "state=resume"], check=False)
    state = cluster.run(["sinfo", "--noheader", f"--nodes={node}", "--format=%T"]).stdout
    return not any(word in state for word in ("down", "drain", "completing"))


@pytest.mark.parametrize("requeue", ["self", "chain"])
def test_job_whose_node_is_set_down_resumes(
    local_cluster: Cluster, request_of: RequestOf, queue: Queue, requeue: str
) -> None:
    request = request_of(requeue=requeue, nodes=1, tasks_per_node=RANKS)
    job = queue(local_cluster, request)
    wait_for(request, "started", 0)
    node = show_job(local_cluster, job)["NodeList"]
    local_cluster.run(["scontrol", "update", f"nodename={node}", "state=down", "reason=test"])
    wait_state(local_cluster, job, "PENDING", "NODE_FAIL", "REQUEUED", "RUNNING", "FAILED")
    assert daemons.wait_until(lambda: has_resumed(local_cluster, node), seconds=HANG_SECONDS, pause=0.2)
    wait_for(request, "finished", 1)
    if requeue == "chain":
        assert read_end(request, job) == "lost"


def test_crash_of_the_ranks_ends_the_job(local_cluster: Cluster, request_of: RequestOf, queue: Queue) -> None:
    request = request_of(seconds=300)
    job = queue(local_cluster, request)
    wait_for(request, "started", 0)
    local_cluster.run(["scancel", "--signal=KILL", f"{job}.0"])
    found = wait_state(local_cluster, job, "FAILED", "PENDING", "COMPLETED")
    assert (found["JobState"], found["Restarts"]) == ("FAILED", "0")
    assert count_events(request, "finished", 0) == 0
    assert read_end(request, job) == "failed:137"


@pytest.mark.parametrize("legacy", [False, True], ids=["final row", "text of version 0.1"])
def test_final_stop_is_not_requeued(local_cluster: Cluster, request_of: RequestOf, queue: Queue, legacy: bool) -> None:
    request = request_of(requeue="self")
    write_stop_event(request, legacy=legacy)
    job = queue(local_cluster, request)
    wait_for(request, "started", 0)
    local_cluster.run(["scancel", "--signal=USR2", job])
    found = wait_state(local_cluster, job, "FAILED", "PENDING")
    assert (found["JobState"], found["ExitCode"]) == ("FAILED", "85:0")
    assert read_end(request, job) == "stop_requested"


@pytest.mark.parametrize("end", ["finished", "stop_requested", "asked", "failed:1", "failed with exit code 1"])
def test_requeued_job_that_has_ended_before_declines(
    local_cluster: Cluster, request_of: RequestOf, queue: Queue, end: str
) -> None:
    """The codes, and the words of version 0.1."""
    request = request_of(requeue="self", seconds=0)
    job = queue(local_cluster, request)
    wait_state(local_cluster, job, "COMPLETED")
    local_cluster.run(["scontrol", "requeue", job])
    wait_state(local_cluster, job, "PENDING")
    (request.run_dir / "ended" / job).write_text(f"{end}\n")
    start_requeued(local_cluster, job)
    wait_state(local_cluster, job, "COMPLETED")
    wait_empty(local_cluster)
    assert read_decline(RunFolder(request.run_dir), job) == "already_ended"
    assert count_events(request, "started", 1) == 0
