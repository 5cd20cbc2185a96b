"""Where a run stands, read from its folder alone; nothing is written, and of long files only the end is read."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from hsadml_dist.errors import ExitCode
from hsadml_dist.process import process_start_time
from hsadml_dist.run.attempts import HEARTBEAT_TIMEOUT_SECONDS, current_holder
from hsadml_dist.run.folder import AttemptFolder, RunFolder
from hsadml_dist.run.jsonl import tail_jsonl

RunPhase = Literal["empty", "starting", "running", "stopped", "finished", "failed", "silent"]

METRICS_BYTES = 8192
"""The last rows of ``metrics.jsonl``: some 30."""
EVENTS_BYTES = 262144
"""The last rows of ``events.jsonl``; one of a skipped step names all its samples."""
RATE_ROWS = 20
_AFTER_START = ("save", "evaluate")

_STEPS = re.compile(r"^train:\n(?:  .*\n)*?  steps: (\d+)$", re.MULTILINE)
_CHECKPOINT = re.compile(r"step-(\d+)\.")


@dataclass(frozen=True, kw_only=True)
class RunState:
    """Where a run stands.

    Attributes:
        phase: empty: never started. starting: no step of the newest attempt yet. stopped, finished, failed: what its
            events say. silent: they say nothing and it gives no sign of life.
        attempts: How many there are.
        restart: Slurm's restart count of the newest.
        job: Slurm's own number of the newest attempt's job; an array's element has one of its own. None: no job.
        world_size: The newest attempt's number of ranks.
        step: The step that the newest attempt has reached; before its first one, where it goes on from.
        total_steps: How many there shall be; None: not known before the first start.
        loss: That of the last step done, by whichever attempt.
        samples_per_second: Mean over the last steps.
        checkpoint_step: Step of the checkpoint that a new start would go on from, as far as the events tell.
        stage: What the newest attempt's rank 0 does at this moment, while it runs: step, save, evaluate, ...
        last_sign: When the newest attempt gave its last sign, by the file server's clock; for one that has ended, when
            it said so. Seconds since 1970 UTC.
        reason: Why it failed, what stopped it, or what is known of its silence; one line.
        exit_code: That of a failure.
        stop_is_final: Whether a STOP file asked the newest attempt to stop: no job resumes the run.
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
    checkpoint_step: int | None = None
    stage: str | None = None
    last_sign: float | None = None
    reason: str | None = None
    exit_code: int | None = None
    stop_is_final: bool = False


@dataclass(frozen=True, kw_only=True)
class _End:
    phase: RunPhase
    time: float | None
    reason: str | None = None
    exit_code: int | None = None
    stop_is_final: bool = False


def read_run_state(run: RunFolder, now: float) -> RunState:
    """Return where a run stands at ``now``, in seconds since 1970 UTC."""
    attempts = run.attempts()
    steps = _steps_of_config(run.config)
    if not attempts:
        return RunState(phase="empty", total_steps=steps)
    newest = attempts[-1]
    record = _read_object(newest.record)
    # In this order: of a process that is gone by now, the events are complete.
    gone = _process_is_gone(record)
    events = tail_jsonl(newest.events, EVENTS_BYTES)
    rows, ago = _newest_rows(attempts)
    stage, beat = _stage(newest), _beat(newest)
    end = _end(events) or _open_end(beat, now, gone, record, begun=(bool(rows) and ago == 0) or stage in _AFTER_START)
    return RunState(
        phase=end.phase,
        attempts=len(attempts),
        restart=int(record.get("restart") or 0),
        job=record.get("job"),
        world_size=record.get("world_size"),
        step=_step(attempts, rows, ago),
        total_steps=record.get("total_steps") if steps is None else steps,
        loss=rows[-1].get("loss") if rows else None,
        samples_per_second=_rate(rows),
        checkpoint_step=_checkpoint_step(attempts, events),
        stage=stage if end.phase == "running" else None,
        last_sign=end.time,
        reason=end.reason,
        exit_code=end.exit_code,
        stop_is_final=end.stop_is_final,
    )


def _end(events: Sequence[Mapping[str, Any]]) -> _End | None:
    """Return how an attempt says that it ended; None: it does not."""
    last = {str(row.get("event")): row for row in events}
    if "finished" in last:
        return _End(phase="finished", time=last["finished"].get("time"))
    # Of a hang one rank tells before all leave; another may see its peers go and say only that.
    for name in ("hang", "failed"):
        if name in last:
            row = last[name]
            code = int(row.get("exit_code", ExitCode.INTERNAL_ERROR if name == "hang" else ExitCode.USER_ERROR))
            text = " ".join(str(row.get("reason")).split())
            return _End(phase="failed", time=row.get("time"), exit_code=code, reason=_hang(row, text))
    if "stopped" in last:
        noticed = last.get("signal", {}).get("noticed") or ()
        stopped = last["stopped"]
        # Before the field existed, only the text named the STOP file.
        final = bool(stopped.get("final")) or any(str(text).endswith(": STOP file") for text in noticed)
        return _End(phase="stopped", time=stopped.get("time"), reason=_told_by(noticed), stop_is_final=final)
    return None


def _told_by(noticed: Sequence[str]) -> str | None:
    """Return what told an attempt to stop, as one short line however many ranks were told."""
    ranks: dict[str, list[str]] = {}
    for text in noticed:
        rank, _, name = str(text).partition(": ")
        ranks.setdefault(name, []).append(rank)
    told = [f"{name} ({who[0] if len(who) == 1 else f'{len(who)} ranks'})" for name, who in ranks.items()]
    return f"told to stop by {', '.join(told)}" if told else None


def _hang(row: Mapping[str, Any], text: str) -> str:
    return f"step {int(row.get('step', 0)) + 1} hangs: {text}" if row.get("event") == "hang" else text


def _open_end(beat: float, now: float, gone: bool, record: Mapping[str, Any], *, begun: bool) -> _End:
    if gone:
        where = f"process {record['pid']} on {record['host']} is gone without a word"
        return _End(phase="silent", time=beat, reason=f"{where}: it was killed")
    if now - beat > HEARTBEAT_TIMEOUT_SECONDS:
        return _End(phase="silent", time=beat)
    return _End(phase="running" if begun else "starting", time=beat)


def _process_is_gone(record: Mapping[str, Any]) -> bool:
    """Whether the attempt's rank 0 was a process of this very machine and lives no more."""
    if not {"boot", "pid", "born"} <= record.keys():
        return False
    return bool(record["boot"] == current_holder("").boot and process_start_time(record["pid"]) != record["born"])


def _newest_rows(attempts: Sequence[AttemptFolder]) -> tuple[list[dict[str, Any]], int]:
    """Return the last metrics rows of the newest attempt that has any, and how many attempts ago that was."""
    for ago, attempt in enumerate(reversed(attempts)):
        rows = tail_jsonl(attempt.metrics, METRICS_BYTES)
        if rows:
            return rows[-RATE_ROWS:], ago
    return [], 0


def _step(attempts: Sequence[AttemptFolder], rows: Sequence[Mapping[str, Any]], ago: int) -> int:
    if ago or not rows:
        parent = _read_object(attempts[-1].parent)
        if parent:
            return _step_of(parent.get("checkpoint")) or 0
    return int(rows[-1].get("step", 0)) if rows else 0


def _rate(rows: Sequence[Mapping[str, Any]]) -> float | None:
    """Return samples per second over the rows; None if they do not tell."""
    seconds = sum(row.get("step_seconds", 0.0) for row in rows)
    return sum(row.get("samples", 0) for row in rows) / seconds if seconds > 0 else None


def _checkpoint_step(attempts: Sequence[AttemptFolder], newest_events: Sequence[Mapping[str, Any]]) -> int | None:
    """Return the step of the newest checkpoint in the line of the newest attempt."""
    for attempt in reversed(attempts):
        events = newest_events if attempt is attempts[-1] else tail_jsonl(attempt.events, EVENTS_BYTES)
        steps = [int(row["step"]) for row in events if row.get("event") == "checkpoint"]
        if steps:
            return steps[-1]
        parent = _read_object(attempt.parent)
        if parent:  # what an earlier attempt wrote is in this one's line only if it is its parent
            return _step_of(parent.get("checkpoint"))
    return None


def _step_of(checkpoint: str | None) -> int | None:
    match = _CHECKPOINT.match(checkpoint or "")
    return int(match[1]) if match else None


def _stage(attempt: AttemptFolder) -> str | None:
    stage = _read_object(attempt.rank_heartbeat(0)).get("stage")
    return None if stage is None else str(stage)


def _beat(attempt: AttemptFolder) -> float:
    """Return when the attempt gave its last sign of life."""
    for path in (attempt.heartbeat, attempt.path):
        with contextlib.suppress(OSError):
            # Opened, not only looked up: a client of a network file system then asks the server anew.
            file = os.open(path, os.O_RDONLY)
            try:
                return os.fstat(file).st_mtime
            finally:
                os.close(file)
    return 0.0


def format_age(now: float, then: float | None) -> str:
    """Return how long ago ``then`` was, in one unit; ``-`` for None."""
    if then is None:
        return "-"
    seconds = max(0.0, now - then)
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds // size:.0f} {unit}"
    return f"{seconds:.0f} s"


def _steps_of_config(config: Path) -> int | None:
    """Return ``train.steps`` of a run's recipe, as ``dump_recipe`` writes it, without loading a YAML library."""
    try:
        match = _STEPS.search(config.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return int(match[1]) if match else None


def _read_object(path: Path) -> dict[str, Any]:
    """Return a small JSON object; an empty one if there is none, or not yet a whole one."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
