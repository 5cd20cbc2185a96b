"""The batch script on real clusters in a chain or an array, and on sites that requeue by exit code."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from hsadml_dist.run.folder import RunFolder
from hsadml_dist.slurm import client
from hsadml_dist.slurm.devcluster.cluster import Cluster
from hsadml_dist.slurm.job_records import DeclineReason, read_decline, read_job_records
from hsadml_dist.slurm.sbatch import JobRequest
from tests.slurm.cluster_jobs import (
    RANKS,
    count_events,
    job_output,
    preempt,
    read_end,
    show_job,
    wait_empty,
    wait_for,
    wait_state,
    write_stop_event,
)

RequestOf = Callable[..., JobRequest]
Queue = Callable[[Cluster, JobRequest], str]
pytestmark = pytest.mark.slurm


def links(request: JobRequest) -> list[str]:
    """Return the jobs of a run, oldest first."""
    return [record.job for record in read_job_records(RunFolder(request.run_dir))]


def declined(request: JobRequest, job: str) -> DeclineReason | None:
    """Return why a job declined to train."""
    return read_decline(RunFolder(request.run_dir), job)


def rank_starts(request: JobRequest) -> int:
    """Return how often ranks were started, over all starts."""
    texts = [path.read_text() for path in request.run_dir.glob("rank-*.jsonl")]
    return sum('"started"' in line for text in texts for line in text.splitlines())


def test_preempted_link_is_followed_without_the_wait_of_a_requeued_job(
    make_cluster: Callable[..., Cluster], request_of: RequestOf, queue: Queue
) -> None:
    """On a default site a requeued job waits for 121 s."""
    cluster = make_cluster(site="default")
    request = request_of(requeue="chain")
    job = queue(cluster, request)
    wait_for(request, "started", 0)
    other = preempt(cluster)
    wait_for(request, "stopped", 0)
    wait_for(request, "finished", 1)
    assert show_job(cluster, job)["JobState"] == "PREEMPTED"
    wait_state(cluster, other, "COMPLETED")
    wait_empty(cluster)
    first, second, third = links(request)
    assert [read_end(request, link) for link in (first, second, third)] == ["stopped", "finished", ""]
    assert show_job(cluster, second)["Restarts"] == "0"
    assert show_job(cluster, third)["JobState"] == "CANCELLED", "the last successor has nothing to do"
    assert "hsadml:" not in job_output(request)


def test_successor_of_a_cancelled_link_declines(cluster: Cluster, request_of: RequestOf, queue: Queue) -> None:
    request = request_of(requeue="chain")
    job = queue(cluster, request)
    wait_for(request, "started", 0)
    client.cancel(job, cluster.env())
    wait_for(request, "stopped", 0)
    wait_empty(cluster)
    _, successor = links(request)
    assert show_job(cluster, successor)["JobState"] == "COMPLETED"
    assert declined(request, successor) is DeclineReason.PREDECESSOR_CANCELLED
    assert rank_starts(request) == RANKS


def test_successor_of_a_killed_link_declines_unless_slurm_gives_a_reason(
    local_cluster: Cluster, request_of: RequestOf, queue: Queue
) -> None:
    request = request_of(requeue="chain")
    job = queue(local_cluster, request)
    wait_for(request, "started", 0)
    local_cluster.run(["scancel", "--batch", "--signal=KILL", job])
    wait_empty(local_cluster)
    assert show_job(local_cluster, job)["JobState"] == "FAILED"
    assert declined(request, links(request)[1]) is DeclineReason.PREDECESSOR_FAILED


def test_failed_link_cancels_its_successor(local_cluster: Cluster, request_of: RequestOf, queue: Queue) -> None:
    request = request_of(requeue="chain", seconds=0.2, code=3)
    wait_state(local_cluster, queue(local_cluster, request), "FAILED")
    wait_empty(local_cluster)
    first, second = links(request)
    assert (read_end(request, first), read_end(request, second)) == ("failed:3", "")
    assert show_job(local_cluster, second)["JobState"] == "CANCELLED"


def test_link_with_a_final_stop_cancels_its_successor(
    local_cluster: Cluster, request_of: RequestOf, queue: Queue
) -> None:
    request = request_of(requeue="chain")
    write_stop_event(request)
    job = queue(local_cluster, request)
    wait_for(request, "started", 0)
    local_cluster.run(["scancel", "--signal=USR2", job])
    wait_state(local_cluster, job, "COMPLETED")
    wait_empty(local_cluster)
    first, second = links(request)
    assert (read_end(request, first), read_end(request, second)) == ("stop_requested", "")
    assert show_job(local_cluster, second)["JobState"] == "CANCELLED"


@pytest.mark.parametrize(
    ("end", "reason"),
    [
        ("stopped", None),
        ("signalled", None),
        ("told", None),
        ("asked", DeclineReason.RUN_OVER),
        ("finished", DeclineReason.RUN_OVER),
        ("failed:3", DeclineReason.PREDECESSOR_FAILED),
        ("failed with exit code 3", DeclineReason.PREDECESSOR_FAILED),
    ],
)
def test_link_understands_the_end_of_its_predecessor(
    local_cluster: Cluster, request_of: RequestOf, queue: Queue, monkeypatch: pytest.MonkeyPatch, end: str, reason: str
) -> None:
    """The codes, and the words of version 0.1; the predecessor is a job that Slurm reports as COMPLETED."""
    before = local_cluster.run(["sbatch", "--parsable", "-o", "/dev/null", "--wrap", "true"]).stdout.strip()
    wait_state(local_cluster, before, "COMPLETED")
    request = request_of(requeue="chain", seconds=0)
    (request.run_dir / "ended").mkdir()
    (request.run_dir / "ended" / before).write_text(f"{end}\n")
    job = queue(local_cluster, dataclasses.replace(request, options=("--hold",)))
    local_cluster.run(["scancel", job])
    link = local_cluster.run(["sbatch", "--parsable", "--no-requeue", str(request.script), before]).stdout.strip()
    local_cluster.run(["scontrol", "release", link])
    wait_state(local_cluster, link, "COMPLETED")
    assert declined(request, link) == reason
    assert rank_starts(request) == (RANKS if reason is None else 0)


def test_requeue_by_exit_code_never_trains_twice(
    make_cluster: Callable[..., Cluster], request_of: RequestOf, queue: Queue
) -> None:
    """RequeueExit requeues every job that exits with 1, 70 or 85, even those submitted with --no-requeue.

    A job that lost a rank (70) may resume, as its node may have gone: the run itself stops after three attempts
    without progress.
    """
    cluster = make_cluster(site="requeueing", nodes=4)
    modes = {mode: request_of(mode, requeue=mode, seconds=0.3, code=1) for mode in ("chain", "self", "none")}
    jobs = {mode: queue(cluster, request) for mode, request in modes.items()}
    stopped = request_of("stopped", requeue="chain")
    first = queue(cluster, stopped)
    wait_for(stopped, "started", 0)
    cluster.run(["scancel", "--signal=USR2", first])
    wait_for(stopped, "finished", 1)
    lost_rank = request_of("lost-rank", requeue="self", seconds=0.3, code=70)
    job = queue(cluster, lost_rank)
    wait_for(lost_rank, "started", 1)
    cluster.run(["scancel", job])
    wait_empty(cluster)
    for mode, request in modes.items():
        assert rank_starts(request) == RANKS, f"{mode}: trained again"
        assert show_job(cluster, jobs[mode])["Restarts"] == "1", "Slurm requeued it"
    assert declined(modes["self"], jobs["self"]) is DeclineReason.ALREADY_ENDED
    for mode in ("chain", "none"):
        assert declined(modes[mode], jobs[mode]) is DeclineReason.REQUEUED_BY_SITE
    assert read_end(stopped, first) == "stopped" and rank_starts(stopped) == 2 * RANKS


@pytest.mark.parametrize("mode", ["netns", "local"])
def test_chain_without_sbatch_on_the_nodes_fails_before_training(
    make_cluster: Callable[..., Cluster], request_of: RequestOf, queue: Queue, mode: str
) -> None:
    """The nodes of a strict site have no sbatch in mode netns; in mode local the site refuses its jobs."""
    cluster = make_cluster(site="strict", mode=mode)
    request = request_of(requeue="chain")
    job = queue(cluster, request)
    found = wait_state(cluster, job, "FAILED", "COMPLETED", "CANCELLED")
    assert (found["JobState"], found["ExitCode"]) == ("FAILED", "1:0")
    assert read_end(request, job) == "failed:1"
    (line,) = [line for line in job_output(request).splitlines() if "hsadml:" in line]
    assert "requeue=chain" in line and "--requeue self" in line
    assert rank_starts(request) == 0


@pytest.mark.parametrize("mode", ["chain", "self"])
def test_only_the_stopped_element_of_an_array_resumes(
    local_cluster: Cluster, request_of: RequestOf, queue: Queue, folder: Path, mode: str
) -> None:
    """Two elements run when the node of one is taken away; either of them may have the id of the whole array."""
    parts = [request_of(f"part-{index}", seconds=8) for index in range(2)]
    (folder / "array").mkdir()
    shape = {"nodes": 1, "tasks_per_node": 4, "cpus_per_task": 2, "requeue": mode}
    elements = tuple(part.run_dir for part in parts)
    job = queue(local_cluster, dataclasses.replace(parts[0], run_dir=folder / "array", elements=elements, **shape))
    for part in parts:
        wait_for(part, "started", 0)
    node = local_cluster.run(["squeue", "--noheader", f"--jobs={job}_1", "--format=%N"]).stdout.strip()
    high = ["--partition=high", "--exclusive", "--output=/dev/null", f"--nodelist={node}", "--wrap=sleep 1"]
    local_cluster.run(["sbatch", *high])
    wait_for(parts[1], "finished", 1)
    wait_empty(local_cluster)
    assert [rank_starts(part) for part in parts] == [RANKS, 2 * RANKS]
    assert count_events(parts[0], "finished", 0) == RANKS, "the other element ran on"
    jobs = [links(part) for part in parts]
    assert [ids[0] for ids in jobs] == [f"{job}_0", f"{job}_1"]
    assert [len(ids) for ids in jobs] == ([2, 3] if mode == "chain" else [1, 1])
