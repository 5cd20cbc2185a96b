"""Faults by signals and requests: notices, kills, pauses, and the files that ask a run to stop or save."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterable

from hsadml_dist.errors import ExitCode
from hsadml_dist.run.folder import RunFolder
from tests.chaos.baseline_runs import Workspace
from tests.chaos.evidence import Fault
from tests.chaos.fault_sequence import ENDS_WITHIN, FaultSequence, new_sequence
from tests.chaos.training_process import LaunchedTraining, TimedOut

SLOW_DISK_SECONDS = "0.3"
PAUSE_SECONDS = 2.0


def told(grounds: Workspace, draw: random.Random) -> Iterable[Fault]:
    """Two ranks with a worker each, told in many ways."""
    trip = new_sequence(grounds, draw, 2, 1)
    # First, since a file is seen within half a second, and then many steps may be done.
    stop_file(trip)
    notice_at_a_step(trip)
    second_notice_while_stopping(trip)
    save_file(trip)
    short_pause(trip)
    hang_up(trip)
    return trip.finish()


def killed(grounds: Workspace, draw: random.Random) -> Iterable[Fault]:
    """Two ranks whose processes die."""
    trip = new_sequence(grounds, draw, 2, 1)
    # First, since near the end nothing is left for a worker to do.
    killed_worker(trip)
    trip.stop()
    killed_launcher(trip)
    killed_in_a_save(trip, "foreground", "checkpoint.background=false")
    trip.stop()  # or the third attempt in a row without a checkpoint would be the last
    killed_in_a_save(trip, "background", "checkpoint.background=true")
    notice_in_a_save(trip)
    second_interrupt(trip)
    return trip.finish()


def notice_at_a_step(trip: FaultSequence) -> None:
    """USR2 to one rank."""
    with trip.fault("USR2 at a step") as entry, trip.started() as start:
        trip.cut(entry, start, [trip.draw.choice(start.rank_pids())], signal.SIGUSR2, trip.next_step())
        trip.expect_code(entry, ExitCode.STOPPED)
        trip.expect_loss(entry, 0)


def second_notice_while_stopping(trip: FaultSequence) -> None:
    """TERM, and while the stop's checkpoint is written on a slow disk, USR2 to all ranks and TERM once more."""
    with trip.fault("second signal while stopping") as entry, trip.started() as start:

        def again() -> None:
            start.wait(lambda: _is_saving(start), "the stop's save")
            for pid in start.rank_pids():
                os.kill(pid, signal.SIGUSR2)
            start.process.send_signal(signal.SIGTERM)
            _disk(start, None)

        step = trip.next_step()
        start.wait_for_step(step)
        _disk(start, SLOW_DISK_SECONDS)
        trip.cut(entry, start, [start.process.pid], signal.SIGTERM, step, again)
        trip.expect_code(entry, ExitCode.STOPPED)
        trip.expect_loss(entry, 0)


def save_file(trip: FaultSequence) -> None:
    """A SAVE file, and all ranks killed as soon as it is obeyed: nothing before it may be lost."""
    with trip.fault("SAVE file, then SIGKILL of all") as entry, trip.started() as start:
        entry.step = start.wait_for_step(trip.next_step())
        request = RunFolder(start.job.run).save_request
        request.touch()
        start.wait(lambda: not request.exists(), "the SAVE file is obeyed", ENDS_WITHIN)
        saved = max(row["step"] for row in start.events("checkpoint"))
        entry.pids = tuple(start.rank_pids())
        for pid in entry.pids:
            os.kill(pid, signal.SIGKILL)
        trip.note_end(entry, start)
        trip.expect_code(entry, ExitCode.INTERNAL_ERROR)
        trip.expect_loss(entry, max(0, trip.reached - saved))
        entry.detail.append(f"saved at step {saved}")


def stop_file(trip: FaultSequence) -> None:
    """A STOP file."""
    with trip.fault("STOP file") as entry, trip.started() as start:
        entry.step = start.wait_for_step(trip.next_step())
        request = RunFolder(start.job.run).stop_request
        request.touch()
        trip.note_end(entry, start)
        trip.expect_code(entry, ExitCode.STOPPED)
        trip.expect_loss(entry, 0)
        if request.exists():
            entry.problems.append("the STOP file is still there: the next start would stop at once")


def short_pause(trip: FaultSequence) -> None:
    """One rank stopped by SIGSTOP for two seconds; the run goes on, and is then told to stop."""
    with trip.fault("paused rank that wakes soon") as entry, trip.started() as start:
        step = start.wait_for_step(trip.next_step())
        pid = trip.draw.choice(start.rank_pids())
        os.kill(pid, signal.SIGSTOP)
        time.sleep(PAUSE_SECONDS)
        os.kill(pid, signal.SIGCONT)
        trip.cut(entry, start, [start.process.pid], signal.SIGTERM, step + 2)
        entry.pids = (pid,)
        trip.expect_code(entry, ExitCode.STOPPED)
        trip.expect_loss(entry, 0)


def hang_up(trip: FaultSequence) -> None:
    """The terminal goes away: HUP to the launcher."""
    with trip.fault("HUP") as entry, trip.started() as start:
        trip.cut(entry, start, [start.process.pid], signal.SIGHUP, trip.next_step())
        trip.expect_code(entry, ExitCode.STOPPED)
        trip.expect_loss(entry, 0)


def killed_launcher(trip: FaultSequence) -> None:
    """SIGKILL of the launcher alone; no rank may live on."""
    with trip.fault("SIGKILL of the launcher") as entry, trip.started() as start:
        ranks = start.rank_pids()
        trip.cut(entry, start, [start.process.pid], signal.SIGKILL, trip.next_step())
        trip.expect_code(entry, -signal.SIGKILL)
        trip.expect_loss(entry)
        deadline = time.monotonic() + ENDS_WITHIN
        while any(map(_lives, ranks)):
            if time.monotonic() > deadline:
                raise TimedOut(f"ranks {ranks} live on without their launcher")
            time.sleep(0.05)


def killed_in_a_save(trip: FaultSequence, ground: str, override: str) -> None:
    """SIGKILL of all ranks while files of a checkpoint are written to a slow disk."""
    with trip.fault(f"SIGKILL of all during a {ground} save") as entry, trip.started(override) as start:
        pids = start.rank_pids()
        start.wait_for_step(trip.reached + 1)
        _disk(start, SLOW_DISK_SECONDS)
        start.wait(lambda: _is_saving(start), "a save")
        time.sleep(trip.draw.uniform(0.0, 1.0))
        trip.cut(entry, start, pids, signal.SIGKILL, 0)
        _disk(start, None)
        trip.expect_code(entry, ExitCode.INTERNAL_ERROR)
        trip.expect_loss(entry)
        if not _is_saving(start):
            entry.problems.append("no half-written checkpoint is left: the save was over before the kill")


def notice_in_a_save(trip: FaultSequence) -> None:
    """TERM while a checkpoint is written beside the steps to a slow disk."""
    with trip.fault("TERM during a background save") as entry, trip.started("checkpoint.background=true") as start:
        start.wait_for_step(trip.reached + 1)
        _disk(start, SLOW_DISK_SECONDS)
        start.wait(lambda: _is_saving(start), "a save")
        trip.cut(entry, start, [start.process.pid], signal.SIGTERM, 0, lambda: _disk(start, None))
        trip.expect_code(entry, ExitCode.STOPPED)
        trip.expect_loss(entry, 0)


def second_interrupt(trip: FaultSequence) -> None:
    """Ctrl-C twice means at once: the launcher kills its ranks."""
    with trip.fault("second Ctrl-C") as entry, trip.started() as start:

        def again() -> None:
            time.sleep(0.2)
            start.process.send_signal(signal.SIGINT)
            _disk(start, None)

        _disk(start, SLOW_DISK_SECONDS)
        trip.cut(entry, start, [start.process.pid], signal.SIGINT, trip.next_step(), again)
        trip.expect_code(entry, ExitCode.STOPPED)
        trip.expect_loss(entry)


def killed_worker(trip: FaultSequence) -> None:
    """SIGKILL of a loader worker, as for want of memory: one clear line and a restart."""
    with trip.fault("SIGKILL of a loader worker", good="clear_error") as entry, trip.started() as start:
        start.wait_for_step(trip.reached + 1)
        pid = trip.draw.choice(start.worker_pids(trip.draw.randrange(2)))
        trip.cut(entry, start, [pid], signal.SIGKILL, trip.next_step())
        trip.expect_clear_error(entry, start)
        trip.expect_loss(entry)


def _disk(start: LaunchedTraining, seconds: str | None) -> None:
    switch = start.job.switches / "slow-disk"
    if seconds is None:
        switch.unlink(missing_ok=True)
    else:
        switch.write_text(seconds)


def _is_saving(start: LaunchedTraining) -> bool:
    return any(RunFolder(start.job.run).checkpoints.glob(".step-*.tmp"))


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


FAULTS = (told, killed)
