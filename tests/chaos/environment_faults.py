"""Faults of the environment: disk, ports, clock, settings, and a second writer of the run folder."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from hsadml_dist.errors import ExitCode
from hsadml_dist.run.folder import RunFolder
from tests.chaos.baseline_runs import Workspace
from tests.chaos.evidence import Fault, snapshot_problems
from tests.chaos.fault_sequence import FaultSequence, new_sequence, snapshot
from tests.chaos.signal_faults import SLOW_DISK_SECONDS
from tests.chaos.training_process import TimedOut

DAY = 86400
DISK = "6m"
"""Space for two checkpoints, one being written, and the rows."""
FREE_FOR_ROWS = 2**19
"""Free bytes, too few for a checkpoint."""
USUAL_PORT = 29500
"""The default of most launchers."""
PORTS = 400
IDENTITY = ("train.seed=1", "optim.lr=1e-3", "train.global_batch=12", "train.steps=20", "loss.name=cosface")
"""Settings that cannot change within a run; its length cannot shrink."""


def ports_and_clock(workspace: Workspace, rng: random.Random) -> Iterable[Fault]:
    """Take the ports and let the clock jump on a machine with two ranks."""
    sequence = new_sequence(workspace, rng, 2, 0)
    sequence.stop()
    ports_taken(sequence)
    stale_rendezvous(sequence)
    clock_jump(sequence, DAY)
    clock_jump(sequence, -DAY)
    return sequence.finish()


def settings(workspace: Workspace, rng: random.Random) -> Iterable[Fault]:
    """Change the recipe, start a second time while the first start runs, and feed a non-finite batch."""
    sequence = new_sequence(workspace, rng, 1, 0)
    sequence.stop()
    for override in rng.sample(IDENTITY, 3):
        changed_recipe(sequence, override)
    second_start(sequence)
    nonfinite_batch(sequence)
    return sequence.finish()


def disk(workspace: Workspace, rng: random.Random) -> Iterable[Fault]:
    """Fill the small disk of a run folder; needs root."""
    sequence = new_sequence(workspace, rng, 1, 0)
    sequence.job.run.mkdir()
    with mounted(["-t", "tmpfs", "-o", f"size={DISK}", "hsadml-chaos"], sequence.job.run):
        sequence.stop()
        disk_full(sequence, "before a save", leave_free=FREE_FOR_ROWS)
        disk_full(sequence, "during a save")
        disk_full(sequence, "between saves")
        return sequence.finish()


def read_only(workspace: Workspace, rng: random.Random) -> Iterable[Fault]:
    """Mount the run folder read-only; needs root."""
    sequence = new_sequence(workspace, rng, 2, 0)
    sequence.stop()
    with sequence.fault("read-only run folder", good="clear_error") as entry:
        before = snapshot(sequence.job.run)
        with mounted(["--bind", str(sequence.job.run)], sequence.job.run):
            _command("mount", "-o", "remount,bind,ro", str(sequence.job.run))
            with sequence.started() as start:
                sequence.record_end(entry, start)
        entry.step = sequence.reached
        sequence.expect_clear_error(entry, start, str(sequence.job.run))
        entry.problems += snapshot_problems(before, snapshot(sequence.job.run))
        sequence.expect_loss(entry, 0)
    return sequence.finish()


def ports_taken(sequence: FaultSequence) -> None:
    """Listen on the usual port, on that of the last start, and on hundreds that the system would assign."""
    with sequence.fault("ports taken") as entry:
        last = json.loads(RunFolder(sequence.job.run).attempts()[-1].rendezvous.read_text())["port"]
        with contextlib.ExitStack() as stack:
            taken = sum(_listening(stack, port) for port in (USUAL_PORT, last, *[0] * PORTS))
            entry.step = sequence.stop()
        entry.detail.append(f"{taken} ports held")
        sequence.expect_loss(entry, 0)


def stale_rendezvous(sequence: FaultSequence) -> None:
    """Leave an earlier attempt's address in place, with another process listening on its port."""
    with sequence.fault("stale rendezvous") as entry, contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        folder = RunFolder(sequence.job.run)
        stale = {"token": "0" * 32, "attempt": 1, "host": "127.0.0.1", "port": listener.getsockname()[1]}
        for attempt in folder.attempts():
            attempt.rendezvous.write_text(json.dumps(stale))
        entry.step = sequence.stop()
        sequence.expect_loss(entry, 0)


def clock_jump(sequence: FaultSequence, seconds: int) -> None:
    """Step the clock by a day during an attempt; the attempt and its successor must work."""
    direction = "forward" if seconds > 0 else "back"
    with sequence.fault(f"clock steps {direction} by a day") as entry, sequence.started() as start:
        step = start.wait_for_step(sequence.next_step())
        switch = start.job.switches / "clock"
        switch.write_text(str(seconds))
        sequence.signal_at_step(entry, start, [start.process.pid], signal.SIGTERM, step + 3)
        times = [row["time"] for row in start.events("stopped")]
        switch.unlink()
        sequence.expect_code(entry, ExitCode.STOPPED)
        sequence.expect_loss(entry, 0)
        if not times or abs(times[0] - time.time() - seconds) > DAY / 2:
            entry.problems.append("the ranks' clock did not jump")


def changed_recipe(sequence: FaultSequence, override: str) -> None:
    """Change a setting that identifies the run: it must be rejected with the difference, and nothing be written."""
    key, _, value = override.partition("=")
    with sequence.fault(f"changed recipe ({key})", good="clear_error") as entry:
        before = snapshot(sequence.job.run)
        with sequence.started(override) as start:
            sequence.record_end(entry, start)
        entry.step = sequence.reached
        sequence.expect_code(entry, ExitCode.USER_ERROR)
        sequence.expect_clear_error(entry, start, key, "was started with", value.lstrip("1e-"))
        entry.problems += snapshot_problems(before, snapshot(sequence.job.run))
        sequence.expect_loss(entry, 0)


def second_start(sequence: FaultSequence) -> None:
    """Start the same command while the run is running: it must be rejected, and the first must continue."""
    with sequence.fault("second start of a running training", good="clear_error") as entry, sequence.started() as first:
        entry.step = first.wait_for_step(sequence.reached + 1)
        os.kill(first.rank_pids()[0], signal.SIGSTOP)  # so that it does not end before the second start is rejected
        with sequence.started() as second:
            sequence.record_end(entry, second)
        os.kill(first.rank_pids()[0], signal.SIGCONT)
        sequence.expect_code(entry, ExitCode.RUN_LOCKED)
        sequence.expect_clear_error(entry, second, "is still written by process")
        first.process.terminate()
        sequence.record_end(entry, first)
        sequence.expect_code(entry, ExitCode.STOPPED)
        sequence.expect_loss(entry, 0)


def nonfinite_batch(sequence: FaultSequence) -> None:
    """Make an image NaN: the run must end with its key and lose no step."""
    with sequence.fault("non-finite batch", good="clear_error") as entry:
        step = sequence.next_step()
        key = sequence.rng.choice(sequence.workspace.baseline(sequence.job.world).ledger[step])
        # A sample occurs once per epoch; the run must end at the next step that contains it.
        ledger = sequence.workspace.baseline(sequence.job.world).ledger
        expected = next(number for number in sorted(ledger) if number > sequence.reached and key in ledger[number])
        switch = sequence.job.switches / "nonfinite"
        switch.write_text(key)
        with sequence.started() as start:
            sequence.record_end(entry, start)
        switch.unlink()
        entry.step = sequence.reached
        sequence.expect_code(entry, ExitCode.USER_ERROR)
        sequence.expect_clear_error(entry, start, key, f"step {expected}")
        sequence.expect_loss(entry, 0)


def disk_full(sequence: FaultSequence, when: str, leave_free: int = 0) -> None:
    """Fill the disk: for the next checkpoint, before or during its save, or for the next row."""
    with sequence.fault(f"disk full {when}", good="clear_error") as entry:
        filler = sequence.job.run / ".filler"
        with sequence.started() as start:
            entry.step = start.wait_for_step(sequence.reached + 1)
            if when == "during a save":
                (sequence.job.switches / "slow-disk").write_text(SLOW_DISK_SECONDS)
                start.wait(lambda: any((sequence.job.run / "checkpoints").glob(".step-*.tmp")), "a save")
            _fill(filler, leave_free)
            sequence.record_end(entry, start)
        entry.detail.append(f"full at step {entry.step}, ended after step {sequence.reached}")
        filler.unlink()
        (sequence.job.switches / "slow-disk").unlink(missing_ok=True)
        sequence.expect_code(entry, ExitCode.USER_ERROR)
        sequence.expect_clear_error(entry, start)
        sequence.expect_loss(entry)


@contextlib.contextmanager
def mounted(options: list[str], target: Path) -> Iterator[None]:
    """Mount a file system for the duration of the block."""
    _command("mount", *options, str(target))
    try:
        yield
    finally:
        _command("umount", "-l", str(target))


def may_mount() -> bool:
    """Return whether this process may mount file systems."""
    try:
        return os.getuid() == 0 and _try_mount()
    except (TimedOut, OSError):
        return False


def _try_mount() -> bool:
    folder = Path("/tmp") / f"hsadml-mount-{os.getpid()}"
    folder.mkdir()
    try:
        with mounted(["-t", "tmpfs", "-o", "size=64k", "hsadml-chaos"], folder):
            return True
    finally:
        folder.rmdir()


def _command(*words: str) -> None:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise TimedOut(f"{' '.join(words)}: {done.stderr.strip()}")


def _fill(path: Path, leave_free: int) -> None:
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(b"\0" * 4096):
            pass
    os.truncate(path, max(0, path.stat().st_size - leave_free))


def _listening(stack: contextlib.ExitStack, port: int) -> bool:
    try:
        stack.enter_context(socket.create_server(("127.0.0.1", port)))
    except OSError:
        return False
    return True


FAULTS = (ports_and_clock, settings)
NEED_MOUNTS = (disk, read_only)
