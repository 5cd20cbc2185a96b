"""Settings of what a run records and how long it waits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hsadml_dist.config.keys import setting


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Records and time-outs of a run.

    Attributes:
        ledger: Whether each step's sample keys are recorded, in global order.
        tensorboard: Whether TensorBoard files are written.
        timeout_seconds: Longest wait for a peer before the rank gives up.
        step_timeout_seconds: Longest time for a step, from its data to its end; the start, the first step, a save and
            the evaluation get ten times as long. A rank that overruns writes its stacks and ends the run; null: none.
        stop_lead_seconds: How long before the job's end time a run stops by itself.
        code_change: What a start with other code than the first one's does: ``name`` goes on and names the files that
            differ, ``refuse`` does not start.
    """

    ledger: bool = setting(False, on_resume="movable")
    tensorboard: bool = setting(True, on_resume="movable")
    timeout_seconds: int = setting(600, on_resume="movable", ge=1)
    step_timeout_seconds: int | None = setting(300, on_resume="movable", ge=3)
    stop_lead_seconds: int = setting(60, on_resume="movable", ge=0)
    code_change: Literal["name", "refuse"] = setting("name", on_resume="movable")
