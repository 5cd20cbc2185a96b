"""What happened in an attempt, as rows."""

from __future__ import annotations

import time
from typing import Any, Literal

from hsadml_dist.run.folder import AttemptFolder
from hsadml_dist.run.rows import JsonlWriter

EventName = Literal[
    "started",
    "checkpoint",
    "signal",
    "stopped",
    "resumed",
    "fell_back",
    "code_changed",
    "network",
    "finished",
    "failed",
    "skipped",
    "straggler",
    "hang",
]


def event_row(
    attempt: AttemptFolder, job: str | None, restart: int, event: EventName, step: int, **detail: Any
) -> dict[str, Any]:
    """Return the row of an event at ``step`` (the last one done) that happens now, in seconds since 1970 UTC."""
    common = {"attempt": attempt.number, "job": job, "restart": restart}
    return {"event": event, "step": step, "time": time.time(), **common, **detail}


class EventLog:
    """Writes an attempt's event rows."""

    def __init__(self, attempt: AttemptFolder, job: str | None, restart: int) -> None:
        self._rows = JsonlWriter(attempt.events)
        self._attempt, self._job, self._restart = attempt, job, restart

    def write(self, event: EventName, step: int, **detail: Any) -> None:
        """Append an event at ``step`` (the last one done), with its time in seconds since 1970 UTC and its details."""
        self._rows.write(event_row(self._attempt, self._job, self._restart, event, step, **detail))
