"""Real trainings on a private cluster: how they are started, waited for and compared."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from hsadml_dist.run.history import merged_events

HSADML = (sys.executable, "-m", "hsadml_dist.launch.cli")


def settings(steps: int) -> tuple[str, ...]:
    """Return settings without periodic checkpoints: all that survives a preemption was saved because of it."""
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
    """Run the command and return what it prints; a failure or a hang ends the test."""
    command = [*HSADML, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, env=env, check=False)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def train_undisturbed(shards: Path, run: Path, steps: int, *more: str) -> Path:
    """Train with 4 local processes; ``more`` are further settings."""
    hsadml("train", "demo", f"data.shards={shards}", *settings(steps), *more, "--nproc", "4", "--run", run)
    return run


def wait_until(true, seconds: float, what: str, run: Path) -> None:
    """Return when ``true()``; a hang ends the test with what was waited for."""
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            log = "\n".join(path.read_text() for path in run.glob("slurm-*.out"))
            pytest.fail(f"{what} did not come within {seconds:.0f} s; events {event_names(run)}\n{log}")
        time.sleep(0.1)


def event_names(run: Path) -> list[str]:
    """Return the names of all events so far."""
    return [row["event"] for row in merged_events(run)]


def digest(run: Path) -> str:
    """Return the digest of a run's newest checkpoint."""
    return hsadml("checkpoint", "digest", run).strip()
