"""Write run folders for tests of their readers."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hsadml_dist.run.folder import AttemptFolder, RunFolder
from hsadml_dist.run.jsonl import JsonlWriter

CONFIG = "data:\n  stage: null\ntrain:\n  steps: {steps}\n  epochs: {epochs}\n  global_batch: 8\nengine:\n  name: ddp\n"
ELSEWHERE = {"host": "elsewhere", "boot": "another boot", "pid": 1, "born": 1, "token": "t"}


def make_run(path: Path, *, steps: int | None = 100, epochs: int | None = None) -> RunFolder:
    """Write a run's recipe, as ``dump_recipe`` would."""
    path.mkdir(parents=True)
    text = CONFIG.format(
        **{name: "null" if value is None else value for name, value in (("steps", steps), ("epochs", epochs))}
    )
    (path / "config.yaml").write_text(text)
    return RunFolder(path)


def make_attempt(
    run: RunFolder,
    *,
    steps: Sequence[int] = (),
    events: Sequence[dict[str, Any]] = (),
    parent: str | None = "",
    silent_for: float = 0.0,
    **record: Any,
) -> AttemptFolder:
    """Write the next attempt.

    Args:
        run: The run folder.
        steps: Steps of its metrics rows.
        events: Its events.
        parent: Name of the checkpoint it resumed from; None for a start from scratch, empty if not chosen yet.
        silent_for: Age of its last heartbeat in seconds.
        **record: Entries of its record.
    """
    attempt = run.attempt(len(run.attempts()) + 1)
    attempt.path.mkdir(parents=True)
    content = {"attempt": attempt.number, "job": None, "restart": 0, "world_size": 2, **ELSEWHERE, **record}
    attempt.record.write_text(json.dumps(content))
    add_rows(attempt, steps)
    add_events(attempt, events)
    if parent != "":
        attempt.parent.write_text(json.dumps({"checkpoint": parent}))
    attempt.heartbeat.touch()
    last = time.time() - silent_for
    os.utime(attempt.heartbeat, (last, last))
    return attempt


def add_rows(attempt: AttemptFolder, steps: Sequence[int]) -> None:
    """Append metrics rows, each with 8 samples in 0.1 s and a loss of 1/step."""
    if steps:
        rows = JsonlWriter(attempt.metrics)
        for step in steps:
            rows.write({"step": step, "attempt": attempt.number, "loss": 1 / step, "samples": 8, "step_seconds": 0.1})
        rows.close()


def add_events(attempt: AttemptFolder, events: Sequence[dict[str, Any]]) -> None:
    """Append events; their time is now unless they have one."""
    if events:
        rows = JsonlWriter(attempt.events)
        for event in events:
            rows.write({"step": 0, "time": time.time(), "attempt": attempt.number, **event})
        rows.close()


def checkpoint(step: int, attempt: int) -> dict[str, Any]:
    """Return a checkpoint event."""
    return {"event": "checkpoint", "step": step, "checkpoint": f"step-{step:08d}.attempt-{attempt:04d}"}


def stopped(step: int, *noticed: str, **more: Any) -> list[dict[str, Any]]:
    """Return the events of a stop as older versions wrote them, without codes."""
    return [{"event": "signal", "step": step, "noticed": list(noticed)}, {"event": "stopped", "step": step, **more}]
