"""Whole trainings as a user starts them: the command line, real processes, and what a run folder says afterwards."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from hsadml_dist.run.history import merged_metrics

HSADML = (sys.executable, "-m", "hsadml_dist.launch.cli")
SECONDS = 150
STEPS = 30
SETTINGS = (
    "model.name=resnet_gn_small",
    "model.embedding_dim=16",
    "data.image_size=112",
    f"train.steps={STEPS}",
    "train.global_batch=24",
    "optim.warmup_steps=5",
    "checkpoint.every=10",
    "evaluation.at_end=false",
    "run.tensorboard=false",
    "run.ledger=true",
)
"""Steps of 100 ms and more, so that a notice meets the training in the middle of one."""


def hsadml(*arguments: str | Path, expect: int = 0) -> str:
    """Run the command; a hang or another exit code than expected ends the test with all that was said."""
    done = subprocess.run([*HSADML, *map(str, arguments)], capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.returncode == expect, f"exit code {done.returncode}, not {expect}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@dataclass(frozen=True)
class TrainingProcess:
    """A training under way: the launcher's process and its run folder."""

    process: subprocess.Popen[str]
    run: Path

    @staticmethod
    def start(run: Path, *arguments: str | Path) -> TrainingProcess:
        """Start ``hsadml train`` and go on at once."""
        command = [*HSADML, "train", *map(str, arguments), "--run", str(run)]
        return TrainingProcess(subprocess.Popen(command, text=True, start_new_session=True), run)

    def rank_pid(self, rank: int) -> int:
        """Return a rank's process id."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        for pid in children:
            if f"RANK={rank}" in Path(f"/proc/{pid}/environ").read_text().split("\0"):
                return int(pid)
        raise AssertionError(f"rank {rank} is not among the launcher's children {children}")

    def steps(self) -> int:
        """Return the number of steps recorded so far."""
        return len(merged_metrics(self.run))

    def wait_for_step(self, step: int) -> None:
        """Return as soon as ``step`` is recorded."""
        deadline = time.monotonic() + SECONDS
        while self.steps() < step:
            assert self.process.poll() is None, f"ended with {self.process.returncode} before step {step}"
            assert time.monotonic() < deadline, f"step {step} was not reached within {SECONDS} s"
            time.sleep(0.01)

    def exit_code(self, within: float = SECONDS) -> int:
        """Return the launcher's exit code; a hang ends the test by name."""
        try:
            return self.process.wait(timeout=within)
        except subprocess.TimeoutExpired:
            pytest.fail(f"{self.run.name}: still running after {within} s")


def digest(run: Path) -> str:
    """Return the digest of a run's newest checkpoint."""
    return hsadml("checkpoint", "digest", run).strip()


def event_rows(run: Path, event: str) -> list[dict[str, object]]:
    """Return a run's events of one kind."""
    rows = json.loads(hsadml("metrics", run, "--events", "--json"))
    return [row for row in rows if row["event"] == event]
