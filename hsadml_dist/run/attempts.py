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
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from hsadml_dist.atomic import write_text
from hsadml_dist.errors import ExitCode, RunError, RunLockedError, os_error_reason
from hsadml_dist.json_parsing import INVALID, parse_json, parse_json_object
from hsadml_dist.private_files import UntrustedFileError, open_private_file
from hsadml_dist.process import process_start_time
from hsadml_dist.run.folder import AttemptFolder, RunFolder
from hsadml_dist.run.jsonl import read_jsonl

HEARTBEAT_TIMEOUT_SECONDS = 60.0
"""Heartbeats come every few seconds; without one for this long, by the file server's clock, a holder counts as dead."""

RECORD_TIMEOUT_SECONDS = 5.0
"""Longest time between creating an attempt's folder and writing its record."""

ENDED_JOB = "HSADML_ENDED_JOB"
"""Environment variable: id of a Slurm job that has ended according to squeue, so that it no longer holds the run."""

TERMINAL_EVENTS = {"stopped", "finished", "failed"}

EVALUATION = "evaluate"
"""Stage of a rank that evaluates; see :data:`~hsadml_dist.health.heartbeat.TrainingStage`."""

MAX_FAILED_ATTEMPTS = 3
"""Consecutive attempts without a new checkpoint after which a run is not started again."""


@dataclass(frozen=True, kw_only=True)
class AttemptHolder:
    """The process that started an attempt: its rank 0.

    Attributes:
        token: Identifier of the start, shared by its ranks.
        boot: Identifier of the host's boot, so that process ids are not compared across boots.
        born: Start time in clock ticks since boot; distinguishes the process from a later one with the same id.
        job: Slurm's job id, or None.
    """

    token: str
    host: str
    boot: str
    pid: int
    born: int
    job: str | None
    restart: int


def current_holder(token: str, environ: Mapping[str, str] = os.environ) -> AttemptHolder:
    """Return this process as a holder."""
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
    timeout: float = HEARTBEAT_TIMEOUT_SECONDS,
    ended_job: str | None = None,
) -> AttemptFolder:
    """Create the next attempt, unless another live process holds the run.

    Args:
        facts: Further entries of the attempt's record.
        timeout: Seconds without heartbeat after which a holder on another host counts as dead.
        ended_job: A job that has ended, although one of its ranks may still run, cut off from its cluster.

    Raises:
        RunLockedError: Another live process writes this run, or took the number at the same moment.
        RunError: The folder cannot be written.
    """
    try:
        attempts = run.attempts()
        refuse_if_held(run, me, timeout=timeout, ended_job=ended_job)
        attempt = run.attempt(attempts[-1].number + 1 if attempts else 1)
        run.attempts_root.mkdir(parents=True, exist_ok=True)
        try:
            attempt.path.mkdir()  # of several processes that try, one succeeds
        except FileExistsError as fault:
            text = f"{run.path}: another process started attempt {attempt.number} at the same moment"
            raise RunLockedError(text) from fault
        record = {"attempt": attempt.number, "started": time.time(), **asdict(me), **facts}
        write_text(attempt.record, json.dumps(record, indent=2) + "\n")
        attempt.heartbeat.touch()
    except OSError as fault:
        where = fault.filename or run.path
        raise RunError(f"{where}: no attempt can be started: {os_error_reason(fault)}") from fault
    return attempt


def is_superseded(run: RunFolder, attempt: AttemptFolder) -> bool:
    """Return whether a later attempt has started, so that this one must not write checkpoints any more."""
    return run.attempts()[-1].number > attempt.number


def find_rendezvous(run: RunFolder, token: str) -> dict[str, Any] | None:
    """Return what rank 0 of the start ``token`` has published, or None if nothing yet.

    Raises:
        RunError: Another user has written it.
    """
    for attempt in reversed(run.attempts()):
        if attempt.rendezvous.exists():
            published = _read_private_json(attempt.rendezvous)
            if published["token"] == token:
                return published
    return None


def _read_private_json(path: Path) -> dict[str, Any]:
    try:
        with open(open_private_file(path, os.O_RDONLY), "rb") as file:
            return parse_json_object(file.read())
    except UntrustedFileError as error:
        raise RunError(str(error)) from error


def refuse_if_held(
    run: RunFolder, me: AttemptHolder, *, timeout: float = HEARTBEAT_TIMEOUT_SECONDS, ended_job: str | None = None
) -> None:
    """Return if no other live process writes a run; see :func:`start_attempt` for the arguments.

    Raises:
        RunLockedError: One does, or may do.
    """
    attempts = run.attempts()
    if not attempts:
        return
    last = attempts[-1]
    if any(row.get("event") in TERMINAL_EVENTS for row in read_jsonl(last.events)):
        return
    if not last.record.exists():
        # Its process died between creating the folder and writing the record, or is about to write it.
        if _seconds_since_heartbeat(last) > min(timeout, RECORD_TIMEOUT_SECONDS):
            return
        raise RunLockedError(f"{run.path}: attempt {last.number} is starting at this moment")
    holder = _read_holder(last)
    if holder is None:
        if _seconds_since_heartbeat(last) > timeout:
            return
        raise RunLockedError(f"{last.record}: damaged, and its attempt may still be running; try again in {timeout} s")
    ended = ended_job is not None and holder.job == ended_job
    requeued = holder.job is not None and holder.job == me.job and holder.restart < me.restart
    exited = holder.boot == me.boot and process_start_time(holder.pid) != holder.born
    if ended or requeued or exited or _seconds_since_heartbeat(last) > timeout:
        return
    job = f" (job {holder.job})" if holder.job else ""
    raise RunLockedError(
        f"{run.path}: attempt {last.number} is still written by process {holder.pid} on {holder.host}{job}; "
        "stop it first, or choose another --run folder"
    )


def _read_holder(attempt: AttemptFolder) -> AttemptHolder | None:
    """Return who started an attempt, or None if its record is damaged."""
    try:
        record = parse_json(attempt.record.read_bytes())
        return AttemptHolder(**{field.name: record[field.name] for field in fields(AttemptHolder)})
    except INVALID:
        return None


def _seconds_since_heartbeat(attempt: AttemptFolder) -> float:
    """Return the seconds since the last heartbeat, with both times from the file server's clock."""
    # Next to the attempt's folder: a file inside would set the folder's own time to now.
    probe = attempt.path.with_name(f".clock-{os.getpid()}")
    probe.touch()
    now = probe.stat().st_mtime
    probe.unlink()
    last = attempt.heartbeat if attempt.heartbeat.exists() else attempt.path
    return now - last.stat().st_mtime


def crash_loop_reason(run: RunFolder, me: AttemptFolder, saved_by: Collection[int]) -> str | None:
    """Return in one line why a run should not be started again, or None if it may.

    That is the case after :data:`MAX_FAILED_ATTEMPTS` consecutive attempts without a new checkpoint. The count starts
    again after an attempt that finished or that ended with a user error, because then a user has looked at the run.
    The refusal is itself recorded as a user error, so a manual start afterwards begins a new count. Attempts that were
    asked to stop, or were killed while they evaluated a trained run, do not count.

    Args:
        me: The current attempt; those before it are examined.
        saved_by: Numbers of the attempts that have a checkpoint in the folder.
    """
    failed: list[AttemptFolder] = []
    for attempt in reversed(run.attempts()):
        if attempt.number >= me.number:
            continue
        rows = list(read_jsonl(attempt.events))
        if attempt.number in saved_by or any(_resets_count(row) for row in rows):
            return None
        if not _was_interrupted(attempt, rows):
            failed.append(attempt)
        if len(failed) == MAX_FAILED_ATTEMPTS:
            return _crash_loop(run, failed[::-1])
    return None


def _crash_loop(run: RunFolder, failed: Sequence[AttemptFolder]) -> str:
    numbers, last = [str(attempt.number) for attempt in failed], failed[-1]
    return (
        f"{run.path}: attempts {', '.join(numbers[:-1])} and {numbers[-1]} ended without a new checkpoint, the last "
        f"{_how_it_ended(last)}; see attempts/{last.path.name}/logs. The run is not restarted automatically; a manual "
        "start begins a new count"
    )


def _resets_count(row: Mapping[str, Any]) -> bool:
    # The event counts as well as the checkpoint, because a later attempt may have removed that. Rows of older versions
    # have no exit code.
    event, code = row.get("event"), row.get("exit_code", ExitCode.USER_ERROR)
    return event in ("checkpoint", "finished") or (event == "failed" and code == ExitCode.USER_ERROR)


def _was_interrupted(attempt: AttemptFolder, rows: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether an attempt was asked to stop, or killed in the evaluation, where no checkpoint is due."""
    events = {row.get("event") for row in rows}
    return "stopped" in events or ("failed" not in events and _last_stage(attempt) == EVALUATION)


def _last_stage(attempt: AttemptFolder) -> Any:
    try:
        return parse_json_object(attempt.rank_heartbeat(0).read_bytes()).get("stage")
    except (OSError, ValueError):
        return None


def _how_it_ended(attempt: AttemptFolder) -> str:
    """Return the end of the sentence that starts with ``the last``."""
    rows = {str(row.get("event")): row for row in read_jsonl(attempt.events)}
    if "failed" in rows:
        return f"with this error: {' '.join(str(rows['failed'].get('reason')).split())}"
    return "without any message: it was killed, or its machine was lost"
