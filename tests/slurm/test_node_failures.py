"""Real trainings on a cluster with faults: power loss, cut cables, no controller, time limits, drained nodes."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hsadml_dist.checkpoint.digest import run_digest
from hsadml_dist.run.folder import RunFolder
from hsadml_dist.run.history import merged_events, merged_metrics
from hsadml_dist.slurm.devcluster.cluster import Cluster
from tests.slurm.cluster_trainings import event_names, hsadml, settings, train_undisturbed, wait_until
from tests.slurm.conftest import MakeCluster

STEPS = 300
EVERY = 20
pytestmark = [pytest.mark.slurm, pytest.mark.soak, pytest.mark.timeout(3600)]


@pytest.fixture(scope="module")
def undisturbed(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folder of the same training without faults."""
    return train_undisturbed(shards, tmp_path_factory.mktemp("undisturbed") / "run", STEPS)


@pytest.fixture(params=["chain", "self"])
def requeue(request: pytest.FixtureRequest) -> str:
    """Both modes that resume a run."""
    return request.param


@pytest.fixture
def cluster(make_cluster: MakeCluster) -> Iterator[Cluster]:
    """Three nodes, of which a job needs two."""
    return make_cluster(mode="netns", site="friendly", nodes=3)


def submit_and_await_checkpoint(cluster: Cluster, shards: Path, run: Path, requeue: str, *more: str) -> str:
    """Submit a training of 2 nodes with 2 ranks each and wait for its first checkpoint; return the job id."""
    shape = ("--nodes", "2", "--tasks-per-node", "2", "--requeue", requeue, "--run", run, *more)
    overrides = (*settings(STEPS), f"checkpoint.every={EVERY}", "run.step_timeout_seconds=20")
    job = hsadml("submit", "demo", f"data.shards={shards}", *overrides, *shape, env=cluster.env()).split()[-1]
    wait_until(lambda: event_names(run).count("checkpoint") >= 1, f"a checkpoint of job {job}", run)
    return job


def assert_finishes_like(run: Path, undisturbed: Path) -> None:
    """Wait for the end of a run and compare it with the undisturbed one."""
    wait_until(lambda: "finished" in event_names(run), "the end", run)
    assert [row["step"] for row in merged_metrics(run)] == list(range(1, STEPS + 1))
    assert run_digest(run) == run_digest(undisturbed)


def count_lost_steps(run: Path) -> int:
    """Return how many steps the last resume has to repeat."""
    resumed = [row for row in merged_events(run) if row["event"] == "resumed"][-1]
    before = [
        json.loads(line)["step"]
        for attempt in RunFolder(run).attempts()[: resumed["attempt"] - 1]
        for line in attempt.metrics.read_text().splitlines()
    ]
    return max(before) - resumed["step"]


def nodes_of(cluster: Cluster, job: str) -> list[str]:
    """Return the nodes of a running job."""
    answer = cluster.run(["squeue", "--noheader", f"--jobs={job}", "--format=%N"]).stdout.strip()
    return cluster.run(["scontrol", "show", "hostnames", answer]).stdout.split()


def file_digests(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each file under a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.parametrize("victim", [0, 1], ids=["node of the script", "other node"])
def test_power_loss_costs_at_most_two_checkpoint_intervals(
    cluster: Cluster, shards: Path, undisturbed: Path, folder: Path, requeue: str, victim: int
) -> None:
    run = folder / "run"
    job = submit_and_await_checkpoint(cluster, shards, run, requeue)
    cluster.cut_power(nodes_of(cluster, job)[victim])
    assert_finishes_like(run, undisturbed)
    assert count_lost_steps(run) <= 2 * EVERY


def test_rank_on_a_disconnected_node_does_not_change_later_attempts(
    cluster: Cluster, shards: Path, undisturbed: Path, folder: Path, requeue: str
) -> None:
    run = folder / "run"
    job = submit_and_await_checkpoint(cluster, shards, run, requeue)
    node = nodes_of(cluster, job)[0]
    cluster.cut_cable(node)
    wait_until(lambda: event_names(run).count("resumed") >= 1, "a resume elsewhere", run)
    later = RunFolder(run).attempts()[-1]
    assert_finishes_like(run, undisturbed)
    files = file_digests(later.path), file_digests(RunFolder(run).checkpoints)
    cluster.mend_cable(node)
    time.sleep(5)
    assert (file_digests(later.path), file_digests(RunFolder(run).checkpoints)) == files, (
        "files of a later attempt changed"
    )
    assert count_lost_steps(run) <= 2 * EVERY


def test_run_survives_a_restart_of_the_controller(
    cluster: Cluster, shards: Path, undisturbed: Path, folder: Path, requeue: str
) -> None:
    """The controller is killed and started again while the job runs."""
    run = folder / "run"
    job = submit_and_await_checkpoint(cluster, shards, run, requeue)
    cluster = cluster.restart_controller(away=3)
    wait_until(lambda: len(merged_metrics(run)) > 2 * EVERY, "steps without a controller", run)
    assert cluster.run(["squeue", "--noheader", f"--jobs={job}", "--format=%T"]).stdout.strip() == "RUNNING"
    cluster.run(["scancel", "--signal=USR2", job])
    assert_finishes_like(run, undisturbed)
    assert count_lost_steps(run) == 0


def test_run_resumes_after_its_time_limit_without_loss(
    cluster: Cluster, shards: Path, undisturbed: Path, folder: Path, requeue: str
) -> None:
    """The signal may come a minute early, so a limit of two minutes leaves at least half a minute for steps."""
    run = folder / "run"
    submit_and_await_checkpoint(cluster, shards, run, requeue, "--time", "2", "--signal-lead", "30")
    wait_until(lambda: "resumed" in event_names(run) or "finished" in event_names(run), "the limit", run)
    assert_finishes_like(run, undisturbed)
    if "resumed" in event_names(run):
        assert count_lost_steps(run) == 0


def test_job_on_a_drained_node_continues_and_resumes_on_other_nodes(
    cluster: Cluster, shards: Path, undisturbed: Path, folder: Path, requeue: str
) -> None:
    run = folder / "run"
    job = submit_and_await_checkpoint(cluster, shards, run, requeue)
    drained = nodes_of(cluster, job)[0]
    cluster.run(["scontrol", "update", f"nodename={drained}", "state=drain", "reason=test"])
    done = len(merged_metrics(run))
    wait_until(lambda: len(merged_metrics(run)) > done + 5, "steps on a drained node", run)
    cluster.run(["scancel", "--signal=USR2", job])
    wait_until(lambda: event_names(run).count("resumed") >= 1, "a resume elsewhere", run)
    hosts = json.loads(RunFolder(run).attempts()[-1].record.read_text())["host"]
    assert hosts != drained
    assert_finishes_like(run, undisturbed)
    assert count_lost_steps(run) == 0
