"""Run whole trainings as a user does: the command line, real processes, and the content of the run folder."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from hsadml_dist.run.history import merged_events, merged_metrics

HSADML = (sys.executable, "-m", "hsadml_dist.launch.cli")
HANG_SECONDS = 600
"""Time limit of a command; it only guards against hangs."""
STEPS = 30
SETTINGS = (
    "model.name=resnet_gn_small",
    "model.embedding_dim=16",
    "data.image_size=64",
    f"train.steps={STEPS}",
    "train.global_batch=24",
    "optim.warmup_steps=5",
    "checkpoint.every=10",
    "evaluation.at_end=false",
    "run.tensorboard=false",
    "run.ledger=true",
)
"""Settings with steps of 100 ms and more, so that a signal arrives in the middle of one."""


def hsadml(*arguments: str | Path, expect: int = 0, environ: Mapping[str, str] = os.environ) -> str:
    """Run the command and return its output; fail if it hangs or ends with another exit code than ``expect``."""
    command = [*HSADML, *map(str, arguments)]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=HANG_SECONDS, check=False)
    assert done.returncode == expect, f"exit code {done.returncode}, expected {expect}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@dataclass(frozen=True)
class TrainingProcess:
    """A running training: the process of its launcher, and its run folder."""

    process: subprocess.Popen[str]
    run: Path

    @staticmethod
    def start(run: Path, *overrides: str) -> TrainingProcess:
        """Start ``hsadml train`` with two ranks, without waiting for it."""
        command = [*HSADML, "train", "demo", *overrides, "--nproc", "2", "--run", str(run)]
        return TrainingProcess(subprocess.Popen(command, text=True, start_new_session=True), run)

    def rank_pid(self, rank: int) -> int:
        """Return the process id of a rank."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        for pid in children:
            if f"RANK={rank}" in Path(f"/proc/{pid}/environ").read_text().split("\0"):
                return int(pid)
        raise AssertionError(f"rank {rank} is not among the launcher's children {children}")

    def steps(self) -> int:
        """Return the number of steps recorded so far."""
        return len(merged_metrics(self.run))

    def wait_for_step(self, step: int) -> None:
        """Wait until ``step`` is recorded."""
        deadline = time.monotonic() + HANG_SECONDS
        while self.steps() < step:
            assert self.process.poll() is None, f"exit code {self.process.returncode} before step {step}"
            assert time.monotonic() < deadline, f"step {step} not reached within {HANG_SECONDS} s"
            time.sleep(0.01)

    def exit_code(self) -> int:
        """Wait for the launcher and return its exit code; fail if it hangs."""
        try:
            return self.process.wait(timeout=HANG_SECONDS)
        except subprocess.TimeoutExpired:
            pytest.fail(f"{self.run.name}: still running after {HANG_SECONDS} s")


def event_rows(run: Path, event: str) -> list[dict[str, object]]:
    """Return the rows of one kind of event of a run."""
    return [row for row in merged_events(run) if row["event"] == event]
