"""A process beside the rank that ends it when it can no longer do so itself.

A thread of the rank watches its steps, but no thread runs while C code keeps Python's interpreter lock. This process
reads in shared memory where the rank is, counts the seconds by itself, and a little after the thread's turn has passed
it says what hangs and ends the rank by SIGABRT, on which faulthandler writes the stacks of all threads without asking
for the lock. Time during which the rank is stopped (SIGSTOP, a suspended job) does not count.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import select
import signal
import struct
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from hsadml_dist.health.heartbeat import STAGES, RankPosition
from hsadml_dist.process import STOP_SIGNALS, read_proc_stat, setup_helper_process
from hsadml_dist.run.folder import AttemptFolder
from hsadml_dist.run.history import event_row
from hsadml_dist.run.jsonl import JsonlWriter

TICK_SECONDS = 0.25
GRACE_SECONDS = 1.25
"""Time beyond the limit for a rank that can still end by itself, and say more than this process knows."""
LONGEST_TICK = 1.0
"""A longer gap between two looks means that this process was stopped, most likely with the rank."""
STATE = struct.Struct("=qqqd")
"""In shared memory: number of the piece of work, step, stage, seconds that the piece may take (0: any)."""


@dataclass(frozen=True, kw_only=True)
class WatchedRank:
    """What the watcher must know to speak for the rank.

    Attributes:
        rank: Whom it watches.
        attempt: The attempt's folder.
        alone: Whether there are no peers who would record the hang.
        job: Slurm's job id.
        restart: Slurm's restart count.
    """

    rank: int
    attempt: str
    alone: bool
    job: str | None
    restart: int


class ExternalWatchdog:
    """This process's watcher; to be started before there are threads."""

    def __init__(self) -> None:
        self._state = mmap.mmap(-1, STATE.size)
        heard, self._said = os.pipe()
        parent = os.getpid()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._said)
            _watch(parent, heard, self._state)
        os.close(heard)

    def introduce(self, facts: WatchedRank) -> None:
        """Tell whom it watches; before this it does nothing."""
        with contextlib.suppress(BrokenPipeError):  # somebody killed it: no reason to fail
            os.write(self._said, json.dumps(asdict(facts)).encode())

    def note(self, mark: RankPosition, allowed: float) -> None:
        """Say where the rank is, and how many seconds it may stay there (0: any)."""
        STATE.pack_into(self._state, 0, mark.span, mark.step, STAGES.index(mark.stage), allowed)

    def close(self) -> None:
        """End the watcher."""
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        os.close(self._said)
        self._state.close()


@contextlib.contextmanager
def open_external_watchdog(wanted: bool) -> Iterator[ExternalWatchdog | None]:
    """Give a watcher for this process until the block ends, if one is wanted."""
    external_watchdog = ExternalWatchdog() if wanted else None
    try:
        yield external_watchdog
    finally:
        if external_watchdog is not None:
            external_watchdog.close()


def _watch(parent: int, heard: int, state: mmap.mmap) -> None:
    """Be the watcher; never returns."""
    # The rank's handlers mean the rank. PDEATHSIG: whatever ends the rank ends this process in the same moment.
    setup_helper_process("hsadml-watcher", (*STOP_SIGNALS, signal.SIGHUP))
    try:
        facts = _introduced(heard)
        if facts is not None and _overruns(parent, state):
            _speak(facts, state)
            _end(parent)
    finally:
        os._exit(0)


def _introduced(heard: int) -> WatchedRank | None:
    """Wait for the rank to say who it is; None: it has gone."""
    select.select([heard], [], [])
    data = os.read(heard, select.PIPE_BUF)
    return WatchedRank(**json.loads(data)) if data else None


def _overruns(parent: int, state: mmap.mmap) -> bool:
    """Wait until the rank overruns (true), or has gone (false)."""
    last, spent, before = -1, 0.0, time.monotonic()
    while os.getppid() == parent:
        time.sleep(TICK_SECONDS)
        now = time.monotonic()
        passed, before = min(now - before, LONGEST_TICK), now
        span, _, _, allowed = STATE.unpack_from(state, 0)
        if span != last:
            last, spent = span, 0.0
        elif not _is_stopped(parent):
            spent += passed
        if 0 < allowed < spent - GRACE_SECONDS:
            return True
    return False


def _is_stopped(pid: int) -> bool:
    fields = read_proc_stat(pid)
    return fields is None or fields[0] in "tTZX"


def _speak(facts: WatchedRank, state: mmap.mmap) -> None:
    """Say and record for the rank what it cannot."""
    _, step, stage, allowed = STATE.unpack_from(state, 0)
    attempt = AttemptFolder(Path(facts.attempt))
    reason = f"rank {facts.rank} lets no Python code run in stage {STAGES[stage]} of step {step}"
    with contextlib.suppress(OSError):
        sys.stderr.write(f"hsadml: rank {facts.rank}: {hang_headline(step, STAGES[stage], allowed)}: {reason}; ")
        sys.stderr.write(f"stacks in {attempt.log(facts.rank)}\n")
        sys.stderr.flush()
    if facts.alone:
        detail = {"ranks": [facts.rank], "stage": STAGES[stage], "seconds": allowed, "told_by": facts.rank}
        row = event_row(attempt, facts.job, facts.restart, "hang", max(0, step - 1), **detail, reason=reason)
        with contextlib.suppress(OSError):
            JsonlWriter(attempt.events).write(row)


def _end(parent: int) -> None:
    if os.getppid() == parent:
        os.kill(parent, signal.SIGABRT)
    time.sleep(1.0)
    if os.getppid() == parent:  # it is in a call that SIGABRT does not end, or writes a large core file
        os.kill(parent, signal.SIGKILL)


def hang_headline(step: int, stage: str, seconds: float) -> str:
    """Return what every message on a hang begins with."""
    return f"hang: step {step} has not ended after {seconds:.0f} s (stage {stage}; run.step_timeout_seconds)"
