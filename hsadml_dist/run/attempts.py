"""Attempts: each start of a run gets a number and a folder of its own, so attempts never share a file.

A rank that is cut off from its cluster keeps writing into its old attempt's folder, where it does no harm. Only one
attempt may be active at a time; that is decided before a number is taken, see :func:`start_attempt`. A run whose
attempts keep ending without a new checkpoint is in a crash loop and is not started again.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hsadml_dist.errors import ExitCode, RunError, RunLockedError, os_error_reason
from hsadml_dist.process import process_start_time
from hsadml_dist.run.folder import AttemptFolder, RunFolder, replace_text
from hsadml_dist.run.jsonl import read_jsonl

HEARTBEAT_TIMEOUT_SECONDS = 60.0
"""Heartbeats come every few seconds; after this much silence, by the file server's clock, a holder counts as dead."""

ENDED_JOB = "HSADML_ENDED_JOB"
"""Environment variable: a Slurm job that has ended, as the batch script was told by squeue; it holds nothing more."""

TERMINAL_EVENTS = {"stopped", "finished", "failed"}


@dataclass(frozen=True, kw_only=True)
class AttemptHolder:
    """Who started an attempt.

    Attributes:
        token: Name of the start, shared by its ranks.
        host: Rank 0's host name.
        boot: The host's boot, so that a process id is not compared across boots.
        pid: Rank 0's process id.
        born: Its start time in clock ticks since boot, so that a reused id is not taken for it.
        job: Slurm's job id, or None.
        restart: Slurm's restart count.
    """

    token: str
    host: str
    boot: str
    pid: int
    born: int
    job: str | None
    restart: int


def current_holder(token: str, environ: Mapping[str, str] = os.environ) -> AttemptHolder:
    """Return the holder that this process would be."""
    return AttemptHolder(
        token=token,
        host=socket.gethostname(),
        boot=Path("/proc/sys/kernel/random/boot_id").read_text().strip() + "/" + os.readlink("/proc/self/ns/pid"),
        pid=os.getpid(),
        born=process_start_time(os.getpid()) or 0,
        job=environ.get("SLURM_JOB_ID"),
        restart=int(environ.get("SLURM_RESTART_COUNT", "0")),
    )


def start_attempt(
    run: RunFolder,
    me: AttemptHolder,
    facts: Mapping[str, Any],
    *,
    silence: float = HEARTBEAT_TIMEOUT_SECONDS,
    ended_job: str | None = None,
) -> AttemptFolder:
    """Take the next attempt's number, if no other live process holds the run.

    Args:
        run: The run folder.
        me: This process.
        facts: What else the attempt's record shall hold.
        silence: Seconds without heartbeat after which a holder on another host counts as dead.
        ended_job: A job that has ended, though a rank of it may live on, cut off from its cluster.

    Raises:
        RunLockedError: Another live process writes this run, or took the number at the same moment.
        RunError: The folder cannot be written.
    """
    try:
        attempts = run.attempts()
        if attempts:
            _refuse_if_held(run, attempts[-1], me, silence, ended_job)
        attempt = _taken(run, attempts[-1].number + 1 if attempts else 1)
        record = {"attempt": attempt.number, "started": time.time(), **asdict(me), **facts}
        replace_text(attempt.record, json.dumps(record, indent=2) + "\n")
        attempt.heartbeat.touch()
    except OSError as fault:
        where = fault.filename or run.path
        raise RunError(f"{where}: no attempt can be started here: {os_error_reason(fault)}") from fault
    return attempt


def _taken(run: RunFolder, number: int) -> AttemptFolder:
    """Make the attempt's folder; of several processes that try, one succeeds."""
    run.attempts_root.mkdir(parents=True, exist_ok=True)
    attempt = run.attempt(number)
    try:
        attempt.path.mkdir()
    except FileExistsError as fault:
        raise RunLockedError(f"{run.path}: another process took attempt {number} at the same moment") from fault
    return attempt


def is_superseded(run: RunFolder, attempt: AttemptFolder) -> bool:
    """Whether a later attempt has started: then this one must not write checkpoints any more."""
    return run.attempts()[-1].number > attempt.number


def find_rendezvous(run: RunFolder, token: str) -> dict[str, Any] | None:
    """Return what rank 0 of this start has published: attempt, host, port; None so far."""
    for attempt in reversed(run.attempts()):
        if attempt.rendezvous.exists():
            published: dict[str, Any] = json.loads(attempt.rendezvous.read_text())
            if published["token"] == token:
                return published
    return None


def _refuse_if_held(
    run: RunFolder, last: AttemptFolder, me: AttemptHolder, silence: float, ended_job: str | None
) -> None:
    if any(row["event"] in TERMINAL_EVENTS for row in read_jsonl(last.events)):
        return
    if not last.record.exists():
        # Its owner died between taking the number and saying who it is, or is doing so right now.
        if _silent_for(last) > min(silence, 5.0):
            return
        raise RunLockedError(f"{run.path}: attempt {last.number} is just starting")
    record = json.loads(last.record.read_text())
    holder = AttemptHolder(**{name: record[name] for name in AttemptHolder.__dataclass_fields__})
    if _is_gone(holder, me) or (ended_job is not None and holder.job == ended_job) or _silent_for(last) > silence:
        return
    raise RunLockedError(
        f"{run.path}: attempt {last.number} is still written by process {holder.pid} on {holder.host}"
        + (f" (job {holder.job})" if holder.job else "")
        + "; stop it first, or give another --run folder"
    )


def _is_gone(holder: AttemptHolder, me: AttemptHolder) -> bool:
    if holder.job is not None and holder.job == me.job and holder.restart < me.restart:
        return True
    return holder.boot == me.boot and process_start_time(holder.pid) != holder.born


def _silent_for(attempt: AttemptFolder) -> float:
    """Return the seconds since the last heartbeat, both ends read from the file server's clock."""
    # Beside the attempt's folder, whose own time it would otherwise set to now.
    probe = attempt.path.with_name(f".clock-{os.getpid()}")
    probe.touch()
    now = probe.stat().st_mtime
    probe.unlink()
    beat = attempt.heartbeat if attempt.heartbeat.exists() else attempt.path
    return now - beat.stat().st_mtime


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
