"""What the batch script does in each requeue mode on real clusters: go on, stay away, never twice."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from hsadml_dist.errors import ClusterError, RunLockedError
from hsadml_dist.run.folder import RunFolder
from hsadml_dist.slurm import client
from hsadml_dist.slurm.devcluster import daemons
from hsadml_dist.slurm.devcluster.cluster import Cluster
from hsadml_dist.slurm.job_records import read_job_records
from hsadml_dist.slurm.sbatch import JobRequest
from hsadml_dist.slurm.submit import check_request
from tests.slurm.cluster_jobs import count_events, job_output, preempt, show_job, wait_for, wait_state

RequestOf = Callable[..., JobRequest]
Queue = Callable[[Cluster, JobRequest], str]
pytestmark = pytest.mark.slurm


def links(request: JobRequest) -> list[str]:
    """Return the jobs of a run, oldest first."""
    return [row.job for row in read_job_records(RunFolder(request.run_dir))]


def word(request: JobRequest, job: str) -> str:
    """Return the word that a job has left behind, or nothing."""
    path = request.run_dir / "ended" / job
    return path.read_text().strip() if path.exists() else ""


def wait_empty(cluster: Cluster, seconds: float = 20) -> None:
    """Return as soon as no job is queued or runs."""
    argv = ["squeue", "--noheader", "--format=%i %T %r"]
    assert daemons.wait_until(lambda: not cluster.run(argv).stdout.strip(), seconds=seconds, pause=0.1), cluster.run(
        argv
    ).stdout


def test_a_preempted_link_is_followed_at_once_where_a_requeued_job_would_wait(
    make_cluster: Callable[..., Cluster], request_of: RequestOf, queue: Queue
) -> None:
    """On a default site a requeued job waits for 121 s."""
    cluster = make_cluster(site="default")
    request = request_of(requeue="chain")
    job = queue(cluster, request)
    wait_for(request, "started", 0)
    other = preempt(cluster)
    wait_for(request, "stopped", 0)
    wait_for(request, "finished", 1, seconds=60)
    assert show_job(cluster, job)["JobState"] == "PREEMPTED"
    wait_state(cluster, other, "COMPLETED")
    wait_empty(cluster)
    first, second, third = links(request)
    assert (word(request, first), word(request, second), word(request, third)) == ("stopped", "finished", "")
    assert show_job(cluster, second)["Restarts"] == "0"
    assert show_job(cluster, third)["JobState"] == "CANCELLED", "the last successor has nothing to do"
    assert "hsadml:" not in job_output(request)


def test_a_cancelled_chain_stays_cancelled(cluster: Cluster, request_of: RequestOf, queue: Queue) -> None:
    request = request_of(requeue="chain")
    job = queue(cluster, request)
    wait_for(request, "started", 0)
    client.cancel(job, cluster.env())
    wait_for(request, "stopped", 0)
    wait_empty(cluster)
    _, successor = links(request)
    assert show_job(cluster, successor)["JobState"] == "COMPLETED"
    assert f"nothing to do: job {job} was cancelled" in job_output(request)


def test_a_link_that_was_killed_without_a_word_is_followed_only_if_slurm_says_why(
    local_cluster: Cluster, request_of: RequestOf, queue: Queue
) -> None:
    request = request_of(requeue="chain")
    job = queue(local_cluster, request)
    wait_for(request, "started", 0)
    local_cluster.run(["scancel", "--batch", "--signal=KILL", job])
    wait_empty(local_cluster)
    assert show_job(local_cluster, job)["JobState"] == "FAILED"
    assert f"job {job} ended otherwise: without a word" in job_output(request)


def test_a_link_that_failed_or_was_asked_to_stop_for_good_ends_its_chain(
    local_cluster: Cluster, request_of: RequestOf, queue: Queue
) -> None:
    failing = request_of("failing", requeue="chain", seconds=0.2, code=3)
    asked = request_of("asked", requeue="chain")
    (asked.run_dir / "attempts" / "0001").mkdir(parents=True)
    row = {"event": "signal", "step": 3, "noticed": ["rank 0: STOP file"]}
    (asked.run_dir / "attempts" / "0001" / "events.jsonl").write_text(json.dumps(row) + "\n")
    failed = queue(local_cluster, failing)
    wait_state(local_cluster, failed, "FAILED")
    job = queue(local_cluster, asked)
    wait_for(asked, "started", 0)
    local_cluster.run(["scancel", "--signal=USR2", job])
    wait_state(local_cluster, job, "COMPLETED")
    wait_empty(local_cluster)
    assert [word(failing, one) for one in links(failing)] == ["failed with exit code 3", ""]
    assert [word(asked, one) for one in links(asked)] == ["asked", ""]
    assert [show_job(local_cluster, links(one)[1])["JobState"] for one in (failing, asked)] == ["CANCELLED"] * 2


def test_a_job_that_was_asked_to_stop_for_good_does_not_put_itself_back(
    local_cluster: Cluster, request_of: RequestOf, queue: Queue
) -> None:
    request = request_of(requeue="self")
    (request.run_dir / "attempts" / "0001").mkdir(parents=True)
    (request.run_dir / "attempts" / "0001" / "events.jsonl").write_text('{"noticed": ["rank 0: STOP file"]}\n')
    job = queue(local_cluster, request)
    wait_for(request, "started", 0)
    local_cluster.run(["scancel", "--signal=USR2", job])
    found = wait_state(local_cluster, job, "FAILED", "PENDING")
    assert (found["JobState"], found["ExitCode"]) == ("FAILED", "85:0")


def test_a_site_that_requeues_by_exit_code_doubles_no_run(
    make_cluster: Callable[..., Cluster], request_of: RequestOf, queue: Queue
) -> None:
    """RequeueExit brings back every job that leaves with 1, 70 or 85, even those submitted with --no-requeue.

    What lost a rank (70) may go on, as its node may have gone: it is the run itself that stops for want of progress.
    """
    cluster = make_cluster(site="requeueing", nodes=4)
    modes = {mode: request_of(mode, requeue=mode, seconds=0.3, code=1) for mode in ("chain", "self", "none")}
    jobs = {mode: queue(cluster, request) for mode, request in modes.items()}
    stopped = request_of("stopped", requeue="chain")
    first = queue(cluster, stopped)
    wait_for(stopped, "started", 0)
    cluster.run(["scancel", "--signal=USR2", first])
    wait_for(stopped, "finished", 1)
    bereft = request_of("bereft", requeue="self", seconds=0.3, code=70)
    job = queue(cluster, bereft)
    wait_for(bereft, "started", 1, seconds=60)
    cluster.run(["scancel", job])
    wait_empty(cluster, seconds=60)
    for mode, request in modes.items():
        assert len([line for line in rank_starts(request)]) == 4, f"{mode}: trained again"
        assert show_job(cluster, jobs[mode])["Restarts"] == "1", "Slurm brought it back"
        assert "nothing to do" in job_output(request)
    assert word(stopped, first) == "stopped" and len(rank_starts(stopped)) == 8


def rank_starts(request: JobRequest) -> list[str]:
    """Return the rows of ranks that have started."""
    texts = [path.read_text() for path in request.run_dir.glob("rank-*.jsonl")]
    return [line for text in texts for line in text.splitlines() if '"started"' in line]


@pytest.mark.parametrize("how", ["sbatch refused", "job submission refused"])
def test_a_chain_needs_sbatch_on_the_nodes(
    make_cluster: Callable[..., Cluster], request_of: RequestOf, queue: Queue, how: str
) -> None:
    """In mode netns there is no sbatch on the nodes of a strict site; in mode local there is, and the site refuses."""
    cluster = make_cluster(site="strict", mode="netns" if how == "sbatch refused" else "local")
    request = request_of(requeue="chain")
    job = queue(cluster, request)
    found = wait_state(cluster, job, "FAILED", "COMPLETED", "CANCELLED", seconds=30)
    assert (found["JobState"], found["ExitCode"]) == ("FAILED", "1:0")
    said = [line for line in job_output(request).splitlines() if "hsadml:" in line]
    assert len(said) == 1 and said[0].startswith("hsadml: requeue=chain needs sbatch on the nodes: ")
    assert said[0].endswith("submit with --requeue self")
    assert not rank_starts(request), "nothing was trained"


@pytest.mark.parametrize("mode", ["chain", "self"])
def test_of_an_array_only_what_was_stopped_goes_on(
    local_cluster: Cluster, request_of: RequestOf, queue: Queue, folder: Path, mode: str
) -> None:
    """Two elements run when a node is taken from one; which of the two has the array's own id may be either."""
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
    wait_for(parts[1], "finished", 1, seconds=60)
    wait_empty(local_cluster, seconds=60)
    assert [len(rank_starts(part)) for part in parts] == [4, 8]
    assert count_events(parts[0], "finished", 0) == 4, "the other element was left alone"
    names = [[row.job for row in read_job_records(RunFolder(one))] for one in elements]
    assert [name[0] for name in names] == [f"{job}_0", f"{job}_1"]
    assert [len(name) for name in names] == ([2, 3] if mode == "chain" else [1, 1])


def test_a_run_is_not_queued_twice(
    local_cluster: Cluster, request_of: RequestOf, queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = request_of(requeue="none")
    job = queue(local_cluster, request)
    wait_for(request, "started", 0)
    with pytest.raises(RunLockedError, match=rf"job {job} of this run is queued or running; hsadml cancel"):
        check_request(request)
    client.cancel(job, local_cluster.env())
    wait_empty(local_cluster)
    assert "Job" in check_request(request) and "to start at" in check_request(request)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"partition": "nowhere"}, "invalid partition specified: nowhere"),
        ({"nodes": 99}, "Node count specification invalid|Requested node configuration is not available"),
        ({"tasks_per_node": 99}, "Requested node configuration is not available"),
        ({"gres": "gpu:99"}, "Requested node configuration is not available"),
        ({"constraint": "a100"}, "Invalid feature specification"),
    ],
)
def test_what_slurm_would_refuse_is_one_line_before_anything_is_written(
    local_cluster: Cluster, request_of: RequestOf, monkeypatch: pytest.MonkeyPatch, change: dict[str, object], said: str
) -> None:
    monkeypatch.setenv("SLURM_CONF", str(local_cluster.conf_file))
    request = dataclasses.replace(request_of(), **change)
    before = sorted(request.run_dir.iterdir())
    with pytest.raises(ClusterError, match=said) as caught:
        check_request(request)
    assert "\n" not in str(caught.value)
    assert sorted(request.run_dir.iterdir()) == before
