"""Real trainings on a private cluster: helpers to start, await and compare them."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from hsadml_dist.run.history import merged_events

HSADML = (sys.executable, "-m", "hsadml_dist.launch.cli")
HANG_SECONDS = 900
"""Limit that only guards against a hang."""


def settings(steps: int) -> tuple[str, ...]:
    """Return settings without periodic checkpoints, so that a run can only resume from the save of a preemption."""
    return (
        "model.name=resnet_gn_tiny",
        "model.embedding_dim=16",
        "data.image_size=64",
        f"train.steps={steps}",
        "train.global_batch=24",
        "optim.warmup_steps=5",
        "checkpoint.every=1000",
        "evaluation.at_end=false",
        "run.tensorboard=false",
    )


def hsadml(*arguments: str | Path, env: dict[str, str] | None = None) -> str:
    """Run ``hsadml`` and return its output; a failure or a hang fails the test."""
    command = [*HSADML, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANG_SECONDS, env=env, check=False)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def train_undisturbed(shards: Path, run: Path, steps: int, *more: str) -> Path:
    """Train with 4 local processes and return the run folder; ``more`` are further settings."""
    hsadml("train", "demo", f"data.shards={shards}", *settings(steps), *more, "--nproc", "4", "--run", run)
    return run


def wait_until(condition: Callable[[], bool], what: str, run: Path, seconds: float = HANG_SECONDS) -> None:
    """Wait until ``condition()`` holds; a hang fails the test and names ``what``."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            log = "\n".join(path.read_text() for path in run.glob("slurm-*.out"))
            pytest.fail(f"{what} has not come within {seconds:.0f} s; events {event_names(run)}\n{log}")
        time.sleep(0.1)


def event_names(run: Path) -> list[str]:
    """Return the names of all events so far."""
    return [row["event"] for row in merged_events(run)]
