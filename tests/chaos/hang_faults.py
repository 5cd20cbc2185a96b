"""Faults of processes that neither work nor end: stopped for good, or stopped and woken too late."""

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

TIME_OUT = 6
"""Seconds that a step may take; steps take a hundredth of it."""
REPORT_WITHIN = 2.0
"""Seconds after the time-out within which a hang must be told."""
LONG_AGO = 3600.0


def hangs(grounds: Workspace, draw: random.Random) -> Iterable[Fault]:
    """Two ranks, of which one stops for good: its peer must end the run and name it."""
    trip = new_sequence(grounds, draw, 2, 1, f"run.step_timeout_seconds={TIME_OUT}")
    trip.stop()
    for kind, rank in (("hung rank 1", 1), ("hung rank 0", 0)):
        hung(trip, kind, rank)
    hung_worker(trip)
    return trip.finish()


def too_late(grounds: Workspace, draw: random.Random) -> Iterable[Fault]:
    """All ranks paused and given up; they wake when their successor is under way, or when it has ended."""
    # All are kept: so what vanishes was not removed by the successor's right.
    trip = new_sequence(grounds, draw, 2, 0, "checkpoint.keep=100")
    trip.stop()
    woken(trip, while_running=True)
    woken(trip, while_running=False)
    return trip.finish()


def hung(trip: FaultSequence, kind: str, rank: int) -> None:
    """SIGSTOP for good."""
    with trip.fault(kind, good="clear_error") as entry, trip.started() as start:
        entry.step = start.wait_for_step(trip.next_step(3))
        stop_and_time(trip, entry, start, start.rank_pids()[rank])
        trip.expect_clear_error(entry, start, f"rank {rank}")
        trip.expect_loss(entry)


def hung_worker(trip: FaultSequence) -> None:
    """SIGSTOP for good of a loader worker."""
    with trip.fault("hung loader worker", good="clear_error") as entry, trip.started() as start:
        entry.step = start.wait_for_step(trip.next_step(3))
        rank = trip.draw.randrange(2)
        stop_and_time(trip, entry, start, start.worker_pids(rank)[0])
        trip.expect_clear_error(entry, start, f"rank {rank}")
        trip.expect_loss(entry)


def stop_and_time(trip: FaultSequence, entry: PendingFault, start: LaunchedTraining, pid: int) -> None:
    """Stop a process for good and measure how long it takes until somebody says so."""
    entry.pids = (pid,)
    os.kill(pid, signal.SIGSTOP)
    stopped = time.monotonic()
    start.wait(lambda: "hang" in start.stderr, "the hang is told", TIME_OUT + ENDS_WITHIN)
    entry.figures["told_after"] = round(time.monotonic() - stopped, 2)
    if entry.figures["told_after"] > TIME_OUT + REPORT_WITHIN:
        entry.problems.append(f"told after {entry.figures['told_after']} s, with a time-out of {TIME_OUT} s")
    trip.note_end(entry, start)
    trip.expect_code(entry, ExitCode.INTERNAL_ERROR)


def woken(trip: FaultSequence, *, while_running: bool) -> None:
    """Pause all of an attempt, let another one take over, and wake the first: it may harm nobody."""
    moment = "while its successor runs" if while_running else "after its successor has stopped"
    with trip.fault(f"paused ranks that wake {moment}") as entry, trip.started() as old:
        entry.step = old.wait_for_step(trip.next_step(3))
        ranks = old.rank_pids()
        entry.pids = (*ranks, old.process.pid)
        signal_all(entry.pids, signal.SIGSTOP)
        trip.expect_loss(entry)
        # Its silence of a minute, by the clock of the file server, is made up here.
        heartbeat = RunFolder(trip.job.run).attempts()[-1].heartbeat
        os.utime(heartbeat, (time.time() - LONG_AGO, time.time() - LONG_AGO))
        with trip.started() as new:
            new.wait_for_step(1)
            if while_running:
                wake(trip, entry, old, new)
            new.process.terminate()
            trip.note_end(entry, new)
            trip.expect_code(entry, ExitCode.STOPPED)
        if not while_running:
            wake(trip, entry, old, None)


def wake(trip: FaultSequence, entry: PendingFault, old: LaunchedTraining, new: LaunchedTraining | None) -> None:
    """Let the paused go on; they must end by themselves, with one line, and write nothing that others read."""
    run = RunFolder(trip.job.run)
    mine = run.attempt(old.before + 1).number
    before = _of_others(run, mine, while_running=new is not None)
    signal_all(entry.pids, signal.SIGCONT)
    code = old.exit_code(ENDS_WITHIN)
    entry.codes.append(code)
    entry.problems += clear_error_problems(code, old.stderr)
    entry.detail.append(last_line(old.stderr))
    if code != ExitCode.RUN_LOCKED:
        entry.problems.append(f"the woken ranks' exit code is {code}, not {int(ExitCode.RUN_LOCKED)}")
    problems = snapshot_problems(before, _of_others(run, mine, while_running=new is not None))
    # What is new while a successor runs is its own, unless it bears the woken attempt's number.
    name = f"attempt-{mine:04d}"
    entry.problems += [text for text in problems if new is None or "is new" not in text or name in text]


def _of_others(run: RunFolder, mine: int, *, while_running: bool) -> dict[str, str]:
    """Return what the woken ranks may not touch: all checkpoints, and what later attempts that have ended wrote."""
    found = {path: digest for path, digest in snapshot(run.checkpoints).items() if not path.startswith(".")}
    ended = [] if while_running else [one for one in run.attempts() if one.number > mine]
    return found | {f"{one.path.name}/{path}": text for one in ended for path, text in snapshot(one.path).items()}


def signal_all(pids: Sequence[int], number: int) -> None:
    """Send a signal to processes that may be gone."""
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError as fault:
            raise TimedOut(f"process {pid} is gone") from fault


FAULTS = (hangs, too_late)
