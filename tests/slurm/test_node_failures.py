"""What befalls a cluster: power, cables, the controller, time limits, drained nodes. Real trainings, real daemons."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hsadml_dist.run.folder import RunFolder
from hsadml_dist.run.history import merged_events, merged_metrics
from hsadml_dist.slurm.devcluster.cluster import Cluster
from tests.slurm.cluster_trainings import digest, event_names, hsadml, settings, train_undisturbed, wait_until
from tests.slurm.conftest import MakeCluster

STEPS = 300
EVERY = 20
pytestmark = [pytest.mark.slurm, pytest.mark.soak, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def calm(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The undisturbed run."""
    return train_undisturbed(shards, tmp_path_factory.mktemp("calm") / "run", STEPS)


@pytest.fixture(params=["chain", "self"])
def requeue(request: pytest.FixtureRequest) -> str:
    """Both ways to come back."""
    return request.param


@pytest.fixture
def cluster(make_cluster: MakeCluster) -> Iterator[Cluster]:
    """Three nodes, of which a job needs two."""
    return make_cluster(mode="netns", site="friendly", nodes=3)


def queued(cluster: Cluster, shards: Path, run: Path, requeue: str, *more: str) -> str:
    """Submit a training of 2 nodes with 2 ranks each and wait for its first checkpoint; return the job's id."""
    shape = ("--nodes", "2", "--tasks-per-node", "2", "--requeue", requeue, "--run", run, *more)
    overrides = (*settings(STEPS), f"checkpoint.every={EVERY}", "run.step_timeout_seconds=20")
    job = hsadml("submit", "demo", f"data.shards={shards}", *overrides, *shape, env=cluster.env()).split()[-1]
    wait_until(lambda: event_names(run).count("checkpoint") >= 1, 120, f"a checkpoint of job {job}", run)
    return job


def finished(run: Path, calm: Path, patience: float = 240) -> None:
    """Wait for the end; it must be the calm run's."""
    wait_until(lambda: "finished" in event_names(run), patience, "the end", run)
    assert [row["step"] for row in merged_metrics(run)] == list(range(1, STEPS + 1))
    assert digest(run) == digest(calm)


def lost(run: Path) -> int:
    """Return how many steps the last resume threw away."""
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


def content(folder: Path) -> dict[str, str]:
    """Return the digest of each file under a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.parametrize("victim", [0, 1], ids=["the node of the script", "another node"])
def test_a_power_loss_costs_at_most_an_interval(
    cluster: Cluster, shards: Path, calm: Path, folder: Path, requeue: str, victim: int
) -> None:
    run = folder / "run"
    job = queued(cluster, shards, run, requeue)
    cluster.cut_power(nodes_of(cluster, job)[victim])
    finished(run, calm)
    assert lost(run) <= 2 * EVERY


def test_a_cut_cable_leaves_a_rank_alive_that_harms_nobody(
    cluster: Cluster, shards: Path, calm: Path, folder: Path, requeue: str
) -> None:
    run = folder / "run"
    job = queued(cluster, shards, run, requeue)
    node = nodes_of(cluster, job)[0]
    cluster.cut_cable(node)
    wait_until(lambda: event_names(run).count("resumed") >= 1, 120, "a resume elsewhere", run)
    later = RunFolder(run).attempts()[-1]
    finished(run, calm)
    files = content(later.path), content(RunFolder(run).checkpoints)
    cluster.mend_cable(node)
    time.sleep(5)
    assert (content(later.path), content(RunFolder(run).checkpoints)) == files, "files of a later attempt changed"
    assert lost(run) <= 2 * EVERY


def test_the_controller_may_be_away_for_a_while(
    cluster: Cluster, shards: Path, calm: Path, folder: Path, requeue: str
) -> None:
    """It is killed and started again, once while the job runs and once more just before the job ends."""
    run = folder / "run"
    job = queued(cluster, shards, run, requeue)
    cluster = cluster.restart_controller(away=3)
    wait_until(lambda: len(merged_metrics(run)) > 2 * EVERY, 120, "steps without a controller", run)
    assert cluster.run(["squeue", "--noheader", f"--jobs={job}", "--format=%T"]).stdout.strip() == "RUNNING"
    cluster.run(["scancel", "--signal=USR2", job])
    finished(run, calm)
    assert lost(run) == 0


def test_a_time_limit_is_told_in_time_and_gone_on_from(
    cluster: Cluster, shards: Path, calm: Path, folder: Path, requeue: str
) -> None:
    """The notice may come up to a minute early, so a limit of two minutes leaves half a minute to get further in."""
    run = folder / "run"
    queued(cluster, shards, run, requeue, "--time", "2", "--signal-lead", "30")
    wait_until(lambda: "resumed" in event_names(run) or "finished" in event_names(run), 200, "the limit", run)
    finished(run, calm)
    if "resumed" in event_names(run):
        assert lost(run) == 0


def test_a_drained_node_lets_its_job_end_and_a_stopped_one_goes_on_elsewhere(
    cluster: Cluster, shards: Path, calm: Path, folder: Path, requeue: str
) -> None:
    run = folder / "run"
    job = queued(cluster, shards, run, requeue)
    drained = nodes_of(cluster, job)[0]
    cluster.run(["scontrol", "update", f"nodename={drained}", "state=drain", "reason=test"])
    done = len(merged_metrics(run))
    wait_until(lambda: len(merged_metrics(run)) > done + 5, 60, "steps on a drained node", run)
    cluster.run(["scancel", "--signal=USR2", job])
    wait_until(lambda: event_names(run).count("resumed") >= 1, 120, "a resume elsewhere", run)
    hosts = json.loads(RunFolder(run).attempts()[-1].record.read_text())["host"]
    assert hosts != drained
    finished(run, calm)
    assert lost(run) == 0
