"""How a run stands, as one value."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from hsadml_dist.run.state import RunState
from hsadml_dist.slurm.answers import SlurmJob

Phase = Literal[
    "empty", "queued", "starting", "running", "stopped", "finished", "failed", "cancelled", "lost", "silent"
]


@dataclass(frozen=True, kw_only=True)
class StatusRow:
    """How a run stands.

    Attributes:
        run: Its folder.
        phase: One word. empty: never started. silent: its job or process may live, but it gives no sign of life.
            lost: job or process is gone without a word.
        text: The same in words, with why and how it goes on.
        over: Whether nothing more will happen by itself.
        state: What the folder says.
        job: The Slurm job that runs, else the one that waits, else the last. None: no job.
        reason: Why it failed, was stopped or is lost; one line.
        advice: What to do, as one line.
    """

    run: Path
    phase: Phase
    text: str
    over: bool
    state: RunState
    job: SlurmJob | None = None
    reason: str | None = None
    advice: str | None = None

    def as_json(self, now: float) -> dict[str, Any]:
        """Return the row for programs: always the same keys; times in seconds since 1970 UTC."""
        state, job = self.state, self.job
        return {
            "run": str(self.run),
            "phase": self.phase,
            "text": self.text,
            "over": self.over,
            "step": state.step,
            "total_steps": state.total_steps,
            "loss": state.loss,
            "samples_per_second": state.samples_per_second,
            "checkpoint_step": state.checkpoint_step,
            "attempts": state.attempts,
            "restart": state.restart,
            "ranks": state.world_size,
            "last_sign": state.last_sign,
            "age_seconds": None if state.last_sign is None else max(0.0, now - state.last_sign),
            "job": None if job is None else job.job,
            "job_state": None if job is None else job.state,
            "job_reason": None if job is None else job.reason or None,
            "job_start": None if job is None else job.start,
            "job_nodes": None if job is None else job.nodes or None,
            "exit_code": state.exit_code,
            "reason": self.reason,
            "advice": self.advice,
        }
