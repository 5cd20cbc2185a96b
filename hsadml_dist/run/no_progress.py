"""A run whose attempts end one after the other without a new checkpoint: starting it once more would not help."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from hsadml_dist.errors import ExitCode
from hsadml_dist.run.folder import AttemptFolder, RunFolder
from hsadml_dist.run.rows import read_jsonl

MAX_FAILED_ATTEMPTS = 3
"""So many attempts in a row without progress end the run."""


def crash_loop_reason(run: RunFolder, me: AttemptFolder, saved_by: Collection[int]) -> str | None:
    """Return why a run should not go on, as one line, or None if it may.

    An attempt made progress if it wrote a checkpoint. The row of those that made none is broken by one that did, by one
    that finished, and by one that ended with an error of the user's: after that somebody has been there. As the stop
    that this line explains is such an end itself, a start by hand counts anew.

    Args:
        run: The run folder.
        me: The attempt that asks; those before it are looked at.
        saved_by: Numbers of the attempts that have a checkpoint in the folder.
    """
    before = [attempt for attempt in run.attempts() if attempt.number < me.number][-MAX_FAILED_ATTEMPTS:]
    if len(before) < MAX_FAILED_ATTEMPTS or any(_breaks_the_row(attempt, saved_by) for attempt in before):
        return None
    numbers = [str(attempt.number) for attempt in before]
    return (
        f"{run.path}: attempts {', '.join(numbers[:-1])} and {numbers[-1]} ended without a new checkpoint, the last "
        f"{_how_it_ended(before[-1])}; see attempts/{before[-1].path.name}/logs. The run is not tried again by itself; "
        "a start by hand counts anew"
    )


def _breaks_the_row(attempt: AttemptFolder, saved_by: Collection[int]) -> bool:
    return attempt.number in saved_by or any(map(_is_progress_or_seen_to, read_jsonl(attempt.events)))


def _is_progress_or_seen_to(row: dict[str, Any]) -> bool:
    # The event, too: a later attempt may have removed the checkpoint. Rows of older versions name no exit code.
    by_user = row["event"] == "failed" and row.get("exit_code", ExitCode.USER_ERROR) == ExitCode.USER_ERROR
    return by_user or row["event"] in ("checkpoint", "finished")


def _how_it_ended(attempt: AttemptFolder) -> str:
    """Return the rest of the sentence ``the last ...``."""
    rows = {row["event"]: row for row in read_jsonl(attempt.events)}
    if "failed" in rows:
        return f"with this error: {' '.join(str(rows['failed']['reason']).split())}"
    if "stopped" in rows:
        noticed = rows.get("signal", {}).get("noticed") or ["of itself"]
        return f"stopped before its first checkpoint ({', '.join(noticed)})"
    return "without a word: it was killed, or its machine was lost"
