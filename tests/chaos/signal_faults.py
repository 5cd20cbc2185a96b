"""Faults by signals and requests: stop signals, kills, pauses, and the files STOP and SAVE."""

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


def stop_signals(workspace: Workspace, rng: random.Random) -> Iterable[Fault]:
    """Stop two ranks with a worker each in several ways."""
    sequence = new_sequence(workspace, rng, 2, 1)
    # First, because a file is noticed only within half a second, in which many steps may run.
    stop_file(sequence)
    signal_at_a_step(sequence)
    second_signal_while_stopping(sequence)
    save_file(sequence)
    short_pause(sequence)
    hang_up(sequence)
    return sequence.finish()


def kills(workspace: Workspace, rng: random.Random) -> Iterable[Fault]:
    """Kill processes of two ranks."""
    sequence = new_sequence(workspace, rng, 2, 1)
    # First, because near the end a worker has nothing left to do.
    kill_worker(sequence)
    sequence.stop()
    kill_launcher(sequence)
    killed_in_a_save(sequence, "foreground", "checkpoint.background=false")
    sequence.stop()  # otherwise the third consecutive attempt without a checkpoint would be the last
    killed_in_a_save(sequence, "background", "checkpoint.background=true")
    signal_in_a_save(sequence)
    second_interrupt(sequence)
    return sequence.finish()


def signal_at_a_step(sequence: FaultSequence) -> None:
    """Send USR2 to one rank."""
    with sequence.fault("USR2 at a step") as entry, sequence.started() as start:
        rank = sequence.rng.choice(start.rank_pids())
        sequence.signal_at_step(entry, start, [rank], signal.SIGUSR2, sequence.next_step())
        sequence.expect_code(entry, ExitCode.STOPPED)
        sequence.expect_loss(entry, 0)


def second_signal_while_stopping(sequence: FaultSequence) -> None:
    """Send TERM, and while the checkpoint is written to a slow disk, USR2 to all ranks and TERM again."""
    with sequence.fault("second signal while stopping") as entry, sequence.started() as start:

        def again() -> None:
            start.wait(lambda: _is_saving(start), "the stop's save")
            for pid in start.rank_pids():
                os.kill(pid, signal.SIGUSR2)
            start.process.send_signal(signal.SIGTERM)
            _set_disk_delay(start, None)

        step = sequence.next_step()
        start.wait_for_step(step)
        _set_disk_delay(start, SLOW_DISK_SECONDS)
        sequence.signal_at_step(entry, start, [start.process.pid], signal.SIGTERM, step, again)
        sequence.expect_code(entry, ExitCode.STOPPED)
        sequence.expect_loss(entry, 0)


def save_file(sequence: FaultSequence) -> None:
    """Create SAVE, and kill all ranks as soon as it is obeyed: nothing before it may be lost."""
    with sequence.fault("SAVE file, then SIGKILL of all") as entry, sequence.started() as start:
        entry.step = start.wait_for_step(sequence.next_step())
        request = RunFolder(start.job.run).save_request
        request.touch()
        start.wait(lambda: not request.exists(), "the SAVE file is obeyed", ENDS_WITHIN)
        saved = max(row["step"] for row in start.events("checkpoint"))
        entry.pids = tuple(start.rank_pids())
        for pid in entry.pids:
            os.kill(pid, signal.SIGKILL)
        sequence.record_end(entry, start)
        sequence.expect_code(entry, ExitCode.INTERNAL_ERROR)
        sequence.expect_loss(entry, max(0, sequence.reached - saved))
        entry.detail.append(f"saved at step {saved}")


def stop_file(sequence: FaultSequence) -> None:
    """Create STOP."""
    with sequence.fault("STOP file") as entry, sequence.started() as start:
        entry.step = start.wait_for_step(sequence.next_step())
        request = RunFolder(start.job.run).stop_request
        request.touch()
        sequence.record_end(entry, start)
        sequence.expect_code(entry, ExitCode.STOPPED)
        sequence.expect_loss(entry, 0)
        if request.exists():
            entry.problems.append("the STOP file is still there: the next start would stop at once")


def short_pause(sequence: FaultSequence) -> None:
    """Suspend one rank for two seconds; the run must continue, and is then stopped."""
    with sequence.fault("paused rank that wakes soon") as entry, sequence.started() as start:
        step = start.wait_for_step(sequence.next_step())
        pid = sequence.rng.choice(start.rank_pids())
        os.kill(pid, signal.SIGSTOP)
        time.sleep(PAUSE_SECONDS)
        os.kill(pid, signal.SIGCONT)
        sequence.signal_at_step(entry, start, [start.process.pid], signal.SIGTERM, step + 2)
        entry.pids = (pid,)
        sequence.expect_code(entry, ExitCode.STOPPED)
        sequence.expect_loss(entry, 0)


def hang_up(sequence: FaultSequence) -> None:
    """Send HUP to the launcher, as when the terminal is closed."""
    with sequence.fault("HUP") as entry, sequence.started() as start:
        sequence.signal_at_step(entry, start, [start.process.pid], signal.SIGHUP, sequence.next_step())
        sequence.expect_code(entry, ExitCode.STOPPED)
        sequence.expect_loss(entry, 0)


def kill_launcher(sequence: FaultSequence) -> None:
    """Kill only the launcher; no rank may keep running."""
    with sequence.fault("SIGKILL of the launcher") as entry, sequence.started() as start:
        ranks = start.rank_pids()
        sequence.signal_at_step(entry, start, [start.process.pid], signal.SIGKILL, sequence.next_step())
        sequence.expect_code(entry, -signal.SIGKILL)
        sequence.expect_loss(entry)
        deadline = time.monotonic() + ENDS_WITHIN
        while any(map(_is_alive, ranks)):
            if time.monotonic() > deadline:
                raise TimedOut(f"ranks {ranks} keep running without their launcher")
            time.sleep(0.05)


def killed_in_a_save(sequence: FaultSequence, mode: str, override: str) -> None:
    """Kill all ranks while files of a checkpoint are written to a slow disk."""
    with sequence.fault(f"SIGKILL of all during a {mode} save") as entry, sequence.started(override) as start:
        pids = start.rank_pids()
        start.wait_for_step(sequence.reached + 1)
        _set_disk_delay(start, SLOW_DISK_SECONDS)
        start.wait(lambda: _is_saving(start), "a save")
        time.sleep(sequence.rng.uniform(0.0, 1.0))
        sequence.signal_at_step(entry, start, pids, signal.SIGKILL, 0)
        _set_disk_delay(start, None)
        sequence.expect_code(entry, ExitCode.INTERNAL_ERROR)
        sequence.expect_loss(entry)
        if not _is_saving(start):
            entry.problems.append("no incomplete checkpoint is left: the save had ended before the kill")


def signal_in_a_save(sequence: FaultSequence) -> None:
    """Send TERM during a background save to a slow disk."""
    background = "checkpoint.background=true"
    with sequence.fault("TERM during a background save") as entry, sequence.started(background) as start:
        start.wait_for_step(sequence.reached + 1)
        _set_disk_delay(start, SLOW_DISK_SECONDS)
        start.wait(lambda: _is_saving(start), "a save")
        sequence.signal_at_step(
            entry, start, [start.process.pid], signal.SIGTERM, 0, lambda: _set_disk_delay(start, None)
        )
        sequence.expect_code(entry, ExitCode.STOPPED)
        sequence.expect_loss(entry, 0)


def second_interrupt(sequence: FaultSequence) -> None:
    """Send Ctrl-C twice: the launcher kills its ranks at once."""
    with sequence.fault("second Ctrl-C") as entry, sequence.started() as start:

        def again() -> None:
            time.sleep(0.2)
            start.process.send_signal(signal.SIGINT)
            _set_disk_delay(start, None)

        _set_disk_delay(start, SLOW_DISK_SECONDS)
        sequence.signal_at_step(entry, start, [start.process.pid], signal.SIGINT, sequence.next_step(), again)
        sequence.expect_code(entry, ExitCode.STOPPED)
        sequence.expect_loss(entry)


def kill_worker(sequence: FaultSequence) -> None:
    """Kill a loader worker, as the out-of-memory killer does: one clear line and a restart."""
    with sequence.fault("SIGKILL of a loader worker", good="clear_error") as entry, sequence.started() as start:
        start.wait_for_step(sequence.reached + 1)
        pid = sequence.rng.choice(start.worker_pids(sequence.rng.randrange(2)))
        sequence.signal_at_step(entry, start, [pid], signal.SIGKILL, sequence.next_step())
        sequence.expect_clear_error(entry, start)
        sequence.expect_loss(entry)


def _set_disk_delay(start: LaunchedTraining, seconds: str | None) -> None:
    switch = start.job.switches / "slow-disk"
    if seconds is None:
        switch.unlink(missing_ok=True)
    else:
        switch.write_text(seconds)


def _is_saving(start: LaunchedTraining) -> bool:
    return any(RunFolder(start.job.run).checkpoints.glob(".step-*.tmp"))


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


FAULTS = (stop_signals, kills)
