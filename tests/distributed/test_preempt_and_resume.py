"""Trainings that are stopped or killed resume to the same checkpoint as the baseline run."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from hsadml_dist.checkpoint.digest import run_digest
from hsadml_dist.data.index import load_index
from hsadml_dist.errors import ExitCode
from hsadml_dist.run.history import count_repeated_steps, merged_ledger, merged_metrics
from tests.conftest import Train
from tests.distributed.conftest import Launch
from tests.distributed.training_runs import SETTINGS, STEPS, event_rows, hsadml

EVERY = 10
CATCH_UP = 2


@pytest.fixture
def overrides(shards: Path) -> tuple[str, ...]:
    """Overrides of the baseline run."""
    return (f"data.shards={shards}", *SETTINGS)


def test_sigterm_to_one_rank_stops_all_and_resume_equals_baseline(
    overrides: tuple[str, ...], baseline_run: Path, launch: Launch, train_to_the_end: Train, tmp_path: Path
) -> None:
    job = launch(tmp_path / "run", *overrides, "data.workers=1")
    job.wait_for_step(7)
    os.kill(job.rank_pid(1), signal.SIGTERM)
    signalled_at = job.steps()
    assert job.exit_code() == ExitCode.STOPPED
    (stopped,) = event_rows(job.run, "stopped")
    assert signalled_at <= stopped["step"] <= signalled_at + CATCH_UP
    assert event_rows(job.run, "signal")[0]["noticed"] == ["rank 1: SIGTERM"]

    train_to_the_end(job.run, *overrides, nproc=2)
    assert count_repeated_steps(job.run) == 0
    assert run_digest(job.run) == run_digest(baseline_run)


def test_killed_rank_resumes_from_last_checkpoint_and_equals_baseline(
    overrides: tuple[str, ...], baseline_run: Path, launch: Launch, train_to_the_end: Train, tmp_path: Path
) -> None:
    job = launch(tmp_path / "run", *overrides)
    job.wait_for_step(EVERY + 5)
    os.kill(job.rank_pid(1), signal.SIGKILL)
    assert job.exit_code() == ExitCode.INTERNAL_ERROR
    reached = job.steps()

    train_to_the_end(job.run, *overrides, nproc=2)
    (resumed,) = event_rows(job.run, "resumed")
    assert resumed["step"] == EVERY
    assert count_repeated_steps(job.run) == reached - EVERY <= EVERY
    assert run_digest(job.run) == run_digest(baseline_run)


def test_sigterm_stops_rank_whose_loader_worker_is_blocked(
    overrides: tuple[str, ...],
    baseline_run: Path,
    launch: Launch,
    train_to_the_end: Train,
    shards: Path,
    tmp_path: Path,
) -> None:
    # The shard of one sample becomes a pipe without a writer: the worker that opens it is blocked until it is killed.
    # A rank that waits for it would be killed by the launcher, which then does not exit with STOPPED.
    step = 4  # within the first epoch
    index = load_index(shards)
    shard_of = {row.key: shards / index.shards[row.shard].name for row in index.samples}
    seen = {key for row in merged_ledger(baseline_run)[: step - 1] for key in row["keys"]}
    key = next(key for key in merged_ledger(baseline_run)[step - 1]["keys"] if key not in seen)
    path, backup = shard_of[key], shard_of[key].with_suffix(".backup")
    path.rename(backup)
    os.mkfifo(path)
    try:
        job = launch(tmp_path / "run", *overrides, "data.workers=2")
        job.wait_for_step(step - 1)
        time.sleep(1)
        assert job.steps() == step - 1, "the worker is not blocked"
        os.kill(job.process.pid, signal.SIGTERM)
        assert job.exit_code() == ExitCode.STOPPED
    finally:
        path.unlink()
        backup.rename(path)

    train_to_the_end(job.run, *overrides, nproc=2)
    assert count_repeated_steps(job.run) == 0
    assert run_digest(job.run) == run_digest(baseline_run)


def test_second_start_of_running_training_is_rejected(
    overrides: tuple[str, ...], launch: Launch, tmp_path: Path
) -> None:
    longer = (*overrides, "train.steps=3000")
    job = launch(tmp_path / "run", *longer)
    job.wait_for_step(1)
    assert launch(job.run, *longer).exit_code() == ExitCode.RUN_LOCKED
    assert job.process.poll() is None
    os.kill(job.process.pid, signal.SIGTERM)
    assert job.exit_code() == ExitCode.STOPPED


def test_baseline_run_has_complete_metrics_and_events(baseline_run: Path) -> None:
    rows = merged_metrics(baseline_run)
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    names = {"step", "attempt", "epoch", "loss", "lr", "grad_norm", "samples", "step_seconds", "data_wait_seconds"}
    assert all(set(row) == names for row in rows)
    assert event_rows(baseline_run, "started")[0]["threads_at_fork"] == 1
    assert hsadml("metrics", baseline_run).strip()
