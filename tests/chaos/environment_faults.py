"""Faults in what surrounds a run: disk, ports, clock, settings, and who else writes the run folder."""

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
"""Room for two checkpoints, one that is written, and the rows."""
LEFT_FOR_ROWS = 2**19
"""Bytes, too few for a checkpoint."""
USUAL_PORT = 29500
"""The one that most launchers take."""
PORTS = 400
IDENTITY = ("train.seed=1", "optim.lr=1e-3", "train.global_batch=12", "train.steps=20", "loss.name=cosface")
"""Settings that a run cannot change; its length cannot shrink."""


def ports_and_clock(grounds: Workspace, draw: random.Random) -> Iterable[Fault]:
    """Two ranks that meet on a crowded machine whose clock jumps."""
    trip = new_sequence(grounds, draw, 2, 0)
    trip.stop()
    ports_taken(trip)
    stale_rendezvous(trip)
    clock_jump(trip, DAY)
    clock_jump(trip, -DAY)
    return trip.finish()


def settings(grounds: Workspace, draw: random.Random) -> Iterable[Fault]:
    """Changed recipes, refused in a moment, and a second start while the first one runs."""
    trip = new_sequence(grounds, draw, 1, 0)
    trip.stop()
    for override in draw.sample(IDENTITY, 3):
        changed_recipe(trip, override)
    second_start(trip)
    nonfinite_batch(trip)
    return trip.finish()


def disk(grounds: Workspace, draw: random.Random) -> Iterable[Fault]:
    """A run folder on a small disk of its own that fills up, and one that cannot be written; needs root."""
    trip = new_sequence(grounds, draw, 1, 0)
    trip.job.run.mkdir()
    with mounted(["-t", "tmpfs", "-o", f"size={DISK}", "hsadml-chaos"], trip.job.run):
        trip.stop()
        disk_full(trip, "before a save", left=LEFT_FOR_ROWS)
        disk_full(trip, "during a save")
        disk_full(trip, "between saves")
        return trip.finish()


def read_only(grounds: Workspace, draw: random.Random) -> Iterable[Fault]:
    """A run folder that is mounted read-only; needs root."""
    trip = new_sequence(grounds, draw, 2, 0)
    trip.stop()
    with trip.fault("read-only run folder", good="clear_error") as entry:
        before = snapshot(trip.job.run)
        with mounted(["--bind", str(trip.job.run)], trip.job.run):
            _command("mount", "-o", "remount,bind,ro", str(trip.job.run))
            with trip.started() as start:
                trip.note_end(entry, start)
        entry.step = trip.reached
        trip.expect_clear_error(entry, start, str(trip.job.run))
        entry.problems += snapshot_problems(before, snapshot(trip.job.run))
        trip.expect_loss(entry, 0)
    return trip.finish()


def ports_taken(trip: FaultSequence) -> None:
    """Somebody listens on the usual port, on the last start's, and on hundreds that the system would give."""
    with trip.fault("ports taken") as entry:
        last = json.loads(RunFolder(trip.job.run).attempts()[-1].rendezvous.read_text())["port"]
        with contextlib.ExitStack() as held:
            taken = sum(_listening(held, port) for port in (USUAL_PORT, last, *[0] * PORTS))
            entry.step = trip.stop()
        entry.detail.append(f"{taken} ports held")
        trip.expect_loss(entry, 0)


def stale_rendezvous(trip: FaultSequence) -> None:
    """An earlier attempt's address lies about, on a port where somebody else answers."""
    with trip.fault("stale rendezvous") as entry, contextlib.ExitStack() as held:
        listener = held.enter_context(socket.create_server(("127.0.0.1", 0)))
        folder = RunFolder(trip.job.run)
        stale = {"token": "0" * 32, "attempt": 1, "host": "127.0.0.1", "port": listener.getsockname()[1]}
        for attempt in folder.attempts():
            attempt.rendezvous.write_text(json.dumps(stale))
        entry.step = trip.stop()
        trip.expect_loss(entry, 0)


def clock_jump(trip: FaultSequence, seconds: int) -> None:
    """The clock steps by a day in the middle of an attempt, which goes on; so does its successor, at the right time."""
    with trip.fault(f"clock steps {'forward' if seconds > 0 else 'back'} by a day") as entry, trip.started() as start:
        step = start.wait_for_step(trip.next_step())
        switch = start.job.switches / "clock"
        switch.write_text(str(seconds))
        trip.cut(entry, start, [start.process.pid], signal.SIGTERM, step + 3)
        times = [row["time"] for row in start.events("stopped")]
        switch.unlink()
        trip.expect_code(entry, ExitCode.STOPPED)
        trip.expect_loss(entry, 0)
        if not times or abs(times[0] - time.time() - seconds) > DAY / 2:
            entry.problems.append("the ranks' clock did not jump")


def changed_recipe(trip: FaultSequence, override: str) -> None:
    """A setting that would make the run another one: refused with the difference, and nothing is written."""
    key, _, value = override.partition("=")
    with trip.fault(f"changed recipe ({key})", good="clear_error") as entry:
        before = snapshot(trip.job.run)
        with trip.started(override) as start:
            trip.note_end(entry, start)
        entry.step = trip.reached
        trip.expect_code(entry, ExitCode.USER_ERROR)
        trip.expect_clear_error(entry, start, key, "was started with", value.lstrip("1e-"))
        entry.problems += snapshot_problems(before, snapshot(trip.job.run))
        trip.expect_loss(entry, 0)


def second_start(trip: FaultSequence) -> None:
    """The same command again while the run is under way: refused, and the first goes on."""
    with trip.fault("second start of a running training", good="clear_error") as entry, trip.started() as first:
        entry.step = first.wait_for_step(trip.reached + 1)
        os.kill(first.rank_pids()[0], signal.SIGSTOP)  # so that it is not over before the second start is refused
        with trip.started() as second:
            trip.note_end(entry, second)
        os.kill(first.rank_pids()[0], signal.SIGCONT)
        trip.expect_code(entry, ExitCode.RUN_LOCKED)
        trip.expect_clear_error(entry, second, "is still written by process")
        first.process.terminate()
        trip.note_end(entry, first)
        trip.expect_code(entry, ExitCode.STOPPED)
        trip.expect_loss(entry, 0)


def nonfinite_batch(trip: FaultSequence) -> None:
    """An image that is not a number: the run ends with its key and loses no step; without it the run goes on."""
    with trip.fault("non-finite batch", good="clear_error") as entry:
        step = trip.next_step()
        key = trip.draw.choice(trip.grounds.calm(trip.job.world).ledger[step])
        # A sample comes once an epoch; the first of its steps to come is where the run must end.
        ledger = trip.grounds.calm(trip.job.world).ledger
        expected = next(number for number in sorted(ledger) if number > trip.reached and key in ledger[number])
        switch = trip.job.switches / "nonfinite"
        switch.write_text(key)
        with trip.started() as start:
            trip.note_end(entry, start)
        switch.unlink()
        entry.step = trip.reached
        trip.expect_code(entry, ExitCode.USER_ERROR)
        trip.expect_clear_error(entry, start, key, f"step {expected}")
        trip.expect_loss(entry, 0)


def disk_full(trip: FaultSequence, when: str, left: int = 0) -> None:
    """No room for the next checkpoint: found before it is written, or while it is; or none for the next step's row."""
    with trip.fault(f"disk full {when}", good="clear_error") as entry:
        filler = trip.job.run / ".filler"
        with trip.started() as start:
            entry.step = start.wait_for_step(trip.reached + 1)
            if when == "during a save":
                (trip.job.switches / "slow-disk").write_text(SLOW_DISK_SECONDS)
                start.wait(lambda: any((trip.job.run / "checkpoints").glob(".step-*.tmp")), "a save")
            _fill(filler, left)
            trip.note_end(entry, start)
        entry.detail.append(f"full at step {entry.step}, ended after step {trip.reached}")
        filler.unlink()
        (trip.job.switches / "slow-disk").unlink(missing_ok=True)
        trip.expect_code(entry, ExitCode.USER_ERROR)
        trip.expect_clear_error(entry, start)
        trip.expect_loss(entry)


@contextlib.contextmanager
def mounted(what: list[str], where: Path) -> Iterator[None]:
    """Mount something for a while."""
    _command("mount", *what, str(where))
    try:
        yield
    finally:
        _command("umount", "-l", str(where))


def may_mount() -> bool:
    """Whether this process may mount: as root, and where the machine allows it."""
    try:
        return os.getuid() == 0 and _mounts_once()
    except (TimedOut, OSError):
        return False


def _mounts_once() -> bool:
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


def _fill(path: Path, left: int) -> None:
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(b"\0" * 4096):
            pass
    os.truncate(path, max(0, path.stat().st_size - left))


def _listening(held: contextlib.ExitStack, port: int) -> bool:
    try:
        held.enter_context(socket.create_server(("127.0.0.1", port)))
    except OSError:
        return False
    return True


FAULTS = (ports_and_clock, settings)
NEED_MOUNTS = (disk, read_only)
