"""Generated shards, a baseline run, and a launcher whose trainings are killed at the end of a test."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import Train
from tests.distributed.training_runs import HANG_SECONDS, SETTINGS, TrainingProcess, hsadml

Launch = Callable[..., TrainingProcess]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Allow the tests of this folder several commands that take up to HANG_SECONDS each."""
    for item in items:
        if item.path.parent == Path(__file__).parent and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(4 * HANG_SECONDS))


@pytest.fixture
def launch() -> Iterator[Launch]:
    """Start ``hsadml train`` with two ranks without waiting for it; kill those left at the end of the test."""
    trainings: list[TrainingProcess] = []

    def start(run: Path, *overrides: str) -> TrainingProcess:
        trainings.append(TrainingProcess.start(run, *overrides))
        return trainings[-1]

    yield start
    for training in trainings:
        if training.process.poll() is None:
            os.killpg(training.process.pid, signal.SIGKILL)
            training.process.wait()


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of generated patients, one slice per shard, so that a test can remove single slices."""
    folder = tmp_path_factory.mktemp("data")
    options = ("--size", "128", "--samples-per-shard", "1", "--id-key", folder / "id.key")
    hsadml("shards", "build", "phantom", "20", "--out", folder / "shards", *options)
    return folder / "shards"


@pytest.fixture(scope="session")
def baseline_run(shards: Path, train_to_the_end: Train, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Uninterrupted run of two ranks."""
    run = tmp_path_factory.mktemp("baseline_run") / "run"
    train_to_the_end(run, f"data.shards={shards}", *SETTINGS, nproc=2)
    return run
