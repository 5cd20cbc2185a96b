"""Derive a run's state from its folder, without writing anything; of long files only the end is read."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from hsadml_dist.errors import ExitCode
from hsadml_dist.json_parsing import parse_json_object, valid_fields
from hsadml_dist.process import process_start_time
from hsadml_dist.run.attempts import HEARTBEAT_TIMEOUT_SECONDS, current_holder
from hsadml_dist.run.folder import AttemptFolder, RunFolder
from hsadml_dist.run.history import StopReason, read_stop_reasons
from hsadml_dist.run.jsonl import tail_jsonl

RunPhase = Literal["empty", "starting", "running", "stopped", "finished", "failed", "silent"]

METRICS_BYTES = 8192
"""Bytes read from the end of ``metrics.jsonl``: about 30 rows."""
EVENTS_BYTES = 262144
"""Bytes read from the end of ``events.jsonl``; the event of a skipped step lists all its samples."""
RATE_ROWS = 20
LIVE_PHASES = ("starting", "running")
STAGES_AFTER_START = ("save", "evaluate")

_STEPS = re.compile(r"^train:\n(?:  .*\n)*?  steps: (\d+)$", re.MULTILINE)
_CHECKPOINT = re.compile(r"step-(\d+)\.")
_NUMBER = (int, float)
_FIELD_KINDS: Mapping[str, type | tuple[type, ...]] = {
    "boot": str,
    "checkpoint": (str, type(None)),  # None: the attempt began without one
    "exit_code": int,
    "host": str,
    "job": str,
    "knn_accuracy": _NUMBER,
    "loss": _NUMBER,
    "pid": int,
    "restart": int,
    "samples": int,
    "stage": str,
    "started": _NUMBER,
    "step": int,
    "step_seconds": _NUMBER,
    "time": _NUMBER,
    "total_steps": int,
    "world_size": int,
}
"""Kinds of the values that are read here, in all files; a value of another kind counts as missing."""


@dataclass(frozen=True, kw_only=True)
class RunState:
    """The state of a run.

    Attributes:
        phase: ``empty``: never started; ``starting``: the newest attempt has not completed a step; ``stopped``,
            ``finished``, ``failed``: according to its events; ``silent``: no final event and no heartbeat.
        restart: Slurm's restart count of the newest attempt.
        job: Slurm's own id of the newest attempt's job (each element of a job array has one), or None without a job.
        world_size: Number of ranks of the newest attempt.
        step: Step that the newest attempt has reached; before its first one, the step from which it resumes.
        total_steps: Planned number of steps; None if unknown before the first start.
        loss: Loss of the last completed step of any attempt.
        samples_per_second: Mean over the last steps.
        elapsed_seconds: From the start of the newest attempt until now or its end.
        left_seconds: Estimated time to the last step at the mean pace of the last steps; None unless it is running.
        knn_accuracy: Accuracy of the evaluation in the run folder, from 0 to 1; None unless the run has finished.
        checkpoint_step: Step of the checkpoint from which a new start would resume, according to the events.
        stage: Current stage of the newest attempt's rank 0 while it runs: step, save, evaluate, ...
        last_sign: Time of the newest attempt's last heartbeat by the file server's clock, or of its final event.
            Seconds since 1970 UTC.
        reason: One line on why it failed, what stopped it, or what is known of its silence.
        stop_is_final: True if a STOP file stopped it, so that no job should resume it.
    """

    phase: RunPhase
    attempts: int = 0
    restart: int = 0
    job: str | None = None
    world_size: int | None = None
    step: int = 0
    total_steps: int | None = None
    loss: float | None = None
    samples_per_second: float | None = None
    elapsed_seconds: float | None = None
    left_seconds: float | None = None
    knn_accuracy: float | None = None
    checkpoint_step: int | None = None
    stage: str | None = None
    last_sign: float | None = None
    reason: str | None = None
    exit_code: int | None = None
    stop_is_final: bool = False


def read_run_state(run: RunFolder, now: float) -> RunState:
    """Return the state of a run at ``now``, in seconds since 1970 UTC."""
    attempts = run.attempts()
    steps = _configured_steps(run.config)
    if not attempts:
        return RunState(phase="empty", total_steps=steps)
    newest = attempts[-1]
    record = _read_object(newest.record)
    # In this order: the events of a process that is gone by now are complete.
    gone = _process_is_gone(record)
    events = _tail_rows(newest.events, EVENTS_BYTES)
    rows, rows_age = _latest_rows(attempts)
    stage = _read_object(newest.rank_heartbeat(0)).get("stage")
    begun = (bool(rows) and rows_age == 0) or stage in STAGES_AFTER_START
    ending = _recorded_ending(events) or _liveness(_last_heartbeat(newest), now, gone, record, begun=begun)
    step, total = _reached_step(attempts, rows, rows_age), record.get("total_steps") if steps is None else steps
    is_running = ending.phase == "running"
    return replace(
        ending,
        attempts=len(attempts),
        restart=record.get("restart", 0),
        job=record.get("job"),
        world_size=record.get("world_size"),
        step=step,
        total_steps=total,
        loss=rows[-1].get("loss") if rows else None,
        samples_per_second=_rate(rows),
        elapsed_seconds=_elapsed(record.get("started"), now if ending.phase in LIVE_PHASES else ending.last_sign),
        left_seconds=_left(rows, total - step) if is_running and total is not None else None,
        knn_accuracy=_read_object(run.result).get("knn_accuracy") if ending.phase == "finished" else None,
        checkpoint_step=_checkpoint_step(attempts, events),
        stage=stage if is_running else None,
    )


def _recorded_ending(events: Sequence[Mapping[str, Any]]) -> RunState | None:
    """Return how an attempt ended according to its events, or None without a final event."""
    last = {str(row.get("event")): row for row in events}
    if "finished" in last:
        return RunState(phase="finished", last_sign=last["finished"].get("time"))
    # In a hang, one rank records it before all of them exit; another may see its peers go and record only that.
    for name in ("hang", "failed"):
        if name in last:
            return _failure(last[name])
    if "stopped" in last:
        reasons = read_stop_reasons(last.get("signal", {}))
        return RunState(
            phase="stopped",
            last_sign=last["stopped"].get("time"),
            reason=_describe_stop(reasons),
            stop_is_final=bool(last["stopped"].get("final", StopReason.STOP_FILE in reasons.values())),
        )
    return None


def _failure(row: Mapping[str, Any]) -> RunState:
    text, default_code = " ".join(str(row.get("reason")).split()), ExitCode.USER_ERROR
    if row.get("event") == "hang":
        text, default_code = f"step {row.get('step', 0) + 1} hangs: {text}", ExitCode.INTERNAL_ERROR
    code = row.get("exit_code", default_code)
    return RunState(phase="failed", last_sign=row.get("time"), exit_code=code, reason=text)


def _describe_stop(reasons: Mapping[int, StopReason]) -> str | None:
    """Return what stopped an attempt as one short line, for any number of ranks."""
    ranks: dict[StopReason, list[int]] = {}
    for rank, reason in reasons.items():
        ranks.setdefault(reason, []).append(rank)
    parts = [
        f"{reason.label} ({f'rank {found[0]}' if len(found) == 1 else f'{len(found)} ranks'})"
        for reason, found in ranks.items()
    ]
    return f"stop requested by {', '.join(parts)}" if parts else None


def _liveness(heartbeat: float, now: float, gone: bool, record: Mapping[str, Any], *, begun: bool) -> RunState:
    if gone:
        reason = f"process {record['pid']} on {record['host']} is gone without any message: it was killed"
        return RunState(phase="silent", last_sign=heartbeat, reason=reason)
    if now - heartbeat > HEARTBEAT_TIMEOUT_SECONDS:
        return RunState(phase="silent", last_sign=heartbeat)
    return RunState(phase="running" if begun else "starting", last_sign=heartbeat)


def _process_is_gone(record: Mapping[str, Any]) -> bool:
    """Return whether the attempt's rank 0 was a process of this machine that no longer exists."""
    if not {"boot", "pid", "born"} <= record.keys():
        return False
    return bool(record["boot"] == current_holder("").boot and process_start_time(record["pid"]) != record["born"])


def _latest_rows(attempts: Sequence[AttemptFolder]) -> tuple[list[dict[str, Any]], int]:
    """Return the last metrics rows of the newest attempt that has any, and how many attempts ago it started."""
    for age, attempt in enumerate(reversed(attempts)):
        rows = _tail_rows(attempt.metrics, METRICS_BYTES)
        if rows:
            return rows[-RATE_ROWS:], age
    return [], 0


def _reached_step(attempts: Sequence[AttemptFolder], rows: Sequence[Mapping[str, Any]], rows_age: int) -> int:
    if rows_age or not rows:
        parent = _read_object(attempts[-1].parent)
        if parent:
            return _step_of(parent.get("checkpoint")) or 0
    return rows[-1].get("step", 0) if rows else 0


def _rate(rows: Sequence[Mapping[str, Any]]) -> float | None:
    """Return samples per second over the rows, or None if they have no times."""
    seconds = sum(row.get("step_seconds", 0.0) for row in rows)
    return sum(row.get("samples", 0) for row in rows) / seconds if seconds > 0 else None


def _elapsed(started: float | None, until: float | None) -> float | None:
    return None if started is None or until is None else max(0.0, until - started)


def _left(rows: Sequence[Mapping[str, Any]], steps: int) -> float | None:
    """Return the seconds that further steps take at the mean pace of the rows, or None if they have no times."""
    seconds = [row["step_seconds"] for row in rows if "step_seconds" in row]
    return max(steps, 0) * sum(seconds) / len(seconds) if seconds else None


def _checkpoint_step(attempts: Sequence[AttemptFolder], newest_events: Sequence[Mapping[str, Any]]) -> int | None:
    """Return the step of the newest checkpoint in the lineage of the newest attempt."""
    for attempt in reversed(attempts):
        events = newest_events if attempt is attempts[-1] else _tail_rows(attempt.events, EVENTS_BYTES)
        steps = [row["step"] for row in events if row.get("event") == "checkpoint" and "step" in row]
        if steps:
            return steps[-1]
        parent = _read_object(attempt.parent)
        if parent:  # an earlier attempt's checkpoint is in the lineage only if it is the parent
            return _step_of(parent.get("checkpoint"))
    return None


def _step_of(checkpoint: str | None) -> int | None:
    match = _CHECKPOINT.match(checkpoint or "")
    return int(match[1]) if match else None


def _last_heartbeat(attempt: AttemptFolder) -> float:
    for path in (attempt.heartbeat, attempt.path):
        with contextlib.suppress(OSError):
            # Opened, not only looked up: that makes a client of a network file system ask the server again.
            file = os.open(path, os.O_RDONLY)
            try:
                return os.fstat(file).st_mtime
            finally:
                os.close(file)
    return 0.0


def format_age(now: float, then: float | None) -> str:
    """Return how long ago ``then`` was, in one unit; ``-`` for None."""
    return format_seconds(None if then is None else max(0.0, now - then))


def format_seconds(seconds: float | None) -> str:
    """Return a time span in one unit, such as ``5 min``; ``-`` for None."""
    if seconds is None:
        return "-"
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds // size:.0f} {unit}"
    return f"{seconds:.0f} s"


def _configured_steps(config: Path) -> int | None:
    """Return ``train.steps`` of a recipe that ``dump_recipe`` wrote, without importing a YAML library."""
    try:
        match = _STEPS.search(config.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return int(match[1]) if match else None


def _read_object(path: Path) -> dict[str, Any]:
    """Return a small JSON object, or an empty one if the file is missing or incomplete."""
    try:
        return valid_fields(parse_json_object(path.read_bytes()), _FIELD_KINDS)
    except (OSError, ValueError):
        return {}


def _tail_rows(path: Path, limit: int) -> list[dict[str, Any]]:
    return [valid_fields(row, _FIELD_KINDS) for row in tail_jsonl(path, limit)]
