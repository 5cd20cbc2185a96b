"""A real training on a private cluster, preempted by jobs of higher priority, ends as if nothing had happened."""

from __future__ import annotations

import json
import random
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from hsadml_dist.run.folder import RunFolder
from hsadml_dist.run.history import count_repeated_steps, merged_events, merged_metrics
from hsadml_dist.slurm.devcluster.cluster import Cluster
from hsadml_dist.slurm.job_records import read_job_records
from tests.slurm.cluster_trainings import digest, event_names, hsadml, settings, train_undisturbed, wait_until
from tests.slurm.conftest import MakeCluster

STEPS = 240
PREEMPT_AT = (15, 60, 110)
"""Steps of some 20 ms follow the last one for seconds: Slurm needs about one to preempt."""
LONG = 700


@pytest.fixture(scope="module")
def calm(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The undisturbed run, of as many ranks, without Slurm."""
    return train_undisturbed(shards, tmp_path_factory.mktemp("calm") / "run", STEPS)


@pytest.fixture(scope="module")
def long_calm(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same over more steps."""
    return train_undisturbed(shards, tmp_path_factory.mktemp("long") / "run", LONG)


@pytest.mark.slurm
@pytest.mark.timeout(400)
def test_three_preemptions_on_a_friendly_site(
    make_cluster: MakeCluster, shards: Path, calm: Path, folder: Path
) -> None:
    cluster, run = make_cluster(mode="netns", site="friendly"), folder / "run"
    preempt_at(PREEMPT_AT, cluster, job_of(cluster, shards, run, STEPS, "self"), run, patience=120)
    as_if_nothing_had_happened(run, calm, STEPS, len(PREEMPT_AT))
    assert {row["job"] for row in merged_events(run)} == {read_job_records(RunFolder(run))[0].job}


@pytest.mark.slurm
@pytest.mark.soak
@pytest.mark.timeout(600)
def test_three_preemptions_through_submitit(make_cluster: MakeCluster, shards: Path, calm: Path, folder: Path) -> None:
    cluster, run = make_cluster(mode="netns", site="friendly"), folder / "run"
    job = job_of(cluster, shards, run, STEPS, "self", "--backend", "submitit")
    preempt_at(PREEMPT_AT, cluster, job, run, patience=120)
    as_if_nothing_had_happened(run, calm, STEPS, len(PREEMPT_AT))


@pytest.mark.slurm
@pytest.mark.soak
@pytest.mark.timeout(600)
def test_a_preempted_array_of_two_folds_goes_on_only_where_it_was_stopped(
    make_cluster: MakeCluster, shards: Path, folder: Path
) -> None:
    """Each element has a node; the one of fold 1 is taken away."""
    cluster, home = make_cluster(mode="netns", site="friendly"), folder / "folds"
    whole_node = ("--nodes", "1", "--tasks-per-node", "2", "--cpus-per-task", "4")
    shape = (*whole_node, "--requeue", "self", "--folds", "0,1", "--run", home)
    # As many threads as the run beside it: with more, sums round differently.
    common = (f"data.shards={shards}", *settings(STEPS), "engine.threads=1")
    hsadml("submit", "demo", *common, *shape, env=cluster.env())
    left, taken = home / "fold-0", home / "fold-1"
    wait_until(lambda: min(len(merged_metrics(left)), len(merged_metrics(taken))) >= 20, 120, "both starts", taken)
    node = json.loads(RunFolder(taken).attempts()[0].record.read_text())["host"]
    high = ("--partition=high", "--exclusive", "--output=/dev/null", f"--nodelist={node}", "--wrap=sleep 1")
    cluster.run(["sbatch", *high])
    for run in (left, taken):
        wait_until(lambda run=run: "finished" in event_names(run), 120, "the end", run)
    assert [event_names(run).count("started") for run in (left, taken)] == [1, 2]
    assert event_names(taken).count("stopped") == 1 and count_repeated_steps(taken) == 0
    hsadml("train", "demo", *common, "data.fold=1", "--nproc", "2", "--run", folder / "alone")
    assert digest(taken) == digest(folder / "alone")


@pytest.mark.slurm
@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_three_preemptions_on_a_default_site(make_cluster: MakeCluster, shards: Path, calm: Path, folder: Path) -> None:
    """By way of the queue: each time the job waits for two minutes."""
    cluster, run = make_cluster(mode="netns", site="default"), folder / "run"
    preempt_at(PREEMPT_AT, cluster, job_of(cluster, shards, run, STEPS, "self"), run, patience=400)
    as_if_nothing_had_happened(run, calm, STEPS, len(PREEMPT_AT))


@pytest.mark.slurm
@pytest.mark.soak
@pytest.mark.timeout(900)
@pytest.mark.parametrize("stage", [2, 3])
def test_preemptions_on_a_default_site_under_zero(
    make_cluster: MakeCluster, shards: Path, folder: Path, stage: int
) -> None:
    """By a chain."""
    engine = ("engine.name=deepspeed", f"engine.zero_stage={stage}")
    calm = train_undisturbed(shards, folder / "calm", STEPS, *engine)
    cluster, run = make_cluster(mode="netns", site="default"), folder / "run"
    preempt_at(PREEMPT_AT, cluster, job_of(cluster, shards, run, STEPS, "chain", *engine), run, patience=200)
    as_if_nothing_had_happened(run, calm, STEPS, len(PREEMPT_AT))


@pytest.mark.slurm
@pytest.mark.soak
@pytest.mark.timeout(3000)
def test_twenty_preemptions_in_a_row_on_a_default_site(
    make_cluster: MakeCluster, shards: Path, long_calm: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By a chain; drawn steps, 2 nodes of 2 ranks."""
    cluster, run = make_cluster(mode="netns", site="default"), folder / "run"
    draw = random.Random(0)
    at = [20 + number * 30 + draw.randrange(20) for number in range(20)]
    job = job_of(cluster, shards, run, LONG, "chain")
    seconds = preempt_at(at, cluster, job, run, patience=200)
    as_if_nothing_had_happened(run, long_calm, LONG, len(at))
    jobs = [row["job"] for row in merged_events(run) if row["event"] == "started"]
    assert len(set(jobs)) == len(jobs) == len(at) + 1, "every link is a job of its own"
    with capsys.disabled():
        sys.stdout.write(
            f"\n20 preemptions at steps {at}; steps lost 0; jobs {jobs[0]} to {jobs[-1]}\n"
            f"notice to next step: median {statistics.median(seconds):.1f} s, most {max(seconds):.1f} s\n"
        )


def job_of(cluster: Cluster, shards: Path, run: Path, steps: int, requeue: str, *more: str) -> str:
    """Submit a training of 2 nodes with 2 ranks each; return the job's id."""
    shape = ("--nodes", "2", "--tasks-per-node", "2", "--requeue", requeue, "--run", run, *more)
    return hsadml("submit", "demo", f"data.shards={shards}", *settings(steps), *shape, env=cluster.env()).split()[-1]


def preempt_at(steps: Sequence[int], cluster: Cluster, job: str, run: Path, patience: float) -> list[float]:
    """Preempt a run at steps and see it end; return the seconds from each preemption to the next step."""
    seconds = []
    for step in steps:
        wait_until(lambda step=step: len(merged_metrics(run)) >= step, patience, f"step {step} of job {job}", run)
        began, stops = time.monotonic(), event_names(run).count("stopped")
        cluster.run(["sbatch", "--partition=high", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=sleep 1"])
        wait_until(
            lambda stops=stops: event_names(run).count("stopped") > stops, patience, f"a stop after step {step}", run
        )
        done = len(merged_metrics(run))
        wait_until(lambda done=done: len(merged_metrics(run)) > done, patience, f"a step after {done}", run)
        seconds.append(time.monotonic() - began)
    wait_until(lambda: "finished" in event_names(run), patience, f"the end of job {job}", run)
    return seconds


def as_if_nothing_had_happened(run: Path, calm: Path, steps: int, stops: int) -> None:
    """Compare a run that was stopped so often with the one that was not."""
    assert event_names(run).count("stopped") == event_names(run).count("resumed") == stops
    assert [row["step"] for row in merged_metrics(run)] == list(range(1, steps + 1)), "steps were lost"
    assert count_repeated_steps(run) == 0, "steps were redone"
    assert digest(run) == digest(calm)
