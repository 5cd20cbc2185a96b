"""Generated shards, an undisturbed run, and trainings that no test leaves behind."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.distributed.training_runs import SETTINGS, TrainingProcess, hsadml

Launch = Callable[..., TrainingProcess]


@pytest.fixture
def launch() -> Iterator[Launch]:
    """Start ``hsadml train`` with the given arguments and go on at once; whatever is left is killed at the end."""
    launched: list[TrainingProcess] = []

    def start(run: Path, *arguments: str | Path) -> TrainingProcess:
        launched.append(TrainingProcess.start(run, *arguments))
        return launched[-1]

    yield start
    for job in launched:
        if job.process.poll() is None:
            os.killpg(job.process.pid, signal.SIGKILL)
            job.process.wait()


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Generated patients, one slice a shard, so that a test can take single slices away."""
    folder = tmp_path_factory.mktemp("data")
    key = folder / "id.key"
    hsadml(
        "shards",
        "build",
        "phantom",
        "20",
        "--out",
        folder / "shards",
        "--size",
        "128",
        "--samples-per-shard",
        "1",
        "--id-key",
        key,
    )
    return folder / "shards"


@pytest.fixture(scope="session")
def calm(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The undisturbed run of two ranks."""
    run = tmp_path_factory.mktemp("calm") / "run"
    hsadml("train", "demo", f"data.shards={shards}", *SETTINGS, "--nproc", "2", "--run", run)
    return run
