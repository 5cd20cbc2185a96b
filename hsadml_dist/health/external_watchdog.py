"""External watchdog: a forked process that ends the rank when the rank can no longer do so itself.

A thread of the rank monitors its steps, but no thread runs while C code holds Python's global interpreter lock. This
process reads the rank's position from shared memory, measures the time itself, and shortly after the thread should have
acted it reports the hang and ends the rank with SIGABRT, on which faulthandler dumps the stacks of all threads without
taking the lock. Time during which the rank is suspended (SIGSTOP, a suspended job) does not count.
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
from dataclasses import asdict, dataclass
from pathlib import Path

from hsadml_dist.health.heartbeat import STAGES, RankPosition
from hsadml_dist.printable import printable
from hsadml_dist.process import STOP_SIGNALS, read_proc_stat, setup_helper_process
from hsadml_dist.run.folder import AttemptFolder
from hsadml_dist.run.history import EventLog

TICK_SECONDS = 0.25
GRACE_SECONDS = 1.25
"""Time beyond the limit for a rank that can still end itself, because its own report has more detail."""
LONGEST_TICK = 1.0
"""Upper bound for the time counted between two polls: a longer gap means that this process was suspended."""
SHARED_STATE = struct.Struct("=qqqd")
"""Layout of the shared memory: span, step, stage, time limit in seconds (0 for no limit)."""


@dataclass(frozen=True, kw_only=True)
class WatchedRank:
    """What the watchdog needs to report on behalf of the rank.

    Attributes:
        attempt: Path of the attempt's folder.
        alone: True if there are no peers that would record the hang.
        job: Slurm's job id.
    """

    rank: int
    attempt: str
    alone: bool
    job: str | None
    restart: int


class ExternalWatchdog:
    """The rank's handle of its external watchdog; create it before starting any thread."""

    def __init__(self) -> None:
        self._state = mmap.mmap(-1, SHARED_STATE.size)
        read_end, self._write_end = os.pipe()
        parent = os.getpid()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._write_end)
            _run_watchdog(parent, read_end, self._state)
        os.close(read_end)

    def attach(self, rank: WatchedRank) -> None:
        """Start watching ``rank``."""
        with contextlib.suppress(BrokenPipeError):  # a watchdog that was killed is no reason to fail
            os.write(self._write_end, json.dumps(asdict(rank)).encode())

    def update(self, position: RankPosition, limit: float) -> None:
        """Set the rank's position and its time limit in seconds (0 for no limit)."""
        stage = STAGES.index(position.stage)
        SHARED_STATE.pack_into(self._state, 0, position.span, position.step, stage, limit)

    def close(self) -> None:
        """End the watchdog."""
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        os.close(self._write_end)
        self._state.close()


def open_external_watchdog(enabled: bool) -> contextlib.AbstractContextManager[ExternalWatchdog | None]:
    """Run an external watchdog for this process until the block ends; None if it is disabled."""
    return contextlib.closing(ExternalWatchdog()) if enabled else contextlib.nullcontext()


def hang_headline(step: int, stage: str, seconds: float) -> str:
    """Return the start of every message about a hang."""
    return f"hang: step {step} has not ended after {seconds:.0f} s (stage {stage}; run.step_timeout_seconds)"


def _run_watchdog(parent: int, read_end: int, state: mmap.mmap) -> None:
    """Run as the watchdog process; never returns."""
    # It must not react to the signals that stop the rank, but end as soon as the rank does, for whatever reason.
    setup_helper_process("hsadml-watchdog", (*STOP_SIGNALS, signal.SIGHUP))
    try:
        rank = _wait_for_attach(read_end)
        if rank is not None and _wait_for_overrun(parent, state):
            _report_hang(rank, state)
            _kill_parent(parent)
    finally:
        os._exit(0)


def _wait_for_attach(read_end: int) -> WatchedRank | None:
    """Wait for :meth:`ExternalWatchdog.attach`; None if the rank has ended."""
    select.select([read_end], [], [])
    data = os.read(read_end, select.PIPE_BUF)
    return WatchedRank(**json.loads(data)) if data else None


def _wait_for_overrun(parent: int, state: mmap.mmap) -> bool:
    """Wait until the rank exceeds its time limit (True) or has ended (False)."""
    last_span, spent, before = -1, 0.0, time.monotonic()
    while os.getppid() == parent:
        time.sleep(TICK_SECONDS)
        now = time.monotonic()
        passed, before = min(now - before, LONGEST_TICK), now
        span, _, _, limit = SHARED_STATE.unpack_from(state, 0)
        fields = read_proc_stat(parent)
        if span != last_span:
            last_span, spent = span, 0.0
        elif fields is not None and fields[0] not in "tTZX":  # neither suspended nor dead
            spent += passed
        if 0 < limit < spent - GRACE_SECONDS:
            return True
    return False


def _report_hang(rank: WatchedRank, state: mmap.mmap) -> None:
    _, step, stage_index, limit = SHARED_STATE.unpack_from(state, 0)
    stage, attempt = STAGES[stage_index], AttemptFolder(Path(rank.attempt))
    reason = f"rank {rank.rank} runs no Python code in stage {stage} of step {step}"
    with contextlib.suppress(OSError):
        headline = hang_headline(step, stage, limit)
        text = f"hsadml: rank {rank.rank}: {headline}: {reason}; stacks in {attempt.log(rank.rank)}"
        sys.stderr.write(printable(text) + "\n")
        sys.stderr.flush()
    if rank.alone:
        detail = {"ranks": [rank.rank], "stage": stage, "seconds": limit, "told_by": rank.rank}
        with contextlib.suppress(OSError):
            EventLog(attempt, rank.job, rank.restart).write("hang", max(0, step - 1), **detail, reason=reason)


def _kill_parent(parent: int) -> None:
    if os.getppid() == parent:
        os.kill(parent, signal.SIGABRT)
    time.sleep(1.0)
    if os.getppid() == parent:  # it is in a call that SIGABRT does not end, or writes a large core file
        os.kill(parent, signal.SIGKILL)
