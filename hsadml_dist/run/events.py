"""What happened in an attempt, as rows."""

from __future__ import annotations

import time
from typing import Any, Literal

from hsadml_dist.run.folder import AttemptFolder
from hsadml_dist.run.rows import RowWriter

EventName = Literal["started", "checkpoint", "signal", "stopped", "resumed", "fell_back", "code_changed", "finished", "failed"]


class Events:
    """Writes an attempt's event rows."""

    def __init__(self, attempt: AttemptFolder, job: str | None, restart: int) -> None:
        self._rows = RowWriter(attempt.events)
        self._common = {"attempt": attempt.number, "job": job, "restart": restart}

    def write(self, event: EventName, step: int, **detail: Any) -> None:
        """Append an event at ``step`` (the last one done), with its time in seconds since 1970 UTC and its details."""
        self._rows.write({"event": event, "step": step, "time": time.time(), **self._common, **detail})
