"""A process beside the rank that ends it when it can no longer do so itself.

A thread of the rank watches its steps, but no thread runs while C code keeps Python's interpreter lock. This process
hears from that thread several times a second how many seconds are left. It counts them down when nothing more comes,
says what the rank had prepared for the case, and ends the rank by SIGABRT, on which faulthandler writes the stacks of
all threads without asking for the lock. Time during which the rank is stopped (SIGSTOP, a suspended job) does not
count.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hsadml_dist.run.processes import stat_fields
from hsadml_dist.run.rows import RowWriter

TICK_SECONDS = 0.25
GRACE_SECONDS = 1.25
"""Time beyond the limit for a rank that can still end by itself to say more than this process knows."""
LONGEST_TICK = 1.0
PR_SET_PDEATHSIG = 1
LARGEST_MESSAGE = 4096
"""Up to this size (PIPE_BUF) a pipe takes a message whole or not at all."""


@dataclass(frozen=True, kw_only=True)
class Will:
    """What is to be done if no further message comes.

    Attributes:
        left: Seconds until then.
        line: What is said on stderr.
        events: The file that ``event`` is appended to; None: other ranks record it.
        event: The row, but for its time.
    """

    left: float
    line: str
    events: str | None
    event: dict[str, Any]


class Deadman:
    """This process's watcher; to be started before there are threads."""

    def __init__(self) -> None:
        heard, self._said = os.pipe()
        os.set_blocking(self._said, False)
        parent = os.getpid()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._said)
            _watch(parent, heard)
        os.close(heard)

    def tell(self, will: Will) -> None:
        """Replace what was told before."""
        message = json.dumps(asdict(will)).encode() + b"\n"
        # A watcher that is itself stopped takes nothing in, one that was killed is no reason to fail.
        with contextlib.suppress(BlockingIOError, BrokenPipeError):
            if len(message) <= LARGEST_MESSAGE:
                os.write(self._said, message)

    def close(self) -> None:
        """End the watcher."""
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        os.close(self._said)


@contextlib.contextmanager
def standing_by(wanted: bool) -> Iterator[Deadman | None]:
    """Give a watcher for this process until the block ends, if one is wanted."""
    deadman = Deadman() if wanted else None
    try:
        yield deadman
    finally:
        if deadman is not None:
            deadman.close()


def _watch(parent: int, heard: int) -> None:
    """Be the watcher; never returns."""
    # The rank's handlers mean the rank. PDEATHSIG: whatever ends the rank ends this process in the same moment.
    for number in (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    try:
        will = _last_will(parent, heard)
        if will is not None and os.getppid() == parent:
            _carry_out(will, parent)
    finally:
        os._exit(0)


def _last_will(parent: int, heard: int) -> Will | None:
    """Return the will whose time has come; None: the rank has gone."""
    will: Will | None = None
    left = before = 0.0
    while os.getppid() == parent:
        ready = select.select([heard], [], [], TICK_SECONDS)[0]
        now = time.monotonic()
        passed, before = now - before, now
        if ready:
            will = _newest(os.read(heard, 2**20))
            if will is None:
                return None
            left = will.left
        elif will is not None and not _is_stopped(parent):
            # A long gap between two looks means that this process was stopped, most likely with the rank.
            left -= min(passed, LONGEST_TICK)
            if left < -GRACE_SECONDS:
                return will
    return None


def _newest(data: bytes) -> Will | None:
    lines = data.splitlines()
    return Will(**json.loads(lines[-1])) if lines else None


def _is_stopped(pid: int) -> bool:
    fields = stat_fields(pid)
    return fields is None or fields[0] in "tTZX"


def _carry_out(will: Will, parent: int) -> None:
    with contextlib.suppress(OSError):
        sys.stderr.write(will.line + "\n")
        sys.stderr.flush()
    with contextlib.suppress(OSError):
        if will.events is not None:
            RowWriter(Path(will.events)).write({**will.event, "time": time.time()})
    os.kill(parent, signal.SIGABRT)
    time.sleep(1.0)
    os.kill(parent, signal.SIGKILL)  # it is in a call that SIGABRT does not end, or writes a large core file
