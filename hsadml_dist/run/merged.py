"""One view over all attempts: a step that was redone counts as its last attempt did it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hsadml_dist.run.folder import RunFolder
from hsadml_dist.run.rows import read_jsonl


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
