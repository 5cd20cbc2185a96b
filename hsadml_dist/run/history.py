"""The history of a run: the event log of an attempt, and metrics, ledger and events merged over all attempts."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from hsadml_dist.run.folder import AttemptFolder, RunFolder
from hsadml_dist.run.jsonl import JsonlWriter, read_jsonl

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


def merged_metrics(run: Path) -> list[dict[str, Any]]:
    """Return one metrics row a step, in the order of steps; of a redone step the row of the highest attempt."""
    return _last_by_step(read_jsonl(attempt.metrics) for attempt in RunFolder(run).attempts())


def merged_ledger(run: Path) -> list[dict[str, Any]]:
    """Return one ledger row a step, in the order of steps; of a redone step the row of the highest attempt."""
    return _last_by_step(read_jsonl(attempt.ledger) for attempt in RunFolder(run).attempts())


def merged_events(run: Path) -> list[dict[str, Any]]:
    """Return all event rows, attempt after attempt."""
    return [row for attempt in RunFolder(run).attempts() for row in read_jsonl(attempt.events)]


def count_repeated_steps(run: Path) -> int:
    """Return how many steps were redone, counted from the rows."""
    steps = [row["step"] for attempt in RunFolder(run).attempts() for row in read_jsonl(attempt.metrics)]
    return len(steps) - len(set(steps))


def _last_by_step(attempts: Iterable[Iterable[dict[str, Any]]]) -> list[dict[str, Any]]:
    rows = {row["step"]: row for attempt in attempts for row in attempt}
    return [rows[step] for step in sorted(rows)]
