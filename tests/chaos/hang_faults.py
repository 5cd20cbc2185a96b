"""Faults of processes that neither work nor end: suspended for good, or resumed too late."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterable, Sequence

from hsadml_dist.errors import ExitCode
from hsadml_dist.run.folder import RunFolder
from tests.chaos.baseline_runs import Workspace
from tests.chaos.evidence import Fault, clear_error_problems, snapshot_problems
from tests.chaos.fault_sequence import ENDS_WITHIN, FaultSequence, PendingFault, last_line, new_sequence, snapshot
from tests.chaos.training_process import LaunchedTraining, TimedOut

STEP_TIMEOUT = 6
"""Time limit of a step in seconds; steps take a hundredth of it."""
REPORT_WITHIN = 2.0
"""Seconds after the time limit within which a hang must be reported."""
LONG_AGO = 3600.0


def hangs(workspace: Workspace, rng: random.Random) -> Iterable[Fault]:
    """Suspend one of two ranks for good: its peer must end the run and name it."""
    sequence = new_sequence(workspace, rng, 2, 1, f"run.step_timeout_seconds={STEP_TIMEOUT}")
    sequence.stop()
    for kind, rank in (("suspend_rank rank 1", 1), ("suspend_rank rank 0", 0)):
        suspend_rank(sequence, kind, rank)
    suspend_worker(sequence)
    return sequence.finish()


def late_wakeups(workspace: Workspace, rng: random.Random) -> Iterable[Fault]:
    """Suspend all ranks and replace them; resume them while their successor runs, or after it has ended."""
    # All checkpoints are kept, so that a missing one was not pruned by the successor.
    sequence = new_sequence(workspace, rng, 2, 0, "checkpoint.keep=100")
    sequence.stop()
    wake_replaced(sequence, while_running=True)
    wake_replaced(sequence, while_running=False)
    return sequence.finish()


def suspend_rank(sequence: FaultSequence, kind: str, rank: int) -> None:
    """Suspend a rank for good."""
    with sequence.fault(kind, good="clear_error") as entry, sequence.started() as start:
        entry.step = start.wait_for_step(sequence.next_step(3))
        suspend_and_time(sequence, entry, start, start.rank_pids()[rank])
        sequence.expect_clear_error(entry, start, f"rank {rank}")
        sequence.expect_loss(entry)


def suspend_worker(sequence: FaultSequence) -> None:
    """Suspend a loader worker for good."""
    with sequence.fault("suspend_rank loader worker", good="clear_error") as entry, sequence.started() as start:
        entry.step = start.wait_for_step(sequence.next_step(3))
        rank = sequence.rng.randrange(2)
        suspend_and_time(sequence, entry, start, start.worker_pids(rank)[0])
        sequence.expect_clear_error(entry, start, f"rank {rank}")
        sequence.expect_loss(entry)


def suspend_and_time(sequence: FaultSequence, entry: PendingFault, start: LaunchedTraining, pid: int) -> None:
    """Suspend a process for good and measure how long it takes until the hang is reported."""
    entry.pids = (pid,)
    os.kill(pid, signal.SIGSTOP)
    stopped = time.monotonic()
    start.wait(lambda: "hang" in start.stderr, "the hang is reported", STEP_TIMEOUT + ENDS_WITHIN)
    entry.figures["told_after"] = round(time.monotonic() - stopped, 2)
    if entry.figures["told_after"] > STEP_TIMEOUT + REPORT_WITHIN:
        entry.problems.append(f"reported after {entry.figures['told_after']} s, with a time limit of {STEP_TIMEOUT} s")
    sequence.record_end(entry, start)
    sequence.expect_code(entry, ExitCode.INTERNAL_ERROR)


def wake_replaced(sequence: FaultSequence, *, while_running: bool) -> None:
    """Suspend an attempt, let another one take over, and resume the first: it must do no damage."""
    moment = "while its successor runs" if while_running else "after its successor has stopped"
    with sequence.fault(f"paused ranks that wake {moment}") as entry, sequence.started() as old:
        entry.step = old.wait_for_step(sequence.next_step(3))
        ranks = old.rank_pids()
        entry.pids = (*ranks, old.process.pid)
        signal_all(entry.pids, signal.SIGSTOP)
        sequence.expect_loss(entry)
        # Simulates a minute without heartbeats, by the file server's clock.
        heartbeat = RunFolder(sequence.job.run).attempts()[-1].heartbeat
        os.utime(heartbeat, (time.time() - LONG_AGO, time.time() - LONG_AGO))
        with sequence.started() as new:
            new.wait_for_step(1)
            if while_running:
                wake(sequence, entry, old, new)
            new.process.terminate()
            sequence.record_end(entry, new)
            sequence.expect_code(entry, ExitCode.STOPPED)
        if not while_running:
            wake(sequence, entry, old, None)


def wake(sequence: FaultSequence, entry: PendingFault, old: LaunchedTraining, new: LaunchedTraining | None) -> None:
    """Resume the suspended ranks: they must end by themselves, with one line, and write nothing that others read."""
    run = RunFolder(sequence.job.run)
    own = run.attempt(old.before + 1).number
    before = _protected_files(run, own, while_running=new is not None)
    signal_all(entry.pids, signal.SIGCONT)
    code = old.exit_code(ENDS_WITHIN)
    entry.codes.append(code)
    entry.problems += clear_error_problems(code, old.stderr)
    entry.detail.append(last_line(old.stderr))
    if code != ExitCode.RUN_LOCKED:
        entry.problems.append(f"the resumed ranks' exit code is {code}, not {int(ExitCode.RUN_LOCKED)}")
    problems = snapshot_problems(before, _protected_files(run, own, while_running=new is not None))
    # New files while a successor runs are its own, unless they have the resumed attempt's number.
    name = f"attempt-{own:04d}"
    entry.problems += [text for text in problems if new is None or "is new" not in text or name in text]


def _protected_files(run: RunFolder, own: int, *, while_running: bool) -> dict[str, str]:
    """Return what resumed ranks must not change: all checkpoints, and the files of later attempts that have ended."""
    found = {path: digest for path, digest in snapshot(run.checkpoints).items() if not path.startswith(".")}
    ended = [] if while_running else [one for one in run.attempts() if one.number > own]
    return found | {f"{one.path.name}/{path}": text for one in ended for path, text in snapshot(one.path).items()}


def signal_all(pids: Sequence[int], number: int) -> None:
    """Send a signal to processes."""
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError as fault:
            raise TimedOut(f"process {pid} is gone") from fault


FAULTS = (hangs, late_wakeups)
