"""The history of a run: the event log of an attempt, and metrics, ledger and events merged over all attempts."""

from __future__ import annotations

import enum
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from hsadml_dist.json_parsing import INVALID
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
    "evaluation_refused",
    "report_failed",
    "finished",
    "failed",
    "skipped",
    "straggler",
    "hang",
]


class StopReason(enum.StrEnum):
    """What made a rank request a stop, as written to the event log."""

    SIGTERM = "sigterm"
    SIGUSR2 = "sigusr2"
    SIGINT = "sigint"
    END_TIME = "end_time"
    STOP_FILE = "stop_file"
    REQUESTED = "requested"

    @property
    def label(self) -> str:
        """The reason as text for users."""
        return {"END_TIME": "time limit", "STOP_FILE": "STOP file", "REQUESTED": "requested"}.get(self.name, self.name)


def stop_event_details(reasons: Sequence[StopReason | None]) -> dict[str, Any]:
    """Return the details of a ``signal`` event.

    Args:
        reasons: The stop reason of each rank, in rank order; None for a rank without one.
    """
    given = [(rank, reason) for rank, reason in enumerate(reasons) if reason is not None]
    return {
        "noticed": [f"rank {rank}: {reason.label}" for rank, reason in given],
        "reasons": [{"rank": rank, "reason": str(reason)} for rank, reason in given],
    }


def read_stop_reasons(row: Mapping[str, Any]) -> dict[int, StopReason]:
    """Return the stop reason by rank from a ``signal`` event; reasons of unknown kinds are skipped."""
    try:
        return _stop_reasons(row)
    except INVALID:
        return {}


def _stop_reasons(row: Mapping[str, Any]) -> dict[int, StopReason]:
    if "reasons" in row:
        known = {str(reason): reason for reason in StopReason}
        pairs = [(one.get("rank"), one.get("reason")) for one in row["reasons"]]
    else:  # older versions wrote only ``noticed``, a list of "rank 0: SIGTERM"
        known = {reason.label: reason for reason in StopReason}
        parts = [text.partition(": ") for text in row.get("noticed") or ()]
        pairs = [(rank.removeprefix("rank "), label) for rank, _, label in parts]
    return {int(rank): known[text] for rank, text in pairs if text in known}


class EventLog:
    """Append event rows to an attempt's event log."""

    def __init__(self, attempt: AttemptFolder, job: str | None, restart: int) -> None:
        self._rows = JsonlWriter(attempt.events)
        self._common = {"attempt": attempt.number, "job": job, "restart": restart}

    def write(self, event: EventName, step: int, **detail: Any) -> None:
        """Append an event of this moment (seconds since 1970 UTC); ``step`` is the last completed one."""
        self._rows.write({"event": event, "step": step, "time": time.time(), **self._common, **detail})


def merged_metrics(run: Path) -> list[dict[str, Any]]:
    """Return one metrics row per step, ordered by step; for a repeated step that of the latest attempt."""
    return _last_by_step(attempt.metrics for attempt in RunFolder(run).attempts())


def merged_ledger(run: Path) -> list[dict[str, Any]]:
    """Return one ledger row per step, ordered by step; for a repeated step that of the latest attempt."""
    return _last_by_step(attempt.ledger for attempt in RunFolder(run).attempts())


def merged_events(run: Path) -> list[dict[str, Any]]:
    """Return the event rows of all attempts, ordered by attempt."""
    return [row for attempt in RunFolder(run).attempts() for row in read_jsonl(attempt.events, {"event": str})]


def count_repeated_steps(run: Path) -> int:
    """Return the number of metrics rows of steps that another attempt has done, too."""
    steps = [step for attempt in RunFolder(run).attempts() for step, _ in _rows_by_step(attempt.metrics)]
    return len(steps) - len(set(steps))


def _last_by_step(files: Iterable[Path]) -> list[dict[str, Any]]:
    rows = dict(row for file in files for row in _rows_by_step(file))
    return [rows[step] for step in sorted(rows)]


def _rows_by_step(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    return ((row["step"], row) for row in read_jsonl(file, {"step": int}))
