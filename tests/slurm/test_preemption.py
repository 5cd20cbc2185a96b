"""A real training on a private cluster, preempted by jobs of higher priority, ends as if nothing had happened."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from hsadml_dist.run.merged import merged_events, merged_metrics, steps_done_twice
from hsadml_dist.slurm.box.cluster import Cluster
from tests.slurm.conftest import MakeCluster

HSADML = (sys.executable, "-m", "hsadml_dist.launch.cli")
STEPS = 240
PREEMPT_AT = (15, 60, 110)
"""Steps of some 20 ms follow the last one for seconds: Slurm needs about one to preempt."""
SETTINGS = (
    "model.name=resnet_gn_tiny",
    "model.embedding_dim=16",
    "data.image_size=64",
    f"train.steps={STEPS}",
    "train.global_batch=24",
    "optim.warmup_steps=5",
    "checkpoint.every=1000",
    "evaluation.at_end=false",
    "run.tensorboard=false",
)
"""No periodic checkpoint: all that survives a preemption is what was saved because of it."""


def hsadml(*arguments: str | Path, env: dict[str, str] | None = None) -> str:
    """Run the command and return what it prints; a failure or a hang ends the test."""
    command = [*HSADML, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, env=env, check=False)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    out = folder / "shards"
    hsadml("shards", "build", "phantom", "20", "--out", out, "--size", "64", "--id-key", folder / "id.key")
    return out


@pytest.fixture(scope="module")
def calm(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The undisturbed run, of as many ranks, without Slurm."""
    run = tmp_path_factory.mktemp("calm") / "run"
    hsadml("train", "demo", f"data.shards={shards}", *SETTINGS, "--nproc", "4", "--run", run)
    return run


@pytest.mark.slurm
@pytest.mark.timeout(400)
def test_three_preemptions_on_a_friendly_site(
    make_cluster: MakeCluster, shards: Path, calm: Path, folder: Path
) -> None:
    preempt_thrice(make_cluster(mode="netns", site="friendly"), shards, calm, folder / "run", patience=120)


@pytest.mark.slurm
@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_three_preemptions_on_a_default_site(make_cluster: MakeCluster, shards: Path, calm: Path, folder: Path) -> None:
    preempt_thrice(make_cluster(mode="netns", site="default"), shards, calm, folder / "run", patience=400)


def preempt_thrice(cluster: Cluster, shards: Path, calm: Path, run: Path, patience: float) -> None:
    """Submit a 2x2 job, preempt it three times, and compare its end with the undisturbed run's."""
    job = hsadml(
        "submit",
        "demo",
        f"data.shards={shards}",
        *SETTINGS,
        "--nodes",
        "2",
        "--tasks-per-node",
        "2",
        "--requeue",
        "self",
        "--run",
        run,
        env=cluster.env(),
    ).split()[-1]
    for step in PREEMPT_AT:
        wait_until(lambda step=step: len(merged_metrics(run)) >= step, patience, f"step {step} of job {job}", run)
        cluster.run(["sbatch", "--partition=high", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=sleep 1"])
    wait_until(lambda: "finished" in names(run), patience, f"the end of job {job}", run)

    assert names(run).count("stopped") == len(PREEMPT_AT)
    assert names(run).count("resumed") == len(PREEMPT_AT)
    assert [row["step"] for row in merged_metrics(run)] == list(range(1, STEPS + 1)), "steps were lost"
    assert steps_done_twice(run) == 0, "steps were redone"
    assert {row["job"] for row in merged_events(run)} == {job}
    assert digest(run) == digest(calm)


def wait_until(true, seconds: float, what: str, run: Path) -> None:
    """Return when ``true()``; a hang ends the test with what was waited for."""
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            log = "\n".join(path.read_text() for path in run.glob("slurm-*.out"))
            pytest.fail(f"{what} did not come within {seconds:.0f} s; events {names(run)}\n{log}")
        time.sleep(0.1)


def names(run: Path) -> list[str]:
    """Return the names of all events so far."""
    return [row["event"] for row in merged_events(run)]


def digest(run: Path) -> str:
    """Return the digest of a run's newest checkpoint."""
    return hsadml("checkpoint", "digest", run).strip()
