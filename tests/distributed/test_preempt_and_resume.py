"""Trainings that are stopped, killed or caught in a read go on as if nothing had happened."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from hsadml_dist.data.index import load_index
from hsadml_dist.errors import ExitCode
from hsadml_dist.run.history import count_repeated_steps, merged_ledger, merged_metrics
from tests.distributed.conftest import Launch
from tests.distributed.training_runs import SETTINGS, STEPS, digest, event_rows, hsadml

EVERY = 10
CATCH_UP = 2


@pytest.fixture
def arguments(shards: Path) -> tuple[str, ...]:
    """The undisturbed run's command line."""
    return ("demo", f"data.shards={shards}", *SETTINGS, "--nproc", "2")


def test_a_notice_to_one_rank_stops_all_and_the_resumed_run_is_the_undisturbed_one(
    arguments: tuple[str, ...], calm: Path, launch: Launch, tmp_path: Path
) -> None:
    job = launch(tmp_path / "run", *arguments, "data.workers=1")
    job.wait_for_step(7)
    os.kill(job.rank_pid(1), signal.SIGTERM)
    told_at = job.steps()
    assert job.exit_code(within=20) == ExitCode.STOPPED
    (stopped,) = event_rows(job.run, "stopped")
    assert told_at <= stopped["step"] <= told_at + CATCH_UP
    assert event_rows(job.run, "signal")[0]["noticed"] == ["rank 1: SIGTERM"]

    assert launch(job.run, *arguments).exit_code() == ExitCode.SUCCESS
    assert count_repeated_steps(job.run) == 0
    assert digest(job.run) == digest(calm)


def test_a_killed_rank_costs_at_most_one_interval_and_no_bit(
    arguments: tuple[str, ...], calm: Path, launch: Launch, tmp_path: Path
) -> None:
    job = launch(tmp_path / "run", *arguments)
    job.wait_for_step(EVERY + 5)
    os.kill(job.rank_pid(1), signal.SIGKILL)
    assert job.exit_code(within=30) == ExitCode.INTERNAL_ERROR
    reached = job.steps()

    assert launch(job.run, *arguments).exit_code() == ExitCode.SUCCESS
    (resumed,) = event_rows(job.run, "resumed")
    assert resumed["step"] == EVERY
    assert count_repeated_steps(job.run) == reached - EVERY <= EVERY
    assert digest(job.run) == digest(calm)


def test_a_rank_leaves_at_once_though_its_worker_sleeps_in_a_read(
    arguments: tuple[str, ...], calm: Path, launch: Launch, shards: Path, tmp_path: Path
) -> None:
    # One sample's shard becomes a pipe that nobody writes into: the worker that opens it sleeps until killed.
    step = 4  # within the first epoch
    index = load_index(shards)
    shard_of = {row.key: shards / index.shards[row.shard].name for row in index.samples}
    seen = {key for row in merged_ledger(calm)[: step - 1] for key in row["keys"]}
    key = next(key for key in merged_ledger(calm)[step - 1]["keys"] if key not in seen)
    path, aside = shard_of[key], shard_of[key].with_suffix(".aside")
    path.rename(aside)
    os.mkfifo(path)
    try:
        job = launch(tmp_path / "run", *arguments, "data.workers=2")
        job.wait_for_step(step - 1)
        time.sleep(1)
        assert job.steps() == step - 1, "the worker is not asleep"
        began = time.monotonic()
        os.kill(job.process.pid, signal.SIGTERM)
        assert job.exit_code(within=20) == ExitCode.STOPPED
        took = time.monotonic() - began
    finally:
        path.unlink()
        aside.rename(path)
    assert took < 3, f"leaving took {took:.1f} s"

    assert launch(job.run, *arguments).exit_code() == ExitCode.SUCCESS
    assert count_repeated_steps(job.run) == 0
    assert digest(job.run) == digest(calm)


def test_a_second_start_of_a_running_training_is_refused(
    arguments: tuple[str, ...], launch: Launch, tmp_path: Path
) -> None:
    longer = (*arguments, "train.steps=3000")
    job = launch(tmp_path / "run", *longer)
    job.wait_for_step(1)
    assert launch(job.run, *longer).exit_code() == ExitCode.RUN_LOCKED
    assert job.process.poll() is None
    os.kill(job.process.pid, signal.SIGTERM)
    assert job.exit_code() == ExitCode.STOPPED


def test_the_rows_of_the_undisturbed_run_are_complete(calm: Path) -> None:
    rows = merged_metrics(calm)
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    names = {"step", "attempt", "epoch", "loss", "lr", "grad_norm", "samples", "step_seconds", "data_wait_seconds"}
    assert all(set(row) == names for row in rows)
    assert event_rows(calm, "started")[0]["threads_at_fork"] == 1
    assert hsadml("metrics", calm).strip()
