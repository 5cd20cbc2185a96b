"""Real trainings that jobs of higher priority preempt end with the same state as without preemption."""

from __future__ import annotations

import json
import random
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from hsadml_dist.checkpoint.digest import run_digest
from hsadml_dist.run.folder import RunFolder
from hsadml_dist.run.history import count_repeated_steps, merged_events, merged_metrics
from hsadml_dist.slurm.devcluster.cluster import Cluster
from hsadml_dist.slurm.job_records import read_job_records
from tests.conftest import Train
from tests.slurm.cluster_trainings import event_names, hsadml, settings, train_undisturbed, wait_until
from tests.slurm.conftest import MakeCluster

SHORT_STEPS = 100
STEPS = 240
PREEMPT_AT = (10, 30, 50)
"""Early steps: the rest of the training takes several times as long as Slurm needs to preempt it."""
LONG_STEPS = 700


@pytest.fixture(scope="module")
def undisturbed(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folder of the same training with as many ranks, without Slurm."""
    return train_undisturbed(shards, tmp_path_factory.mktemp("undisturbed") / "run", STEPS)


@pytest.fixture(scope="module")
def long_undisturbed(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with more steps."""
    return train_undisturbed(shards, tmp_path_factory.mktemp("long") / "run", LONG_STEPS)


@pytest.mark.slurm
def test_a_preemption_on_a_friendly_site_loses_nothing(
    make_cluster: MakeCluster, shards: Path, train_to_the_end: Train, folder: Path
) -> None:
    """On 2 nodes with a rank each."""
    cluster, run = make_cluster(mode="netns", site="friendly"), folder / "run"
    undisturbed = folder / "undisturbed"
    train_to_the_end(undisturbed, f"data.shards={shards}", *settings(SHORT_STEPS), nproc=2)
    job = submit_training(cluster, shards, run, SHORT_STEPS, "self", tasks_per_node=1)
    preempt_at(PREEMPT_AT[:1], cluster, job, run)
    assert_nothing_was_lost(run, undisturbed, SHORT_STEPS, 1)
    assert {row["job"] for row in merged_events(run)} == {read_job_records(RunFolder(run))[0].job}


@pytest.mark.slurm
@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_three_preemptions_on_a_friendly_site_lose_nothing(
    make_cluster: MakeCluster, shards: Path, undisturbed: Path, folder: Path
) -> None:
    cluster, run = make_cluster(mode="netns", site="friendly"), folder / "run"
    preempt_at(PREEMPT_AT, cluster, submit_training(cluster, shards, run, STEPS, "self"), run)
    assert_nothing_was_lost(run, undisturbed, STEPS, len(PREEMPT_AT))
    assert {row["job"] for row in merged_events(run)} == {read_job_records(RunFolder(run))[0].job}


@pytest.mark.slurm
@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_three_preemptions_of_a_submitit_job_lose_nothing(
    make_cluster: MakeCluster, shards: Path, undisturbed: Path, folder: Path
) -> None:
    cluster, run = make_cluster(mode="netns", site="friendly"), folder / "run"
    job = submit_training(cluster, shards, run, STEPS, "self", "--backend", "submitit")
    preempt_at(PREEMPT_AT, cluster, job, run)
    assert_nothing_was_lost(run, undisturbed, STEPS, len(PREEMPT_AT))


@pytest.mark.slurm
@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_preempted_fold_of_an_array_resumes_alone(make_cluster: MakeCluster, shards: Path, folder: Path) -> None:
    """Each element has a node; that of fold 1 is taken away."""
    cluster, home = make_cluster(mode="netns", site="friendly"), folder / "folds"
    whole_node = ("--nodes", "1", "--tasks-per-node", "2", "--cpus-per-task", "4")
    shape = (*whole_node, "--requeue", "self", "--folds", "0,1", "--run", home)
    # As many threads as the run to compare with, because the rounding of sums depends on their number.
    common = (f"data.shards={shards}", *settings(STEPS), "engine.threads=1")
    hsadml("submit", "demo", *common, *shape, env=cluster.env())
    kept, preempted = home / "fold-0", home / "fold-1"
    wait_until(lambda: min(len(merged_metrics(kept)), len(merged_metrics(preempted))) >= 20, "both starts", preempted)
    node = json.loads(RunFolder(preempted).attempts()[0].record.read_text())["host"]
    high = ("--partition=high", "--exclusive", "--output=/dev/null", f"--nodelist={node}", "--wrap=sleep 1")
    cluster.run(["sbatch", *high])
    for run in (kept, preempted):
        wait_until(lambda run=run: "finished" in event_names(run), "the end", run)
    assert [event_names(run).count("started") for run in (kept, preempted)] == [1, 2]
    assert event_names(preempted).count("stopped") == 1 and count_repeated_steps(preempted) == 0
    hsadml("train", "demo", *common, "data.fold=1", "--nproc", "2", "--run", folder / "alone")
    assert run_digest(preempted) == run_digest(folder / "alone")


@pytest.mark.slurm
@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_three_preemptions_on_a_default_site_lose_nothing(
    make_cluster: MakeCluster, shards: Path, undisturbed: Path, folder: Path
) -> None:
    """The job requeues itself and waits for two minutes each time."""
    cluster, run = make_cluster(mode="netns", site="default"), folder / "run"
    preempt_at(PREEMPT_AT, cluster, submit_training(cluster, shards, run, STEPS, "self"), run)
    assert_nothing_was_lost(run, undisturbed, STEPS, len(PREEMPT_AT))


@pytest.mark.slurm
@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("stage", [2, 3])
def test_three_preemptions_of_a_zero_chain_lose_nothing(
    make_cluster: MakeCluster, shards: Path, folder: Path, stage: int
) -> None:
    """In a chain, with ZeRO."""
    engine = ("engine.name=deepspeed", f"engine.zero_stage={stage}")
    undisturbed = train_undisturbed(shards, folder / "undisturbed", STEPS, *engine)
    cluster, run = make_cluster(mode="netns", site="default"), folder / "run"
    preempt_at(PREEMPT_AT, cluster, submit_training(cluster, shards, run, STEPS, "chain", *engine), run)
    assert_nothing_was_lost(run, undisturbed, STEPS, len(PREEMPT_AT))


@pytest.mark.slurm
@pytest.mark.soak
@pytest.mark.timeout(7200)
def test_twenty_preemptions_of_a_chain_lose_nothing(
    make_cluster: MakeCluster, shards: Path, long_undisturbed: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a chain, at random steps, on 2 nodes with 2 ranks each."""
    cluster, run = make_cluster(mode="netns", site="default"), folder / "run"
    draw = random.Random(0)
    at = [20 + number * 30 + draw.randrange(20) for number in range(20)]
    job = submit_training(cluster, shards, run, LONG_STEPS, "chain")
    seconds = preempt_at(at, cluster, job, run)
    assert_nothing_was_lost(run, long_undisturbed, LONG_STEPS, len(at))
    jobs = [row["job"] for row in merged_events(run) if row["event"] == "started"]
    assert len(set(jobs)) == len(jobs) == len(at) + 1, "every link is a separate job"
    with capsys.disabled():
        sys.stdout.write(
            f"\n20 preemptions at steps {at}; steps lost 0; jobs {jobs[0]} to {jobs[-1]}\n"
            f"preemption to next step: median {statistics.median(seconds):.1f} s, max {max(seconds):.1f} s\n"
        )


def submit_training(
    cluster: Cluster, shards: Path, run: Path, steps: int, requeue: str, *more: str, tasks_per_node: int = 2
) -> str:
    """Submit a training of 2 nodes; return the job id."""
    shape = ("--nodes", "2", "--tasks-per-node", str(tasks_per_node), "--requeue", requeue, "--run", run, *more)
    return hsadml("submit", "demo", f"data.shards={shards}", *settings(steps), *shape, env=cluster.env()).split()[-1]


def preempt_at(steps: Sequence[int], cluster: Cluster, job: str, run: Path) -> list[float]:
    """Preempt a run at steps and wait for its end; return the seconds from each preemption to the next step."""
    seconds = []
    for step in steps:
        wait_until(lambda step=step: len(merged_metrics(run)) >= step, f"step {step} of job {job}", run)
        began, stops = time.monotonic(), event_names(run).count("stopped")
        cluster.run(["sbatch", "--partition=high", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=sleep 1"])
        wait_until(lambda stops=stops: event_names(run).count("stopped") > stops, f"a stop after step {step}", run)
        done = len(merged_metrics(run))
        wait_until(lambda done=done: len(merged_metrics(run)) > done, f"a step after {done}", run)
        seconds.append(time.monotonic() - began)
    wait_until(lambda: "finished" in event_names(run), f"the end of job {job}", run)
    return seconds


def assert_nothing_was_lost(run: Path, undisturbed: Path, steps: int, stops: int) -> None:
    """Compare a run that was stopped ``stops`` times with the undisturbed one."""
    assert event_names(run).count("stopped") == event_names(run).count("resumed") == stops
    assert [row["step"] for row in merged_metrics(run)] == list(range(1, steps + 1)), "steps were lost"
    assert count_repeated_steps(run) == 0, "steps were redone"
    assert run_digest(run) == run_digest(undisturbed)
